"""Servers that are started at the same instant, or beside a stopped one: at each instant one of them serves at most."""

import signal
from pathlib import Path

import pytest

from demo.processes import reap
from oxidize.holder.processes import Ended
from tests.support.traffic.clients import EchoClient
from tests.support.traffic.server import OXIDIZE, Lab, Server, fault, go_on, kill, stalled_pid, wait_for

STARTS = 8
ROUNDS = 3
START_SECS = 60.0  # for all of them on a loaded machine; nothing waits for it to pass


@pytest.fixture
def server(lab: Lab, client: EchoClient) -> Server:
    """A server at any free port, so that no port keeps two of them apart."""
    return Server(lab, [client.table()])


def spawn(server: Server, env: dict[str, str] | None = None) -> int:
    return server.lab.spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), "server", env)


def listening(server: Server) -> list[str]:
    """Return the lines of the log in which a process says that it serves."""
    return [line for line in server.log_path.read_text().splitlines() if "serving" in line or "took over" in line]


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_one_of_several_simultaneous_starts_serves(server: Server, round_: int) -> None:
    """Each other one finds it and takes over, or ends with the reason, as any start beside a running server."""
    running = {spawn(server) for _ in range(STARTS)}
    ended: dict[int, Ended] = {}

    def look() -> bool:
        for pid in running - ended.keys():
            if (end := reap(pid)) is not None:
                ended[pid] = end
        return len(running) - len(ended) <= 1

    wait_for("all starts but one to end", look, START_SECS)
    (pid,) = running - ended.keys()
    assert server.status()["pid"] == pid
    assert {end.status for end in ended.values()} <= {0, 1}, server.log_path.read_text()
    # A generation later than the first has taken over: each process that served has ended or serves now.
    starts = [line for line in listening(server) if "generation=1 " in line]
    assert len(starts) == 1, server.log_path.read_text()


def test_a_start_beside_one_that_does_not_listen_yet_ends_with_its_pid(server: Server, tmp_path: Path) -> None:
    first = spawn(server, fault("oxidize.runtime.node:Node.serve", "stall", tmp_path / "stalled"))
    assert stalled_pid(tmp_path / "stalled") == first
    second = spawn(server)
    assert server.lab.wait_ended(second) == 1
    assert f"but pid {first} holds {server.takeover_socket}.lock: it starts" in server.log_path.read_text()
    go_on(tmp_path / "stalled")
    wait_for("the first to serve", server.takeover_socket.exists)
    assert server.status()["pid"] == first


def test_a_server_whose_socket_was_removed_is_found_by_the_next_start(server: Server) -> None:
    first = server.start()
    server.takeover_socket.unlink()
    second = spawn(server)
    assert server.lab.wait_ended(first) == 0  # it bound the path again, and was taken over
    assert server.status()["pid"] == second
    assert server.status()["generation"] == 2


def test_a_server_starts_at_once_after_one_that_was_killed(server: Server) -> None:
    kill(server.start())
    second = server.start()
    assert (server.status()["pid"], server.status()["generation"]) == (second, 1)


def test_a_predecessor_that_was_stopped_does_not_serve_beside_a_new_server(server: Server, tmp_path: Path) -> None:
    """No stored state names the owner here: no service manager, or one without a store."""
    first = server.start()
    reloading = server.start_reload(
        env=fault("oxidize.runtime.succession:Succession._own", "stall", tmp_path / "stalled")
    )
    successor = stalled_pid(tmp_path / "stalled")
    kill(first, signal.SIGSTOP)
    go_on(tmp_path / "stalled")
    wait_for("the successor to listen", lambda: "took over" in server.log_path.read_text())
    kill(successor)
    server.finish_reload(reloading)
    third = server.start()
    kill(first, signal.SIGCONT)
    assert server.lab.wait_ended(first) == 1
    assert f"and pid {third} serves, for it holds {server.takeover_socket}.lock" in server.log_path.read_text()
    assert server.status()["pid"] == third
