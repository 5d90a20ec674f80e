"""Unusable stored state is refused with a logged reason, and the server serves without it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from oxidize.holder.processes import reap, spawn
from oxidize.protocol.changes import PeerSeen
from oxidize.state.session_state import SessionState
from tests.support.traffic.server import OXIDIZE, Identity, Lab, Server, wait_for

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
REFUSED = "the stored state is not used"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Lab(tmp_path) as lab:
        yield Server(lab, [])


def garbage(name: str, content: bytes) -> int:
    fd = os.memfd_create(name)
    os.write(fd, content)
    return fd


def start_with(server: Server, stored: Sequence[tuple[str, int]]) -> str:
    """Start a server that gets its socket and `stored` from a service manager; return its log once it serves."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp, server.log_path.open("wb") as log:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        fds = [("udp", udp.fileno()), *stored]
        pid = spawn((*OXIDIZE, "server", "-c", str(server.config_path)), os.environ, log.fileno(), fds)

        def serves() -> bool:
            assert reap(pid) is None, server.log_path.read_text()
            return " serving " in server.log_path.read_text()

        wait_for("the server to serve", serves)
    return server.log_path.read_text()


def state_of(server: Server, *, boot_id: str = BOOT_ID, key: bytes | None = None) -> SessionState:
    state = SessionState.create("0.1.0", 7, boot_id, key or server.identity.public)
    state.record(PeerSeen(b"p" * 32, state.arena.allocate()))
    state.stop_writing()
    return state


def test_valid_stored_state_is_restored(server: Server) -> None:
    with contextlib.closing(state_of(server)) as state:
        log = start_with(server, list(state.fds.items()))
    assert REFUSED not in log
    assert server.status()["generation"] == 8


@pytest.mark.parametrize("journal", [b"", b"\xff" * 10_000])
def test_stored_garbage_is_refused(server: Server, journal: bytes) -> None:
    fds = [("journal", garbage("journal", journal)), ("arena", garbage("arena", bytes(8192)))]
    log = start_with(server, fds)
    for _, fd in fds:
        os.close(fd)
    assert REFUSED in log
    assert "reason=" in log
    assert server.status()["generation"] == 1
    assert server.reload().status == 0


@pytest.mark.parametrize(("what", "reason"), [("boot", "written in boot"), ("key", "another private key")])
def test_stored_state_of_another_boot_or_key_is_refused(server: Server, what: str, reason: str) -> None:
    other = {"boot_id": "another boot"} if what == "boot" else {"key": Identity.make().public}
    with contextlib.closing(state_of(server, **other)) as state:
        log = start_with(server, list(state.fds.items()))
    assert REFUSED in log
    assert reason in log
    assert server.status()["generation"] == 1


@pytest.mark.parametrize("kept", [["journal"], ["arena"], ["journal", "arena", "journal"]])
def test_stored_state_with_a_missing_or_an_extra_file_is_refused(server: Server, kept: list[str]) -> None:
    with contextlib.closing(state_of(server)) as state:
        log = start_with(server, [(name, state.fds[name]) for name in kept])
    assert REFUSED in log
    assert server.status()["generation"] == 1


WRITER = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_stored_state_with_another_writer_is_not_used(server: Server) -> None:
    """It is not refused either: its writer serves, and the manager's next start finds the writer's takeover socket."""
    with contextlib.closing(state_of(server)) as state:
        journal = state.fds["journal"]
        command = [sys.executable, "-c", WRITER, str(journal)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[journal]) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"held\n"
            with pytest.raises(AssertionError, match="another process writes the journal"):
                start_with(server, list(state.fds.items()))
            writer.kill()
    assert REFUSED not in server.log_path.read_text()
