"""Predecessor, successor and coordinator that are killed, or stopped and continued, at every step of a takeover.

Each is caught at its step by a planted fault (`faults/sitecustomize.py`) and then gets the signal. The clients judge:
the sessions are kept, and at most the batch in hand of a killed process is lost.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.bench import Bench, open_bench
from tests.support.traffic.clients import EchoClient
from tests.support.traffic.server import fault, go_on, kill, stalled_pid, wait_for
from tests.support.traffic.steps import COORDINATOR, PREDECESSOR, SUCCESSOR, at_each

pytestmark = pytest.mark.handoff

PACKETS_PER_SECOND = 100.0


def pause(bench: Bench, pid: int, mark: Path) -> None:
    """Stop a process that stalls at a step, let the clients send on, and let it continue."""
    kill(pid, signal.SIGSTOP)
    bench.traffic.wait_for_requests(20)
    go_on(mark)
    kill(pid, signal.SIGCONT)


# --- The successor ---


def test_successors_that_are_stopped_for_a_while_at_every_step_take_over_one_from_another(tmp_path: Path) -> None:
    with open_bench(tmp_path, PACKETS_PER_SECOND) as bench:
        for step, (where, when) in SUCCESSOR.items():
            mark = bench.mark.with_name(step)
            reloading = bench.server.start_reload(env=fault(where, "stall", mark, when))
            successor = stalled_pid(mark)
            pause(bench, successor, mark)
            assert bench.server.finish_reload(reloading).status == 0, step
            assert bench.lab.wait_ended(bench.pid) == 0, step
            bench.assert_still_served_by(successor)
            bench.pid = successor
        bench.assert_served_by(bench.pid)


# --- The predecessor ---


@at_each(PREDECESSOR)
def test_a_predecessor_that_is_stopped_for_a_while_is_replaced(tmp_path: Path, where: str, when: str) -> None:
    with open_bench(tmp_path, PACKETS_PER_SECOND, fault(where, "stall", tmp_path / "stalled", when)) as bench:
        reloading = bench.server.start_reload()
        assert stalled_pid(bench.mark) == bench.pid
        pause(bench, bench.pid, bench.mark)
        assert bench.server.finish_reload(reloading).status == 0
        assert bench.lab.wait_ended(bench.pid) == 0
        bench.assert_served_by(bench.server.status()["pid"])


@at_each(PREDECESSOR, but="before OFFER")
def test_a_predecessor_that_is_killed_leaves_the_successor_serving(tmp_path: Path, where: str, when: str) -> None:
    with open_bench(tmp_path, PACKETS_PER_SECOND, fault(where, "stall", tmp_path / "stalled", when)) as bench:
        reloading = bench.server.start_reload()
        assert stalled_pid(bench.mark) == bench.pid
        kill(bench.pid)
        assert bench.lab.wait_ended(bench.pid) == -signal.SIGKILL
        assert bench.server.finish_reload(reloading).status == 0
        # The batch that the killed process held in its hand is all that may be missing.
        bench.assert_served_by(bench.server.status()["pid"], lost_at_most=BATCH_PACKETS_MAX)


# --- The coordinator ---


def test_coordinators_that_are_stopped_for_a_while_at_every_step_complete_the_reload(tmp_path: Path) -> None:
    with open_bench(tmp_path, PACKETS_PER_SECOND) as bench:
        for step, (where, when) in COORDINATOR.items():
            mark = bench.mark.with_name(step)
            reloading = bench.server.start_reload(env=fault(where, "stall", mark, when, command="reload"))
            assert stalled_pid(mark) == reloading, step
            pause(bench, reloading, mark)
            assert bench.server.finish_reload(reloading).status == 0, step
            assert bench.lab.wait_ended(bench.pid) == 0, step
            bench.pid = bench.server.status()["pid"]
            bench.assert_still_served_by(bench.pid)
        bench.assert_served_by(bench.pid)


@at_each(COORDINATOR, but="after GO")
def test_a_coordinator_that_is_killed_before_go_changes_nothing(tmp_path: Path, where: str, when: str) -> None:
    with open_bench(tmp_path, PACKETS_PER_SECOND) as bench:
        reloading = bench.server.start_reload(env=fault(where, "stall", bench.mark, when, command="reload"))
        kill(stalled_pid(bench.mark))
        assert bench.lab.wait_ended(reloading) == -signal.SIGKILL
        bench.assert_served_by(bench.pid)


def test_a_coordinator_that_is_killed_after_go_leaves_the_successor_serving(tmp_path: Path) -> None:
    with open_bench(tmp_path, PACKETS_PER_SECOND) as bench:
        env = fault("oxidize.control.reload:send", "stall", bench.mark, "after", command="reload")
        reloading = bench.server.start_reload(env=env)
        kill(stalled_pid(bench.mark))
        assert bench.lab.wait_ended(reloading) == -signal.SIGKILL
        assert bench.lab.wait_ended(bench.pid) == 0
        bench.assert_served_by(bench.server.status()["pid"])


# --- A successor that serves while its predecessor still waits for TAKEN ---


@pytest.fixture
def late_client() -> Iterator[EchoClient]:
    """Yield a peer that connects only when the test says so."""
    client = EchoClient(4)
    yield client
    client.socket.close()


@pytest.fixture
def stopped(tmp_path: Path, late_client: EchoClient) -> Iterator[Bench]:
    """Yield a server whose process will be stopped after it has sent COMMIT."""
    where = "oxidize.takeover.predecessor:Predecessor._send_commit"
    env = fault(where, "stall", tmp_path / "stalled", "after")
    with open_bench(tmp_path, PACKETS_PER_SECOND, env, [late_client]) as bench:
        yield bench


def serving_successor(bench: Bench) -> int:
    """Reload, and return the successor's pid once it serves while its predecessor is stopped."""
    reloading = bench.server.start_reload()
    assert stalled_pid(bench.mark) == bench.pid
    kill(bench.pid, signal.SIGSTOP)
    bench.traffic.wait_for_more()
    assert bench.server.finish_reload(reloading).status == 0
    return int(bench.server.status()["pid"])


