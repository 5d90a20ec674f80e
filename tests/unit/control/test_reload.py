"""The coordinator of a reload against a program in the successor's place: it cleans up whatever ends the reload."""

import json
import os
import select
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from oxidize.control import reload as reload_module
from oxidize.control.reload_channel import Control, Report, receive, send
from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.service_manager import notify, systemctl
from oxidize.takeover.connection import PeerProcess
from oxidize.takeover.listener import Listener
from tests.support.open_fds import no_leaked_fds
from tests.support.takeover_peer import Peer

WAIT_SECS = 20.0

# control: the channel. says: sends an object. pid: the file that shows that the program has begun.
PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys, time
control = socket.socket(fileno=int(sys.argv[sys.argv.index("--control-fd") + 1]))
def says(**message): control.send(json.dumps(message).encode())
with open({pid!r}, "w") as file: file.write(str(os.getpid()))
{body}
time.sleep(60)
"""


class Bench:
    """A takeover socket at which this process listens, and a program that a reload starts in place of a successor."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "t.sock"
        self.folder = folder
        self.main_pids: list[str] = []
        self.python = sys.executable
        monkeypatch.setattr(sys, "executable", str(folder / "program"))
        monkeypatch.setattr(notify, "is_managed", lambda: True)
        monkeypatch.setattr(notify, "notify", self.main_pids.append)
        monkeypatch.setattr(notify, "barrier", lambda: True)
        monkeypatch.setattr(systemctl, "main_pid", lambda: None)

    def reload(self, body: str, predecessor_pid: int | None = None, settings_fd: int | None = None) -> Report:
        program = self.folder / "program"
        pid_file = str(self.folder / "pid")
        program.write_text(PROGRAM.format(python=self.python, pid=pid_file, body=textwrap.dedent(body)))
        program.chmod(0o700)
        pid = os.getpid() if predecessor_pid is None else predecessor_pid
        return reload_module.reload(
            "server", self.folder / "server.toml", "info", self.path, pid, settings_fd=settings_fd
        )

    def fails(self, body: str, predecessor_pid: int | None = None) -> TakeoverError:
        with pytest.raises(TakeoverError) as caught:
            self.reload(body, predecessor_pid)
        return caught.value

    @property
    def successor_pid(self) -> int:
        return int((self.folder / "pid").read_text())

    def successor_ends(self) -> bool:
        """Return whether the program has ended, or ends of itself: it was sent SIGKILL."""
        return ends(self.successor_pid)

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """End the program that the coordinator has left alone."""
        yield
        pidfd = os.pidfd_open(self.successor_pid)
        try:
            assert not select.select([pidfd], [], [], 0)[0]
        finally:
            os.close(pidfd)
            os.kill(self.successor_pid, 9)


def ends(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], WAIT_SECS)[0])
    finally:
        os.close(pidfd)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with no_leaked_fds():
        yield Bench(tmp_path, monkeypatch)


@pytest.fixture
def listener(bench: Bench) -> Iterator[Listener]:
    """The predecessor is this process."""
    listener = Listener(bench.path)
    yield listener
    listener.close()


pytestmark = pytest.mark.usefixtures("listener")

PREPARED_AND_GO = """
    says(event="prepared")
    assert json.loads(control.recv(100)) == {"event": "go"}
"""


def test_a_reload_makes_the_successor_the_main_process_and_returns_its_report(bench: Bench) -> None:
    report = bench.reload(PREPARED_AND_GO + '    says(event="done", pid=os.getpid(), sessions=3)\n')
    assert (report["pid"], report["sessions"]) == (bench.successor_pid, 3)
    assert bench.main_pids == [f"MAINPID={bench.successor_pid}"]
    os.kill(bench.successor_pid, 9)


def test_a_successor_gets_the_settings_before_all_else(bench: Bench) -> None:
    settings = os.memfd_create("settings")
    os.write(settings, b"validated")
    body = """
    _, fds, _, _ = socket.recv_fds(control, 4096, 1)
    says(event="failed", reason=os.pread(fds[0], 100, 0).decode())
    """
    with pytest.raises(TakeoverError, match="validated"):
        bench.reload(body, settings_fd=settings)
    os.close(settings)


@pytest.mark.parametrize("character", ["x", "я", "🙂", "\x01", "\\"])
def test_the_reason_of_any_successor_is_reported(bench: Bench, character: str) -> None:
    error = bench.fails(f"says(event='failed', reason={character!r} * 16384)")
    assert error.reason == character * 16384  # what the first releases send at most
    assert error.phase is Phase.PREPARING
    assert bench.successor_ends()


