"""A wait for the other side measures the silence of that side, not a pause of this process."""

from oxidize.takeover.deadline import LATE_SECS, Deadline
from oxidize.takeover.machine import (
    DEFAULT_TIMEOUTS,
    Event,
    PredecessorMachine,
    PredecessorState,
    SuccessorMachine,
    SuccessorState,
)


def test_a_deadline_passes_at_its_time() -> None:
    deadline = Deadline()
    assert not deadline.has_passed(1e9)
    deadline.start(5.0, 100.0)
    assert deadline.at == 105.0
    assert not deadline.has_passed(104.999)
    assert deadline.has_passed(105.0)
    assert deadline.has_passed(105.0 + LATE_SECS * 0.99)


def test_a_start_without_a_time_ends_the_wait() -> None:
    deadline = Deadline()
    deadline.start(5.0, 100.0)
    deadline.start(None, 106.0)
    assert deadline.at is None
    assert not deadline.has_passed(1e9)


def test_a_look_that_is_far_too_late_starts_the_wait_once_more() -> None:
    deadline = Deadline()
    deadline.start(5.0, 100.0)
    assert not deadline.has_passed(3_700.0)
    assert deadline.at == 3_705.0
    assert deadline.has_passed(9_000.0)


def test_a_restart_needs_a_wait_and_lasts_as_long() -> None:
    deadline = Deadline()
    deadline.restart(50.0)
    assert deadline.at is None
    deadline.start(5.0, 100.0)
    deadline.restart(104.0)
    assert deadline.at == 109.0


def test_commit_and_taken_count_before_a_deadline_that_has_just_passed() -> None:
    late = LATE_SECS / 2
    successor = SuccessorMachine()
    successor.connected(0.0)
    successor.observe([(Event.OFFER, "")], closed=False, gone=False, now=0.0)
    successor.restored(0.0)
    successor.observe([(Event.COMMIT, "")], closed=False, gone=False, now=DEFAULT_TIMEOUTS.commit + late)
    assert successor.state is SuccessorState.OWNING
    predecessor = PredecessorMachine()
    predecessor.hello(0.0)
    predecessor.observe([(Event.READY, "")], closed=False, gone=False, now=0.0)
    predecessor.frozen(0.0)
    predecessor.observe([(Event.TAKEN, "")], closed=False, gone=False, now=DEFAULT_TIMEOUTS.taken + late)
    assert predecessor.state is PredecessorState.DONE