def continue_predecessor(bench: Bench) -> None:
    go_on(bench.mark)
    kill(bench.pid, signal.SIGCONT)


def make_session(bench: Bench, client: EchoClient) -> None:
    """Let a client shake hands with the process that serves."""
    client.connect(bench.server)
    exchange(client)
    bench.more_sessions += 1


def exchange(client: EchoClient) -> None:
    """Send a request and wait for its reply."""
    client.send_next()

    def has_reply() -> bool:
        client.receive()
        client.run_timers()
        return not client.waiting

    wait_for("a reply to the late client", has_reply)


def assert_predecessor_serves_again(stopped: Bench, successor: int, client: EchoClient) -> None:
    """Kill a successor; check that its predecessor serves again, with the session of a client."""
    kill(successor)
    assert stopped.lab.wait_ended(successor) == -signal.SIGKILL
    continue_predecessor(stopped)
    stopped.assert_served_by(stopped.pid, lost_at_most=BATCH_PACKETS_MAX)
    exchange(client)
    assert client.handshakes == 1


def test_a_session_made_by_a_killed_successor_is_kept_by_its_predecessor(
    stopped: Bench, late_client: EchoClient
) -> None:
    """TAKEN was sent, and crosses the SIGKILL: the predecessor finds both, and serves again."""
    successor = serving_successor(stopped)
    make_session(stopped, late_client)
    assert_predecessor_serves_again(stopped, successor, late_client)


def test_a_peer_removed_by_a_killed_successor_keeps_its_session_with_the_predecessor(
    stopped: Bench, late_client: EchoClient
) -> None:
    make_session(stopped, late_client)
    peers = stopped.server.peers
    stopped.server.peers = peers[:-1]
    stopped.server.write_config()
    successor = serving_successor(stopped)
    assert len(stopped.server.status()["peers"]) == len(peers) - 1
    assert_predecessor_serves_again(stopped, successor, late_client)


def test_a_predecessor_stopped_after_commit_ends_when_it_continues(stopped: Bench, late_client: EchoClient) -> None:
    successor = serving_successor(stopped)
    make_session(stopped, late_client)
    continue_predecessor(stopped)
    assert stopped.lab.wait_ended(stopped.pid) == 0
    stopped.assert_served_by(successor)


def test_a_predecessor_killed_after_commit_leaves_what_its_successor_did(
    stopped: Bench, late_client: EchoClient
) -> None:
    successor = serving_successor(stopped)
    make_session(stopped, late_client)
    kill(stopped.pid)
    assert stopped.lab.wait_ended(stopped.pid) == -signal.SIGKILL
    assert stopped.server.replace()["pid"] != successor
    stopped.assert_served_by(stopped.server.status()["pid"])
