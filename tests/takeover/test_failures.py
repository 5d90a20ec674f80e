"""Takeovers that fail at every step: the surviving process serves, and the clients notice only a pause.

Each test plants a fault in a real successor by its environment (`faults/sitecustomize.py`).
"""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.bench import Bench, open_bench
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import Lab, Outcome, Server, fault, go_on, kill, stalled_pid
from tests.support.traffic.steps import SUCCESSOR_BEFORE_TAKEN, at_each

pytestmark = pytest.mark.handoff

PACKETS_PER_SECOND = 200.0
SLOW_PACKETS_PER_SECOND = 20.0  # while no process reads for seconds: as many as an ordinary user's receive buffer holds


@pytest.fixture
def rate() -> float:
    return PACKETS_PER_SECOND


@pytest.fixture
def bench(tmp_path: Path, rate: float) -> Iterator[Bench]:
    with open_bench(tmp_path, rate) as bench:
        yield bench


# --- Successors that never get far ---


def test_a_configuration_with_mistakes_changes_nothing(bench: Bench) -> None:
    bench.server.write_config(mtu=9, drain_timeout_secs=-1.0)
    outcome = bench.server.reload()
    assert (outcome.status, outcome.output) == (2, "")
    for mistake in ("server.mtu = 9: expected", "server.drain_timeout_secs = -1.0: expected"):
        assert mistake in outcome.errors
    bench.assert_served_by(bench.pid)


def test_a_configuration_that_breaks_after_the_check_is_the_successors_reason(bench: Bench) -> None:
    bench.server.write_config(network="tun", interface="lo")
    outcome = bench.server.reload()
    assert outcome.status == 1
    assert "lo" in outcome.errors
    bench.assert_served_by(bench.pid)
    assert bench.last_takeover()["result"] == "failure"


BROKEN = [  # where, what it does there, and the reason
    ("oxidize.runtime.daemon:", "absent", "ended without a reason"),
    ("oxidize.runtime.succession:Succession.run", "exit", "ended without a reason"),
    ("oxidize.runtime.daemon:start", "raise", "RuntimeError: broken on purpose"),
    ("oxidize.protocol.restore:restore_change", "raise", "RuntimeError: broken on purpose"),
    ("oxidize.protocol.device:Device.prepare", "exit", "ended without a reason"),
    ("oxidize.state.session_state:SessionState.become_writer", "raise", "RuntimeError: broken on purpose"),
    ("oxidize.protocol.device:Device.own", "raise", "RuntimeError: broken on purpose"),
]


def test_releases_that_cannot_start_are_refused_with_their_reasons_one_after_the_other(bench: Bench) -> None:
    for number, (where, do, reason) in enumerate(BROKEN):
        outcome = bench.server.reload(fault(where, do, bench.mark.with_name(f"broken-{number}")))
        assert outcome.status == 1, where
        assert reason in outcome.errors, where
        assert outcome.output == "", where
        bench.assert_still_served_by(bench.pid)
    bench.assert_served_by(bench.pid)


def test_the_next_reload_succeeds_after_one_that_failed(bench: Bench) -> None:
    assert bench.server.reload(fault("oxidize.runtime.daemon:start", "raise", bench.mark)).status == 1
    bench.traffic.wait_for_more()
    after = bench.server.replace()
    bench.assert_served_by(after["pid"])


# --- Successors that die or hang ---


def test_successors_that_are_killed_at_every_step_leave_the_predecessor_serving(bench: Bench) -> None:
    for step, (where, when) in SUCCESSOR_BEFORE_TAKEN.items():
        mark = bench.mark.with_name(step)
        reloading = bench.server.start_reload(env=fault(where, "stall", mark, when))
        kill(stalled_pid(mark))
        outcome = bench.server.finish_reload(reloading)
        assert outcome.status == 1, step
        assert "oxidize: " in outcome.errors, step
        bench.assert_still_served_by(bench.pid)
    bench.assert_served_by(bench.pid)


@pytest.mark.parametrize("rate", [SLOW_PACKETS_PER_SECOND])
def test_a_successor_that_hangs_after_commit_is_killed_and_the_predecessor_serves(bench: Bench) -> None:
    env = fault("oxidize.takeover.successor:Successor.ready", "stall", bench.mark, "after")
    reloading = bench.server.start_reload(env=env)
    successor = stalled_pid(bench.mark)
    kill(successor, signal.SIGSTOP)
    outcome = bench.server.finish_reload(reloading)
    assert outcome.status == 1
    assert bench.lab.wait_ended(successor) == -signal.SIGKILL
    bench.assert_served_by(bench.pid)
    assert "did not say TAKEN" in str(bench.last_takeover()["reason"])


