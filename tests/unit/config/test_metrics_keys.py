"""The key that limits the metrics of each peer."""

from pathlib import Path

import pytest

from oxidize.config import load_server
from oxidize.protocol.constants import PEERS_MAX
from oxidize.settings import NodeSettings
from tests.support.config_files import SERVER, load, peer, problem


def test_a_server_of_up_to_a_thousand_peers_has_them_by_default(folder: Path) -> None:
    config = load(folder, SERVER + peer(), load_server)
    assert config.metrics_peers == NodeSettings.of_server(config).metrics_peers == 1000


@pytest.mark.parametrize(
    ("value", "number"), [("true", PEERS_MAX), ("false", 0), ("0", 0), ("20", 20), (str(PEERS_MAX), PEERS_MAX)]
)
def test_they_may_be_on_or_off_or_up_to_a_number(folder: Path, value: str, number: int) -> None:
    config = load(folder, f"{SERVER}metrics_peers = {value}\n{peer()}", load_server)
    assert NodeSettings.of_server(config).metrics_peers == number


@pytest.mark.parametrize("value", ["-1", str(PEERS_MAX + 1), "1.5", '"all"', '""', "[]"])
def test_any_other_value_is_reported(folder: Path, value: str) -> None:
    expected = f"expected true, false, or a whole number from 0 to {PEERS_MAX}"
    assert expected in problem(folder, f"{SERVER}metrics_peers = {value}\n{peer()}")
