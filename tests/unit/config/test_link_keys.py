"""The keys of a client's link, and the key for the file that a server stores endpoints in."""

import re
from pathlib import Path

import pytest

from oxidize.config import load_client, load_server
from oxidize.config.schema import (
    RECONNECT_ATTEMPTS_MAX,
    RECONNECT_BUFFER_MAX,
    RECONNECT_DELAY_MS_MAX,
    RECONNECT_DELAY_MS_MIN,
)
from oxidize.protocol.constants import INITIATION_INTERVAL_MIN, STAGED_PEER_BYTES_MAX
from oxidize.protocol.link_policy import INITIATION_SPACING_SECS, LinkPolicy
from oxidize.settings import NodeSettings
from tests.support.config_files import CLIENT, PRIVATE, SERVER, load, peer, problem, problems, secret
from tests.support.link_policy import DEFAULT_POLICY

LINKED = CLIENT + 'allowed_ips = ["10.0.0.0/24"]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    secret(tmp_path / "server.key", PRIVATE + "\n")
    return tmp_path


# --- [client] ---


def test_a_link_gets_the_defaults_of_the_schema(folder: Path) -> None:
    config = load(folder, LINKED, load_client)
    assert (config.reconnect_delay_ms, config.max_reconnect_delay_ms) == (50, 5000)
    assert (config.max_reconnect_attempts, config.reconnect_buffer_size, config.resend_unanswered) == (0, 1000, True)
    (server,) = NodeSettings.of_client(config).peers
    assert server.link == DEFAULT_POLICY


def test_every_key_of_a_link_is_in_its_policy(folder: Path) -> None:
    more = (
        "reconnect_delay_ms = 200\nmax_reconnect_delay_ms = 30000\nmax_reconnect_attempts = 7\n"
        "reconnect_buffer_size = 12\nresend_unanswered = false\n"
    )
    (server,) = NodeSettings.of_client(load(folder, LINKED + more, load_client)).peers
    assert server.link == LinkPolicy(
        retry_secs=0.2, retry_secs_max=30.0, retries_max=7, buffer_packets=12, resend=False
    )
    assert server.staged_max == 12


@pytest.mark.parametrize(
    ("key", "lowest", "highest"),
    [
        ("reconnect_delay_ms", RECONNECT_DELAY_MS_MIN, 5000),
        ("max_reconnect_delay_ms", 50, RECONNECT_DELAY_MS_MAX),
        ("max_reconnect_attempts", 0, RECONNECT_ATTEMPTS_MAX),
        ("reconnect_buffer_size", 1, RECONNECT_BUFFER_MAX),
    ],
)
def test_the_numbers_of_a_link_have_limits(folder: Path, key: str, lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        assert getattr(load(folder, f"{LINKED}{key} = {value}\n", load_client), key) == value
    for value in (-1, RECONNECT_DELAY_MS_MAX + RECONNECT_ATTEMPTS_MAX + RECONNECT_BUFFER_MAX, 1 << 70):
        line = problem(folder, f"{LINKED}{key} = {value}\n", load_client)
        assert re.search(rf"client\.{key} = .*: expected a whole number .*; remove the line for the default", line)


@pytest.mark.parametrize("value", ["true", "1.5", '"5"', "[5]", "nan"])
@pytest.mark.parametrize("key", ["reconnect_delay_ms", "max_reconnect_attempts", "reconnect_buffer_size"])
def test_the_numbers_of_a_link_are_whole_numbers(folder: Path, key: str, value: str) -> None:
    line = problem(folder, f"{LINKED}{key} = {value}\n", load_client)
    assert line.startswith(f"oxidize.toml: client.{key} = ")
    assert "expected a whole number" in line


@pytest.mark.parametrize("value", ["1", '"true"', "[]"])
def test_resend_unanswered_is_true_or_false(folder: Path, value: str) -> None:
    line = problem(folder, f"{LINKED}resend_unanswered = {value}\n", load_client)
    assert "expected true or false; remove the line for the default true" in line


def test_the_longest_delay_is_at_least_the_first(folder: Path) -> None:
    text = f"{LINKED}reconnect_delay_ms = 300\nmax_reconnect_delay_ms = 299\n"
    assert problem(folder, text, load_client) == (
        "oxidize.toml: client.max_reconnect_delay_ms = 299: expected at least reconnect_delay_ms, which is 300; "
        "raise it, or lower the other one"
    )
    assert "5001" in problem(folder, f"{LINKED}reconnect_delay_ms = 5001\n", load_client)
    (bad,) = problems(folder, f"{LINKED}reconnect_delay_ms = -1\nmax_reconnect_delay_ms = 60\n", load_client)
    assert "client.reconnect_delay_ms = -1" in bad


def test_a_misspelt_key_is_reported_with_the_key_that_was_meant(folder: Path) -> None:
    assert "did you mean reconnect_buffer_size?" in problem(folder, f"{LINKED}reconnectBufferSize = 7\n", load_client)


def test_a_server_refuses_the_keys_of_a_link(folder: Path) -> None:
    assert "server.reconnect_delay_ms = 50: expected a key of server" in problem(
        folder, f"{SERVER}reconnect_delay_ms = 50\n{peer()}"
    )


def test_the_limits_of_a_link_fit_servers_and_the_records_of_the_state(folder: Path) -> None:
    assert RECONNECT_DELAY_MS_MIN / 1000 >= INITIATION_SPACING_SECS > INITIATION_INTERVAL_MIN
    mtu = load(folder, LINKED, load_client).mtu
    assert RECONNECT_BUFFER_MAX * mtu <= STAGED_PEER_BYTES_MAX


# --- endpoints_file of [server] ---


def endpoints_file(folder: Path, line: str, environ: dict[str, str]) -> Path | None:
    (folder / "oxidize.toml").write_text(SERVER + line + peer())
    return load_server(folder / "oxidize.toml", environ).endpoints_file


def test_endpoints_are_stored_in_the_state_directory_of_systemd(folder: Path) -> None:
    assert endpoints_file(folder, "", {}) is None
    assert endpoints_file(folder, "", {"STATE_DIRECTORY": ""}) is None
    expected = Path("/var/lib/oxidize/server/endpoints.json")
    assert endpoints_file(folder, "", {"STATE_DIRECTORY": "/var/lib/oxidize/server"}) == expected
    assert endpoints_file(folder, "", {"STATE_DIRECTORY": "/var/lib/oxidize/server:/var/lib/other"}) == expected


def test_the_file_for_endpoints_can_be_set_and_turned_off(folder: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/oxidize/server"}
    assert endpoints_file(folder, 'endpoints_file = "state/e.json"\n', environ) == folder / "state/e.json"
    assert endpoints_file(folder, 'endpoints_file = "/srv/e.json"\n', {}) == Path("/srv/e.json")
    assert endpoints_file(folder, 'endpoints_file = ""\n', environ) is None


@pytest.mark.parametrize("value", ["7", "true", "[]", '"a\\u0000b"'])
def test_an_endpoints_file_that_is_not_a_path_is_refused(folder: Path, value: str) -> None:
    assert "server.endpoints_file = " in problem(folder, f"{SERVER}endpoints_file = {value}\n{peer()}")


def test_the_settings_of_a_server_have_the_endpoints_file(folder: Path) -> None:
    config = load(folder, f'{SERVER}endpoints_file = "e.json"\n{peer()}')
    assert NodeSettings.of_server(config).endpoints_file == folder / "e.json"
