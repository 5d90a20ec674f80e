"""A wait for the other side measures the silence of that side, not a pause of this process."""

from oxidize.takeover.deadline import LATE_SECS, Deadline


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
