"""The holder with real child processes, which store memfds and are killed, replaced, refused and restarted."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import StateError
from oxidize.holder import processes
from oxidize.holder.holder import FAILED_STARTS_MAX, Holder

WAIT_SECS = 10.0  # long enough for a loaded machine; nothing here waits for it to pass

PREAMBLE = r"""
import os, select, signal, socket, sys, time

def notify(text, fds=()):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sock, [text.encode()], list(fds))

def barrier():
    read, write = os.pipe()
    notify("BARRIER=1", [write])
    os.close(write)
    assert os.read(read, 1) == b""  # end of file: everything sent before it was read
    os.close(read)

def listen():
    assert os.environ["LISTEN_PID"] == str(os.getpid()), "LISTEN_PID is not mine"
    assert not os.get_blocking(3)
    count = int(os.environ["LISTEN_FDS"])
    names = os.environ["LISTEN_FDNAMES"].split(":")
    assert len(names) == count
    try:
        os.fstat(3 + count)
    except OSError:
        pass
    else:
        raise AssertionError("more file descriptors than were announced")
    return dict(zip(names, range(3, 3 + count)))

def serve(udp, state):
    sock = socket.socket(fileno=udp)
    while True:
        select.select([sock], [], [])
        data, address = sock.recvfrom(2048)
        sock.sendto(b"%d %s %s" % (os.getpid(), os.pread(state, 16, 0), data), address)
"""

# Keeps one number in a memfd: how often it was started.
SERVER = (
    PREAMBLE
    + r"""
fds = listen()
state = fds.get("journal")
if state is None:
    state = os.memfd_create("journal")
notify("FDSTORE=1\nFDNAME=journal\nFDPOLL=0", [state])
os.pwrite(state, b"%d" % (int(os.pread(state, 16, 0) or b"0") + 1), 0)
notify("WATCHDOG=1")
notify("READY=1\nSTATUS=started " + os.pread(state, 16, 0).decode())
"""
)
SERVING = SERVER + "serve(fds['udp'], state)\n"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVING

# Double-forks a successor, which gets the socket by SCM_RIGHTS from the predecessor when it is told to go.
RELOAD = (
    PREAMBLE
    + r"""
