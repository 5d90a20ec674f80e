"""The reference of all configuration keys is what the schema says, and the examples have every key."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from oxidize.config import ClientConfig, ServerConfig, load_client, load_server
from oxidize.config.nat_schema import ForwardTable, NatTable
from oxidize.config.schema import ClientTable, NodeTable, PeerTable, ServerTable
from oxidize.config.validation import Table, fields_by_key
from scripts.configuration_reference import PAGE, meanings, page
from tests.support.config_files import PRIVATE, secret

EXAMPLES = PAGE.parents[1] / "examples"
KEY_FILES = ("server.key", "client.key", "alice.psk", "client.psk")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in KEY_FILES:
        secret(tmp_path / name, PRIVATE)
    return tmp_path


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "out of date: run python scripts/configuration_reference.py"


@pytest.mark.parametrize("model", [ServerTable, NatTable, ForwardTable, ClientTable, PeerTable])
def test_every_key_has_a_meaning(model: type[Table]) -> None:
    found = meanings(NodeTable) | meanings(model)
    assert {name for name in model.model_fields if not found.get(name)} == set()
    assert page().count(f"\n| `{next(iter(fields_by_key(model)))}` |") >= 1


def test_the_examples_load_without_a_warning(folder: Path) -> None:
    for name in ("server.toml", "client.toml"):
        (folder / name).write_text((EXAMPLES / name).read_text())
    server, client = load_server(folder / "server.toml"), load_client(folder / "client.toml")
    assert [peer.name for peer in server.peers] == ["alice", "branch-office"]
    assert server.warnings == client.warnings == ()


def test_the_example_of_nat_has_every_key(folder: Path) -> None:
    text = (EXAMPLES / "server.toml").read_text()
    (folder / "server.toml").write_text(re.sub(r"^#     ", "", text, flags=re.MULTILINE))
    loaded = load_server(folder / "server.toml")
    assert loaded.warnings == ()
    assert loaded.nat is not None
    (forward,) = loaded.nat.forwards
    for table, given in ((NatTable, loaded.nat), (ForwardTable, forward)):
        assert given.model_fields_set == set(table.model_fields)


@pytest.mark.parametrize(
    ("name", "load", "tables"),
    [("server.toml", load_server, [ServerTable, PeerTable]), ("client.toml", load_client, [ClientTable])],
)
def test_the_examples_name_every_key_and_its_true_default(
    folder: Path, name: str, load: Callable[[Path], ServerConfig | ClientConfig], tables: list[type[Table]]
) -> None:
    text = (EXAMPLES / name).read_text()
    (folder / name).write_text(text)
    as_written = load(folder / name)
    (folder / name).write_text(re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    assert load(folder / name) == as_written
    for table in tables:
        for key in fields_by_key(table):
            assert re.search(rf"^(# )?{key} = ", text, flags=re.MULTILINE), key
