"""Unusable stored state is refused with a logged reason, and the server serves without it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from demo.processes import reap, spawn
from oxidize.errors import WriterBusyError
from oxidize.protocol.changes import PeerSeen
from oxidize.protocol.counters import Total
from oxidize.state import writer_lock
from oxidize.state.journal import HEADER_BYTES
from oxidize.state.session_state import SessionState
from tests.support.traffic.server import OXIDIZE, Identity, Lab, Server, wait_for

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
REFUSED = "the stored state is not used"


@pytest.fixture
def server(lab: Lab) -> Server:
    return Server(lab, [])


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
        pid = spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), os.environ, log.fileno(), fds)

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


@contextlib.contextmanager
def written_elsewhere(journal: int) -> Iterator[None]:
    """Let another process hold the writer's lock of a journal."""
    command = [sys.executable, "-c", WRITER, str(journal)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[journal]) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"held\n"
        yield
        writer.kill()


@pytest.mark.parametrize("what", ["valid", "other key", "garbage", "extra file", "read-only"])
def test_a_server_does_not_serve_beside_the_writer_of_its_stored_state(server: Server, what: str) -> None:
    """It does not refuse the state either: the manager's next start finds the writer's takeover socket."""
    with contextlib.closing(state_of(server, key=Identity.make().public if what == "other key" else None)) as state:
        journal = garbage("journal", b"\xff" * 10_000) if what == "garbage" else os.dup(state.fds["journal"])
        passed = os.open(f"/proc/self/fd/{journal}", os.O_RDONLY) if what == "read-only" else journal
        stored = [("journal", passed), ("arena", state.fds["arena"])]
        if what == "extra file":
            stored.append(("journal", garbage("journal", b"")))
        with written_elsewhere(journal), pytest.raises(AssertionError, match="another process writes the"):
            start_with(server, stored)
        assert REFUSED not in server.log_path.read_text()
        assert os.pread(journal, 10_000, 0).strip(b"\0")


def test_a_predecessor_that_thaws_during_a_start_does_not_serve_beside_it(server: Server) -> None:
    """It was stopped after COMMIT, its successor died, and the holder has started another process by then."""
    with contextlib.closing(state_of(server)) as state:
        state.arena.counters[Total.STARTS_IN_A_ROW] = 7  # the start waits between its restore and READY
        with socket.socket(type=socket.SOCK_DGRAM) as udp, server.log_path.open("wb") as log:
            udp.bind(("127.0.0.1", 0))
            fds = [("udp", udp.fileno()), *state.fds.items()]
            pid = spawn(
                (*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), os.environ, log.fileno(), fds
            )
        wait_for("the start to wait", lambda: "crashed repeatedly" in server.log_path.read_text())
        state.sync()
        with pytest.raises(WriterBusyError):
            state.become_writer()
        wait_for("the server to serve", lambda: " serving " in server.log_path.read_text())
        assert reap(pid) is None
        assert server.status()["generation"] == 8
        with pytest.raises(WriterBusyError):
            state.become_writer()


@pytest.mark.parametrize("what", ["other key", "garbage", "extra file"])
def test_the_writer_of_a_state_that_was_not_used_cannot_serve_later(server: Server, what: str) -> None:
    with contextlib.closing(state_of(server, key=Identity.make().public if what == "other key" else None)) as state:
        journal = garbage("journal", b"\xff" * 10_000) if what == "garbage" else state.fds["journal"]
        stored = [("journal", journal), ("arena", state.fds["arena"])]
        if what == "extra file":
            stored.append(("journal", journal))
        assert REFUSED in start_with(server, stored)
        with pytest.raises(WriterBusyError):
            writer_lock.take(journal)
        assert not os.pread(journal, 1 << 20, HEADER_BYTES).strip(b"\0"), "its keys have left the memory"


def test_a_stored_journal_that_cannot_be_locked_costs_the_sessions_and_not_the_service(server: Server) -> None:
    with contextlib.closing(state_of(server)) as state:
        journal = os.open(f"/proc/self/fd/{state.fds['journal']}", os.O_RDONLY)
        log = start_with(server, [("journal", journal), ("arena", state.fds["arena"])])
        os.close(journal)
    assert REFUSED in log
    assert server.status()["generation"] == 1
