"""Servers in the foreground without systemd: the parent that a terminal, a supervisor or a container starts.

Sources: signal(7), pid_namespaces(7), pty(7), tcsetpgrp(3).
"""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from demo.processes import reap
from oxidize.control import holder
from oxidize.control import reload as coordinator
from oxidize.control.query import IDENTITY, fetch
from oxidize.control.who_runs import HOLDER_NAME
from oxidize.errors import OxidizeError
from oxidize.holder import foreground
from oxidize.service_manager import notify
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, WAIT_SECS, Lab, Server, is_gone, kill, wait_for

RELOADS = 6
SIGNALS = 300
# One job in the foreground; after it has stopped the shell has the terminal until a line is typed.
SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[1:], process_group=0)
os.tcsetpgrp(0, job.pid)
os.waitid(os.P_PID, job.pid, os.WSTOPPED)
os.tcsetpgrp(0, os.getpgrp())
print("stopped", flush=True)
input()
os.tcsetpgrp(0, job.pid)
job.send_signal(signal.SIGCONT)
sys.exit(job.wait())
"""


def foreground_of(server: Server) -> tuple[str, ...]:
    return (*OXIDIZE, "server", "-c", str(server.config_path))


def start(server: Server) -> int:
    """Start a server in the foreground; return the pid of the process that was started once another one serves."""
    pid = server.lab.spawn(foreground_of(server), "server")
    wait_until_serving(server)
    return pid


def wait_until_serving(server: Server, *, after: int = 0) -> int:
    """Wait until a process of a generation later than `after` serves, and return its pid."""

    def look() -> int | None:
        with contextlib.suppress(OxidizeError):
            status = server.status()
            return int(status["pid"]) if int(status["generation"]) > after else None
        return None

    return wait_for("the server to serve", look)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_logged(server: Server, line: str) -> bool:
    return line in server.log_path.read_text()


def stop(server: Server, held: int) -> None:
    outcome = server.command("stop")
    assert (outcome.status, outcome.errors) == (0, "")
    assert server.lab.wait_ended(held) == 0


def test_commands_holder_and_generations_agree_on_the_name_of_the_variable() -> None:
    assert holder.HOLDER_VARIABLE == foreground.HOLDER_VARIABLE == notify.HOLDER_VARIABLE


@pytest.mark.handoff
def test_the_foreground_stays_through_reloads_and_loses_nothing(server: Server, clients: list[EchoClient]) -> None:
    held = start(server)
    assert Path(f"/proc/{held}/comm").read_text() == f"{HOLDER_NAME}\n"
    with Traffic(server, clients, 100.0) as traffic:
        for generation in range(2, RELOADS + 2):
            before = server.status()["pid"]
            # The coordinator in this process, but for one reload: a command takes as long as a successor.
            if generation == 2:
                outcome = server.reload()
                assert outcome.status == 0, outcome
            else:
                name = fetch(server.takeover_socket, IDENTITY)["holder"]
                coordinator.reload("server", server.config_path, "info", server.takeover_socket, before, name)
            status = server.status()
            assert status["generation"] == generation
            assert parent_of(status["pid"]) == held
            wait_for("the holder to reap the predecessor", partial(is_gone, before))
            traffic.wait_for_more()
        traffic.assert_unharmed()
    assert reap(held) is None
    stop(server, held)


@pytest.mark.handoff
def test_a_generation_that_is_killed_is_followed_by_one_with_the_same_sessions(
    server: Server, clients: list[EchoClient]
) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        for generation in (1, 3):
            kill(server.status()["pid"], signal.SIGKILL)
            wait_until_serving(server, after=generation)
            traffic.wait_for_more()
            assert server.reload().status == 0  # a killed successor is followed as well as a killed first one
            traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=3)  # what a process that is killed has in its hand
    assert "killed by SIGKILL: the next generation starts with what is held" in server.log_path.read_text()
    stop(server, held)


@pytest.mark.handoff
def test_a_killed_holder_ends_no_generation_and_the_next_one_takes_over_from_it(
    server: Server, clients: list[EchoClient]
) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        first = server.status()["pid"]
        kill(held, signal.SIGKILL)
        server.lab.wait_ended(held)
        traffic.wait_for_more()
        assert server.status()["pid"] == first
        again = server.lab.spawn(foreground_of(server), "server")
        second = wait_until_serving(server, after=1)
        assert parent_of(second) == again
        kill(second, signal.SIGKILL)
        wait_until_serving(server, after=2)  # from what the second generation stored in the new holder
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    stop(server, again)


@pytest.mark.handoff
def test_a_second_server_takes_over_and_the_first_holder_ends(server: Server, clients: list[EchoClient]) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        again = server.lab.spawn(foreground_of(server), "server")
        wait_until_serving(server, after=1)
        assert server.lab.wait_ended(held) == 0
        traffic.wait_for_more()
        traffic.assert_unharmed()
    assert "the service goes on outside of this holder" in server.log_path.read_text()
    stop(server, again)


@pytest.mark.handoff
def test_a_successor_of_a_release_without_holder_is_followed(server: Server, clients: list[EchoClient]) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        pid = server.lab.spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), "server")
        assert wait_until_serving(server, after=1) == pid
        traffic.wait_for_more()
        assert reap(held) is None
        kill(pid, signal.SIGKILL)
        server.lab.wait_ended(pid)
        assert parent_of(wait_until_serving(server, after=2)) == held
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    stop(server, held)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_generation_that_serves(server: Server, number: signal.Signals) -> None:
    held = start(server)
    assert server.reload().status == 0
    serving = server.status()["pid"]
    kill(held, number)
    assert server.lab.wait_ended(held) == 0
    assert is_gone(serving)
    assert f"ends signal={number.name} generation=2" in server.log_path.read_text()
    assert not server.takeover_socket.exists()


def test_a_second_request_ends_a_drain_at_once(server: Server, clients: list[EchoClient]) -> None:
    server.write_config(drain_timeout_secs=3600)
    held = start(server)
    with contextlib.suppress(ConnectionRefusedError), Traffic(server, clients, 100.0):
        kill(held, signal.SIGTERM)
        wait_for("the drain", lambda: server.status()["state"] == "draining")
        kill(held, signal.SIGTERM)
        assert server.lab.wait_ended(held) == 0
    assert "ends at once" in server.log_path.read_text()


def test_a_generation_that_is_told_to_end_ends_the_service(server: Server) -> None:
    held = start(server)
    kill(server.status()["pid"], signal.SIGTERM)
    assert server.lab.wait_ended(held) == 0


def test_a_server_that_cannot_start_ends_with_the_status_of_its_first_generation(server: Server) -> None:
    server.write_config(listen="nonsense")
    held = server.lab.spawn(foreground_of(server), "server")
    assert server.lab.wait_ended(held) == 2
    assert server.log_path.read_text().count("server.listen") == 1


def test_a_crash_while_the_configuration_is_wrong_keeps_what_is_held(server: Server, clients: list[EchoClient]) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        right = server.config_path.read_text()
        server.config_path.write_text(right + "broken = 1\n")
        kill(server.status()["pid"], signal.SIGKILL)
        for delay in ("0.1", "0.2"):  # and so on, up to RESTART_DELAY_MAX_SECS
            line = f"exit status 2: the next generation starts in {delay} s with what is held"
            wait_for(line, partial(is_logged, server, line))
        server.config_path.write_text(right)
        wait_until_serving(server, after=1)
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    stop(server, held)


def test_a_holder_that_waits_for_its_next_start_is_told_and_stopped(server: Server) -> None:
    held = start(server)
    server.config_path.write_text(server.config_path.read_text() + "broken = 1\n")
    kill(server.status()["pid"], signal.SIGKILL)
    line = "exit status 2: the next generation starts in"
    wait_for(line, partial(is_logged, server, line))
    told = server.command("status").errors
    assert f"pid {held} runs all the same: it was started for {server.takeover_socket}; it is a holder, " in told
    kill(held, signal.SIGSTOP)  # as Ctrl-Z does
    stop(server, held)
    assert is_logged(server, "ends signal=SIGTERM while no process serves")
    assert server.command("stop").status == 1


def test_other_signals_change_nothing_and_say_so(server: Server) -> None:
    held = start(server)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        kill(held, number)
        line = f"{signal.Signals(number).name} changes nothing: use `oxidize reload`"
        wait_for(line, partial(is_logged, server, line))
    stop(server, held)


def test_only_generations_are_heard_and_only_commands_of_the_same_user_can_ask(server: Server) -> None:
    held = start(server)
    name = fetch(server.takeover_socket, IDENTITY)["holder"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"STOPPING=1\nMAINPID=1", f"\0{name[1:]}-notify")
    script = f"""