old = int(os.environ["MAINPID"])
read, write = os.pipe()
go_read, go_write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, b"%d" % os.getpid())
        os.close(go_write)
        if os.read(go_read, 2) != b"go":
            os._exit(1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as takeover:
            takeover.bind(os.environ["NOTIFY_SOCKET"] + "-takeover")
            os.kill(old, signal.SIGUSR1)
            _, (udp,), _, _ = socket.recv_fds(takeover, 16, 1)
        state = os.memfd_create("own")
        os.pwrite(state, b"successor", 0)
        notify("READY=1\nSTATUS=successor")
        serve(udp, state)
    os._exit(0)
os.wait()
successor = int(os.read(read, 16))
notify("MAINPID=%d" % successor)
barrier()
"""
)
RELOADING = RELOAD + "os.write(go_write, b'go')\nprint('moved')\n"
REFUSING = (
    RELOAD + "notify('MAINPID=%d' % old)\nbarrier()\nos.close(go_write)\nprint('no such thing')\nraise SystemExit(1)\n"
)
# The server that RELOAD replaces hands over on SIGUSR1 and ends with exit 0.
REPLACEABLE = (
    SERVER
    + r"""
def hand_over(*_):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as takeover:
        takeover.connect(os.environ["NOTIFY_SOCKET"] + "-takeover")
        socket.send_fds(takeover, [b"udp"], [fds["udp"]])
    os._exit(0)

signal.signal(signal.SIGUSR1, hand_over)
serve(fds["udp"], state)
"""
)


def argv(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


@pytest.fixture
def private(tmp_path: Path) -> Path:
    directory = tmp_path / "holder"
    directory.mkdir(mode=0o700)
    return directory


class Client:
    """A client that sends the server one request at a time."""

    def __init__(self, holder: Holder) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(WAIT_SECS)
        self.sock.connect(holder.udp_address)

    def send(self, text: str) -> None:
        self.sock.send(text.encode())

    def receive(self) -> tuple[int, str, str]:
        pid, state, text = self.sock.recv(2048).decode().split(" ", 2)
        return int(pid), state.strip("\0"), text

    def ask(self, text: str) -> tuple[int, str, str]:
        self.send(text)
        return self.receive()


class Held:
    """A holder with a started server and a client of it."""

    def __init__(self, script: str, directory: Path) -> None:
        self.before = processes.children()
        self.holder = Holder(argv(script), directory)
        self.client = Client(self.holder)

    def close(self) -> None:
        self.client.sock.close()
        self.holder.close()
        assert processes.children() == self.before, "the holder leaked a child"


@pytest.fixture
def held(request: pytest.FixtureRequest, private: Path) -> Iterator[Held]:
    it = Held(request.param, private)
    try:
        it.holder.start()
        it.holder.wait_ready(WAIT_SECS)
        yield it
    finally:
        it.close()


serving = pytest.mark.parametrize("held", [SERVING], indirect=True, ids=["serving"])
replaceable = pytest.mark.parametrize("held", [REPLACEABLE], indirect=True, ids=["replaceable"])


def finished_control(holder: Holder, script: str, timeout: float = WAIT_SECS) -> tuple[int, str]:
    holder.start_control(argv(script), timeout)
    assert holder.wait_for(lambda: holder.control_result is not None, WAIT_SECS)
    result = holder.control_result
    assert result is not None
    return result.status, result.output


@serving
def test_the_holder_passes_its_sockets_and_follows_the_main_process(held: Held) -> None:
    pid, state, text = held.client.ask("hello")
    assert (pid, state, text) == (held.holder.main_pid, "1", "hello")
    assert held.holder.status == "started 1"
    assert held.holder.stored_names == ("journal",)
    with socket.create_connection(held.holder.http_address, WAIT_SECS):
        pass
    assert held.holder.restarts == []


@serving
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_server_is_restarted_with_its_state_and_loses_nothing(held: Held, number: signal.Signals) -> None:
    first, _, _ = held.client.ask("before")
    killed_at = held.holder.kill_main(number)
    for i in range(50):
        held.client.send(f"queued {i}")
    answers = [held.client.receive() for _ in range(50)]
    second = held.holder.main_pid
    assert second not in (None, first)
    assert answers == [(second, "2", f"queued {i}") for i in range(50)]
    held.holder.wait_ready(WAIT_SECS)
    (restart,) = held.holder.restarts
    assert restart.reason == f"killed by {number.name}"
    assert restart.pid == second
    assert restart.ready_at is not None
    assert killed_at <= restart.ended_at <= restart.started_at <= restart.ready_at
    assert held.holder.stored_names == ("journal",)  # stored again by the second start, and dropped: the same file
    assert held.holder.udp_drops == 0


@pytest.mark.parametrize(
    "held",
    [SERVER + "if os.pread(state, 16, 0) == b'1': raise SystemExit(0)\nserve(fds['udp'], state)\n"],
    indirect=True,
    ids=["exits 0"],
)
def test_an_unexpected_exit_causes_a_restart(held: Held) -> None:
    assert held.client.ask("x")[1] == "2"
    assert [restart.reason for restart in held.holder.restarts] == ["exit status 0"]


@replaceable
def test_a_successor_becomes_the_main_process_and_is_restarted_after_a_kill(held: Held) -> None:
    old, _, _ = held.client.ask("a")
    assert finished_control(held.holder, RELOADING) == (0, "moved\n")
    assert held.holder.wait_for(lambda: held.holder.ready, WAIT_SECS)
    new, state, _ = held.client.ask("b")
    assert (new, state) == (held.holder.main_pid, "successor")
    assert new != old
    assert held.holder.wait_for(lambda: held.holder.former_pids == [], WAIT_SECS)
    assert not Path(f"/proc/{old}").exists(), "the predecessor is gone and reaped"
    assert held.holder.restarts == []

    held.holder.kill_main()
    third, state, _ = held.client.ask("c")
    assert third not in (old, new)
    assert state == "2"  # the store is the unit's, not the process's
    assert [restart.reason for restart in held.holder.restarts] == ["killed by SIGKILL"]


@replaceable
def test_a_refused_successor_leaves_the_old_process_serving(held: Held) -> None:
    old, _, _ = held.client.ask("a")
    assert finished_control(held.holder, REFUSING) == (1, "no such thing\n")
    assert held.holder.wait_for(lambda: held.holder.former_pids == [], WAIT_SECS)
    assert held.client.ask("b")[0] == old == held.holder.main_pid
    assert held.holder.ready
    assert held.holder.restarts == []


@replaceable
def test_a_server_that_dies_during_a_control_process_is_restarted_after_it(held: Held) -> None:
    old, _, _ = held.client.ask("a")
    script = PREAMBLE + "os.kill(int(os.environ['MAINPID']), signal.SIGKILL)\nbarrier()\nbarrier()\n"
    assert finished_control(held.holder, script)[0] == 0
    new, state, _ = held.client.ask("b")
    assert new != old
    assert state == "2"


@serving
def test_a_control_process_that_hangs_is_killed(held: Held) -> None:
    status, _ = finished_control(held.holder, "import time; time.sleep(600)", timeout=0.1)
    assert status == -signal.SIGKILL
    assert held.client.ask("x")[0] == held.holder.main_pid


@serving
def test_a_second_control_process_is_refused_while_one_runs(held: Held) -> None:
    held.holder.start_control(argv("import time; time.sleep(600)"), WAIT_SECS)
    with pytest.raises(StateError, match="one at a time"):
        held.holder.start_control(argv("pass"), WAIT_SECS)


@serving
def test_notifications_from_other_processes_are_ignored(held: Held, private: Path) -> None:
    memfd = os.memfd_create("foreign")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(private / "notify"))
            socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=foreign"], [memfd])
            sock.send(f"MAINPID={os.getpid()}\nSTATUS=mine now".encode())
    finally:
        os.close(memfd)
    # A barrier of the control process comes after them in the same queue.
    assert finished_control(held.holder, PREAMBLE + "barrier()") == (0, "")
    assert held.holder.main_pid != os.getpid()
    assert held.holder.stored_names == ("journal",)
    assert held.holder.status == "started 1"


def test_a_server_that_cannot_start_is_given_up_with_a_reason(private: Path) -> None:
    it = Held("raise SystemExit('no configuration')", private)
    try:
        it.holder.start()
        with pytest.raises(StateError, match=f"ended {FAILED_STARTS_MAX} times before it was ready"):
            it.holder.wait_ready(WAIT_SECS)
        assert it.holder.log_path.read_text().splitlines() == ["no configuration"] * FAILED_STARTS_MAX
        assert it.holder.main_pid is None
        with pytest.raises(StateError, match="no main process"):
            it.holder.kill_main()
    finally:
        it.close()


def test_a_server_without_a_ready_message_is_not_ready(private: Path) -> None:
    it = Held("import time; time.sleep(600)", private)
    try:
        it.holder.start()
        with pytest.raises(StateError, match="did not send READY=1 within"):
            it.holder.wait_ready(0.05)
    finally:
        it.close()


@serving
def test_stop_ends_the_server_and_prevents_restarts(held: Held) -> None:
    held.holder.stop(WAIT_SECS)
    assert held.holder.main_pid is None
    assert held.holder.restarts == []


@pytest.mark.parametrize("held", [DEAF], indirect=True, ids=["deaf"])
def test_stop_kills_a_server_that_ignores_sigterm(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxidize.holder.holder.SECOND_SIGTERM_SECS", 0.05)
    held.holder.stop(0.05)
    assert held.holder.wait_for(lambda: held.holder.main_pid is None, WAIT_SECS)
    assert held.holder.restarts == []


def test_close_ends_unannounced_orphans(private: Path) -> None:
    orphaning = SERVER + (
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.setsid(); time.sleep(600)\n"
        "    os._exit(0)\n"
        "os.wait(); serve(fds['udp'], state)"
    )
    it = Held(orphaning, private)
    try:
        it.holder.start()
        it.holder.wait_ready(WAIT_SECS)
        it.client.ask("x")  # only answered after the fork
        assert len(processes.children() - it.before) >= 1
    finally:
        it.close()  # asserts that none is left


def test_a_holder_that_was_never_started_can_be_closed(private: Path) -> None:
    Held(SERVING, private).close()
