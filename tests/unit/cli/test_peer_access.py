"""`oxidize peer disable` and `enable`, and the end of a peer's access in `peer list`."""

import json
from pathlib import Path

import pytest

from oxidize.cli import reload as reload_module
from oxidize.cli.peers import DISABLED_NOT_MOVED
from oxidize.cli.replacement import Reloaded
from oxidize.config.values import format_key
from oxidize.errors import Phase, TakeoverError
from tests.support.config_files import ALICE, BOB, peer
from tests.support.peer_commands import Running, run


def test_a_disabled_peer_keeps_its_place_and_loses_its_session(path: Path, running: Running) -> None:
    running.session_of = ALICE
    before = path.read_text()
    result = run(path, "disable", "alice")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "disabled alice",
        "reloaded: made up",
        "oxidize: warning: listen",
        "its session has ended",
    ]
    assert path.read_text() == before.rstrip() + "\nenabled = false\n\n"
    assert running.peers == []
    assert run(path, "list").stderr == ""
    assert run(path, "add", "laptop").stderr.startswith("added laptop: 10.0.0.3\n"), "its address is kept"
    run(path, "remove", "laptop")
    again = run(path, "disable", "alice")
    assert (again.exit_code, again.stderr, running.reloads) == (0, "alice is disabled already\n", 3)
    result = run(path, "enable", "alice")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (0, "enabled alice")
    assert path.read_text().rstrip() == before.rstrip()
    assert [format_key(key) for key in running.peers] == [ALICE]
    assert run(path, "enable", "alice").stderr == "alice is enabled already\n"


def test_a_disabled_peer_is_not_reported_twice(path: Path, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def reload(*arguments: object) -> Reloaded:
        running.load()
        return Reloaded("reloaded: made up", (DISABLED_NOT_MOVED,))

    monkeypatch.setattr(reload_module, "replace_process", reload)
    assert run(path, "disable", "alice").stderr.splitlines() == ["disabled alice", "reloaded: made up"]


@pytest.mark.parametrize("command", ["disable", "enable"])
def test_access_of_an_unknown_peer_is_an_error(path: Path, command: str) -> None:
    result = run(path, command, "alcie")
    assert (result.exit_code, "alcie: expected the name of a peer; did you mean alice?" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["disable", "enable"])
def test_a_failed_change_of_access_restores_the_file(path: Path, running: Running, command: str) -> None:
    if command == "enable":
        path.write_text(path.read_text() + "enabled = false # until May\n")
        running.load()
    before = path.read_text()
    running.failure = TakeoverError(Phase.PREPARING, "no such release")
    result = run(path, command, "alice")
    assert (result.exit_code, f"oxidize: {path} has been restored" in result.stderr) == (1, True)
    assert path.read_text() == before


def test_a_peer_whose_address_was_given_away_is_not_enabled(path: Path) -> None:
    path.write_text(path.read_text() + "enabled = false\n" + peer("bob", BOB, '"10.0.0.2/32"'))
    before = path.read_text()
    result = run(path, "enable", "alice")
    assert (result.exit_code, path.read_text()) == (2, before)
    assert "alice: 10.0.0.2/32 belongs to bob now: expected addresses of its own; correct allowed_ips" in result.stderr


def test_an_expired_peer_that_is_enabled_is_a_warning(path: Path, running: Running) -> None:
    path.write_text(path.read_text() + "enabled = false\nexpires = 2001-01-01\n")
    running.load()
    result = run(path, "enable", "alice")
    assert result.exit_code == 0
    assert "warning: alice has expired, and so cannot connect; correct `expires` of it in" in result.stderr


def test_peer_list_shows_when_access_ends(path: Path, running: Running) -> None:
    path.write_text(path.read_text() + "expires = 2001-01-01T12:00:00\n" + peer("bob", BOB, '"10.0.0.3/32"'))
    running.load()
    heading, alice, bob = (line.split() for line in run(path, "list").stdout.splitlines())
    assert heading[5:] == ["expires", "connected", "last", "handshake"]
    assert alice[3:] == ["2001-01-01", "12:00", "expired", "never"]
    assert bob[3:] == ["-", "no", "never"]
    assert [row["inactive"] for row in json.loads(run(path, "list", "--json").stdout)] == ["expired", None]