# --- Predecessors that die ---


@at_each(SUCCESSOR_BEFORE_TAKEN, but="before HELLO")
def test_a_successor_inherits_from_a_predecessor_that_is_killed(bench: Bench, where: str, when: str) -> None:
    reloading = bench.server.start_reload(env=fault(where, "stall", bench.mark, when))
    successor = stalled_pid(bench.mark)
    kill(bench.pid)
    assert bench.lab.wait_ended(bench.pid) == -signal.SIGKILL
    go_on(bench.mark)
    outcome = bench.server.finish_reload(reloading)
    assert outcome.status == 0, outcome
    # The batch that the killed process held in its hand is all that may be missing.
    bench.assert_served_by(successor, lost_at_most=BATCH_PACKETS_MAX)


# --- More than one at a time ---


def test_of_two_reloads_at_once_the_second_is_refused(bench: Bench) -> None:
    env = fault("oxidize.takeover.successor:Successor.ready", "stall", bench.mark)
    first = bench.server.start_reload("first", env)
    successor = stalled_pid(bench.mark)
    second = bench.server.reload()
    assert second.status == 1
    assert "another successor is being served" in second.errors
    go_on(bench.mark)
    assert bench.server.finish_reload(first, "first").status == 0
    assert bench.lab.wait_ended(bench.pid) == 0
    bench.assert_served_by(successor)


@pytest.mark.parametrize(
    ("when", "expected"), [pytest.param("before", 1, id="before READY"), pytest.param("after", 1, id="after COMMIT")]
)
def test_status_answers_during_a_takeover(bench: Bench, when: str, expected: int) -> None:
    env = fault("oxidize.takeover.successor:Successor.ready", "stall", bench.mark, when)
    reloading = bench.server.start_reload(env=env)
    successor = stalled_pid(bench.mark)
    status = bench.server.status()
    assert (status["pid"], status["generation"]) == (bench.pid, expected)
    go_on(bench.mark)
    assert bench.server.finish_reload(reloading).status == 0
    assert bench.lab.wait_ended(bench.pid) == 0
    bench.assert_served_by(successor)


def test_no_process_reads_between_the_freeze_and_the_successors_first_iteration(bench: Bench) -> None:
    env = fault("oxidize.takeover.successor:Successor.ready", "stall", bench.mark, "after")
    reloading = bench.server.start_reload(env=env)
    successor = stalled_pid(bench.mark)
    answered = bench.traffic.replies()
    bench.traffic.wait_for_requests()
    assert bench.traffic.replies() - answered <= BATCH_PACKETS_MAX  # what was on its way to the clients
    answered = bench.traffic.replies()
    bench.traffic.wait_for_requests()
    assert bench.traffic.replies() == answered
    go_on(bench.mark)
    assert bench.server.finish_reload(reloading).status == 0
    assert bench.lab.wait_ended(bench.pid) == 0
    bench.assert_served_by(successor)


def test_a_second_server_started_by_hand_takes_over(bench: Bench) -> None:
    second = bench.server.start()
    assert bench.lab.wait_ended(bench.pid) == 0
    status = bench.server.status()
    assert (status["pid"], status["generation"]) == (second, 2)
    bench.assert_served_by(second)


def test_a_stale_takeover_socket_is_no_predecessor(tmp_path: Path) -> None:
    client = EchoClient(2)
    with Lab(tmp_path) as lab:
        server = Server(lab, [client.table()])
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(os.fspath(server.takeover_socket))
            dead.listen()
        pid = server.start()
        with Traffic(server, [client], PACKETS_PER_SECOND) as traffic:
            traffic.wait_for_more()
            traffic.assert_unharmed()
        kill(pid)
        assert lab.wait_ended(pid) == -signal.SIGKILL
        assert server.takeover_socket.exists()
        assert server.reload() == Outcome(
            1,
            "",
            f"oxidize: nothing runs: no process listens at {server.takeover_socket}; "
            "start it with `oxidize server` or `oxidize client`, or check takeover_socket in the configuration\n",
        )
        assert server.start() != pid