UNREADABLE = {
    "half a message": 'control.send(b\'{"event": "fai\')',
    "no text": "control.send(b'\\xff\\xfe')",
    "too deep": "control.send(b'[' * 60_000)",
    "a number of many digits": "control.send(b'1' * 60_000)",
    "too long": "control.setsockopt(1, 32, 1 << 20); control.send(json.dumps({'reason': 'x' * 300_000}).encode())",
    "another event": "says(event='surprise')",
    "no object": "control.send(b'[]')",
    "nothing": "control.close()",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_successor_that_says_nothing_readable_is_killed(bench: Bench, body: str) -> None:
    bench.fails(body)
    assert bench.successor_ends()
    assert bench.main_pids == []


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_the_predecessor_of_a_successor_that_ends_after_go_becomes_the_main_process_again(
    bench: Bench, body: str
) -> None:
    bench.fails(PREPARED_AND_GO + f"    {body}; sys.exit(1)")
    assert bench.main_pids == [f"MAINPID={bench.successor_pid}", f"MAINPID={os.getpid()}"]
    assert bench.successor_ends()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_ends_the_coordinator_before_go_the_predecessor_is_the_main_process_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(reload_module, "send", fail)
    with pytest.raises(TakeoverError if error is OSError else error):
        bench.reload('says(event="prepared")')
    assert bench.main_pids == [f"MAINPID={bench.successor_pid}", f"MAINPID={os.getpid()}"]
    assert bench.successor_ends()


def test_a_service_manager_that_fails_does_not_keep_the_successor_alive(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise OxidizeError("no manager listens there")

    monkeypatch.setattr(notify, "barrier", fail)
    with pytest.raises(OxidizeError, match="no manager"):
        bench.reload('says(event="prepared")')
    assert bench.successor_ends()


def test_a_successor_that_said_after_go_that_it_failed_is_killed_where_it_hangs(bench: Bench) -> None:
    error = bench.fails(PREPARED_AND_GO + "    says(event='failed', reason='no memory')")
    assert error.reason == "no memory"
    assert bench.successor_ends()
    assert bench.main_pids == [f"MAINPID={bench.successor_pid}", f"MAINPID={os.getpid()}"]


# --- Who may be the only process that can serve is left alone ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError, None])
def test_a_successor_that_may_own_is_left_to_its_predecessor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    """It has GO, so it may say TAKEN between any look and a signal."""
    received: list[Report | None] = []

    def interrupted(channel: socket.socket) -> Report | None:
        if received and error is not None:
            raise error
        received.append(receive(channel))
        return received[-1]

    monkeypatch.setattr(reload_module, "receive", interrupted)
    monkeypatch.setattr(reload_module, "SETTLE_TIMEOUT_SECS", 0.01)
    with bench.surviving(), pytest.raises(error if error not in {None, OSError} else TakeoverError):
        bench.reload(PREPARED_AND_GO + "    control.send(b'no message')")
    assert bench.main_pids == [f"MAINPID={bench.successor_pid}"]


def test_a_successor_that_listens_is_left_alone(bench: Bench) -> None:
    body = f"""
        path = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.bind({str(bench.path)!r} + ".new")
        path.listen()
        os.rename({str(bench.path)!r} + ".new", {str(bench.path)!r})
        control.send(b"no message")
    """
    with bench.surviving():
        bench.fails(body)
    assert bench.main_pids == []


def test_a_successor_whose_predecessor_has_ended_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", bench.python)
        predecessor = Peer("predecessor", str(bench.path), "", "", "{}")
    predecessor.wait_for("serving")
    body = f"""
        os.kill({predecessor.pid}, 9)
        while open("/proc/{predecessor.pid}/stat").read().rpartition(")")[2].split()[0] != "Z": pass
        control.send(b"no message")
    """
    with bench.surviving():
        assert "ended without a reason" in bench.fails(body, predecessor.pid).reason
    predecessor.end()


# --- Processes are known by their pidfds ---


def test_a_process_that_is_not_the_one_that_listens_is_not_reloaded(bench: Bench) -> None:
    assert f"expected {os.getppid()}" in bench.fails("", os.getppid()).reason
    assert not (bench.folder / "pid").exists()  # nothing was started


def test_no_process_is_started_where_none_listens(bench: Bench, listener: Listener) -> None:
    listener.close()
    assert "has ended" in bench.fails("").reason
    assert not (bench.folder / "pid").exists()


def test_a_started_process_is_watched_even_if_it_ends_at_once() -> None:
    reading, writing = os.pipe()
    process = reload_module._start_detached(["/bin/true"], writing)
    assert select.select([process], [], [], WAIT_SECS)[0]
    assert process.is_dead()
    assert process.kill()  # harmless: not the next process of this number
    process.close()
    os.close(reading)
    os.close(writing)


def test_a_process_that_cannot_be_started_is_a_takeover_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, os.strerror(11))

    monkeypatch.setattr(os, "fork", refuse)
    error = bench.fails("")
    assert (error.phase, "room for a process" in error.reason) == (Phase.STARTING, True)


def test_a_reason_is_cut_so_that_older_releases_can_read_it(bench: Bench) -> None:
    for character in ("x", "я", "漢", "🙂", "\x01", "\udcff"):
        near, far = socketpair()
        Control(far).failed(character * 70_000)
        data = os.read(near, 1 << 20)
        assert len(data) <= 65_536
        reason = json.loads(data)["reason"]
        assert len(reason.encode()) > 9_000
        os.close(near)


def socketpair() -> tuple[int, int]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return near.detach(), far.detach()


def test_a_successor_that_has_served_without_go_is_reported_as_such() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        send(far, {"event": "prepared"})
        send(far, {"event": "done", "generation": 2})
        far.close()
        process = PeerProcess(os.getpid(), os.geteuid(), -1)
        reload_module._prepare(near, Path("/nowhere"), process, process)
        assert receive(near) == {"event": "done", "generation": 2}
