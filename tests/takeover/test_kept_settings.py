"""A server that crashes starts again with the settings that its predecessor validated, where these are still right."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, Server, kill, wait_for
from tests.takeover.test_foreground import start, stop, wait_until_serving


def has_validated(pid: int) -> bool:
    """Return whether a process has the library that validates in its memory."""
    return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()


def crash(server: Server) -> int:
    """Kill the server; return the pid of the next process once it serves."""
    found = server.status()
    kill(found["pid"], signal.SIGKILL)
    return wait_until_serving(server, after=found["generation"])


def change_the_configuration(server: Server) -> None:
    with server.config_path.open("a") as file:
        file.write("# changed\n")


@pytest.mark.handoff
def test_only_the_first_process_validates_a_configuration_that_stays_as_it_is(
    server: Server, clients: list[EchoClient]
) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        assert has_validated(server.status()["pid"])
        for _ in range(3):
            assert not has_validated(crash(server)), server.log_path.read_text()
            traffic.wait_for_more()
        assert [peer["name"] for peer in server.status()["peers"]] == [peer.name for peer in server.peers]
        traffic.assert_unharmed(lost_at_most=3)
    stop(server, held)


@pytest.mark.handoff
def test_after_a_reload_what_the_successor_validated_is_used(server: Server, clients: list[EchoClient]) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        change_the_configuration(server)
        assert server.reload().status == 0
        traffic.wait_for_more()
        assert not has_validated(crash(server)), server.log_path.read_text()
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    stop(server, held)


@pytest.mark.handoff
def test_a_reload_validates_a_changed_configuration_once_and_an_unchanged_one_not_at_all(
    server: Server, clients: list[EchoClient]
) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        for is_changed in (False, True, False):
            if is_changed:
                change_the_configuration(server)
            command = [*OXIDIZE, "reload", "-c", str(server.config_path)]
            # Of the command, for the holder starts the successor.
            environ = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60)
            assert ("pydantic" in done.stderr) == is_changed
            assert "click" not in done.stderr
            traffic.wait_for_more()
            assert not has_validated(server.status()["pid"]), server.log_path.read_text()
        traffic.assert_unharmed()
    stop(server, held)


def touch_the_key(server: Server) -> None:
    key = server.config_path.parent / "server.key"
    key.write_text(key.read_text() + "\n")
    os.utime(key, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "validates"), [(change_the_configuration, True), (touch_the_key, False)], ids=["other", "the same key"]
)
def test_what_counts_is_what_the_files_say(server: Server, change: Callable[[Server], None], validates: bool) -> None:
    held = start(server)
    change(server)
    assert has_validated(crash(server)) == validates
    assert not has_validated(crash(server)), "what was validated meanwhile is kept"
    stop(server, held)


def test_a_key_file_that_has_become_unsafe_is_refused_after_a_crash_as_at_any_start(server: Server) -> None:
    held = start(server)
    key = server.config_path.parent / "server.key"
    key.chmod(0o644)
    found = server.status()
    kill(found["pid"], signal.SIGKILL)
    line = "but its mode is 0644"
    wait_for(line, lambda: line in server.log_path.read_text())
    key.chmod(0o600)
    wait_until_serving(server, after=found["generation"])
    stop(server, held)
