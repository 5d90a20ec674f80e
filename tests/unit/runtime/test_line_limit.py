"""Lines beyond a limit are counted, and the count is told once."""

from oxidize.runtime.line_limit import LineLimit


def test_a_burst_passes_and_then_one_line_in_each_interval() -> None:
    limit = LineLimit(2, 10.0)
    assert [limit.passes(100.0) for _ in range(4)] == [True, True, False, False]
    assert not limit.passes(109.0)
    assert limit.passes(110.0)
    assert not limit.passes(110.0)


def test_what_was_left_out_is_counted_until_it_is_told() -> None:
    limit = LineLimit(1, 10.0)
    for _ in range(4):
        limit.passes(100.0)
    assert limit.take_left_out() == 3
    assert limit.take_left_out() == 0


def test_a_pause_gives_no_more_than_the_burst() -> None:
    limit = LineLimit(2, 10.0)
    assert [limit.passes(100_000.0) for _ in range(3)] == [True, True, False]