import os, socket
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect("\\0{name[1:]}")
print(sock.recv(100))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "b''\n"  # closed without an answer
    for message in (b"", b"[]", b"{", b'{"start": []}', b'{"start": ["/bin/true"]}', b"[" * 9000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.connect(f"\0{name[1:]}")
            asking.send(message)
            assert asking.recv(100) == b""
    kill(server.status()["pid"], signal.SIGKILL)
    wait_until_serving(server, after=1)
    stop(server, held)


def test_the_holder_imports_little(server: Server) -> None:
    code = "import sys, oxidize.holder.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "click", "cryptography", "msgpack", "logging", "sdnotify"} & set(done.stdout.split())


# --- A terminal ---


class Terminal:
    """A terminal with a session of its own, whose leader is the process that is started in it."""

    def __init__(self, lab: Lab, command: tuple[str, ...]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self._stack = lab.stack.enter_context(contextlib.ExitStack())
        self._stack.callback(os.close, self.fd)
        self.shown = b""

    def close(self) -> None:
        self._stack.close()

    def type(self, key: bytes) -> None:
        os.write(self.fd, key)

    def read(self) -> str:
        while select.select([self.fd], [], [], 0)[0]:
            try:
                self.shown += os.read(self.fd, 65536)
            except OSError:  # EIO: all of its processes have closed it
                break
        return self.shown.decode()


def test_ctrl_c_ends_a_server_in_a_terminal_also_after_a_reload(server: Server) -> None:
    terminal = Terminal(server.lab, foreground_of(server))
    wait_until_serving(server)
    assert server.reload().status == 0
    wait_for("the log in the terminal", lambda: "took over" in terminal.read())
    assert os.tcgetpgrp(terminal.fd) == terminal.pid
    serving = server.status()["pid"]
    terminal.type(b"\x03")
    assert server.lab.wait_ended(terminal.pid) == 0
    assert is_gone(serving)
    assert "ends signal=SIGINT generation=2" in terminal.read()


def test_ctrl_z_stops_the_holder_and_not_the_service(server: Server, clients: list[EchoClient]) -> None:
    terminal = Terminal(server.lab, (sys.executable, "-c", SHELL, *foreground_of(server)))
    wait_until_serving(server)
    with Traffic(server, clients, 100.0) as traffic:
        terminal.type(b"\x1a")
        wait_for("the shell to see the job stop", lambda: "stopped" in terminal.read())
        traffic.wait_for_more()
        terminal.type(b"fg\n")
        assert server.reload().status == 0
        traffic.assert_unharmed()
    wait_for("the job in the foreground", lambda: os.tcgetpgrp(terminal.fd) != terminal.pid)
    terminal.type(b"\x03")
    assert server.lab.wait_ended(terminal.pid) == 0


def test_a_terminal_stopped_by_ctrl_s_delays_neither_packets_nor_a_reload_nor_the_start_after_a_crash(
    server: Server, clients: list[EchoClient]
) -> None:
    terminal = Terminal(server.lab, foreground_of(server))
    before = wait_until_serving(server)
    with Traffic(server, clients, 100.0) as traffic:
        terminal.type(b"\x13")
        for _ in range(SIGNALS):  # a line each, of the server and of the holder
            os.kill(before, signal.SIGUSR1)
            os.kill(terminal.pid, signal.SIGUSR1)
        traffic.wait_for_more()
        assert server.reload().status == 0
        traffic.wait_for_more()
        kill(server.status()["pid"], signal.SIGKILL)
        wait_until_serving(server, after=2)
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    terminal.type(b"\x11\x03")  # Ctrl-Q, Ctrl-C
    assert server.lab.wait_ended(terminal.pid) == 0


def test_a_holder_waits_for_no_reader_of_its_terminal() -> None:
    master, terminal = pty.openpty()
    said = "from oxidize.holder import foreground\nfor _ in range(1_000): foreground._say('INFO', 'text' * 20)"
    done = subprocess.run([sys.executable, "-c", said], stderr=terminal, check=False, timeout=WAIT_SECS)
    assert done.returncode == 0
    assert os.read(master, 65_536)
    os.close(terminal)
    os.close(master)


def test_a_terminal_that_is_closed_ends_no_service(server: Server) -> None:
    terminal = Terminal(server.lab, foreground_of(server))
    before = wait_until_serving(server)
    terminal.close()
    assert server.reload().status == 0
    assert server.status()["pid"] != before
    assert reap(terminal.pid) is None
    kill(server.status()["pid"], signal.SIGKILL)
    wait_until_serving(server, after=2)
    stop(server, terminal.pid)


# --- PID 1 ---


@pytest.mark.root
@pytest.mark.needs("unshare", "nsenter")
@pytest.mark.handoff
def test_as_pid_1_a_reload_replaces_and_a_crash_restarts_and_stop_ends_it(
    server: Server, clients: list[EchoClient]
) -> None:
    unshare = ("/usr/bin/unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    outer = server.lab.spawn((*unshare, *foreground_of(server)), "server")
    inner = wait_for("PID 1", lambda: Path(f"/proc/{outer}/task/{outer}/children").read_text().strip())

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        inside = ("nsenter", "-t", inner, "-p", "-m", *OXIDIZE)
        return subprocess.run(
            [*inside, *arguments, "-c", str(server.config_path)],
            capture_output=True, text=True, check=False, timeout=WAIT_SECS,
        )  # fmt: skip

    wait_for("the server", lambda: run("status").returncode == 0)
    with Traffic(server, clients, 100.0) as traffic:
        done = run("reload")
        assert done.returncode == 0, done
        traffic.wait_for_more()
        status = json.loads(run("status", "--json").stdout)
        assert status["generation"] == 2
        subprocess.run(["nsenter", "-t", inner, "-p", "-m", "kill", "-KILL", str(status["pid"])], check=True)
        wait_for("generation 3", lambda: '"generation": 3' in run("status", "--json").stdout)
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    done = run("stop")
    assert done.returncode == 0, done
    assert done.stdout.startswith("stopped: pid ")
    assert server.lab.wait_ended(outer) == 0
