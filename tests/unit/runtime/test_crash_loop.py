"""Crash loops: the first starts are immediate, later ones back off, and a stable generation resets the count."""

from itertools import pairwise

from oxidize.protocol.counters import ENDED_ON_PURPOSE, Total
from oxidize.runtime.crash_loop import DELAY_MAX_SECS, STABLE_SECS, STARTS_WITHOUT_DELAY, Stability, count_start
from tests.support.counters import ArraySlots


def test_the_first_starts_in_a_row_are_immediate_and_later_ones_back_off_to_a_limit() -> None:
    counters = ArraySlots().counters
    delays = [count_start(counters) for _ in range(40)]
    assert delays[:STARTS_WITHOUT_DELAY] == [0.0] * STARTS_WITHOUT_DELAY
    assert delays[STARTS_WITHOUT_DELAY] > 0
    assert all(later >= earlier for earlier, later in pairwise(delays))
    assert delays[-1] == DELAY_MAX_SECS


def test_a_generation_that_lives_long_enough_resets_the_count() -> None:
    counters = ArraySlots().counters
    for _ in range(10):
        count_start(counters)
    stability = Stability(counters, lambda: 100.0, lambda: True)
    stability.handle_timeout(100.0 + STABLE_SECS - 1)
    assert counters[Total.STARTS_IN_A_ROW] == 10
    assert stability.next_deadline() == 100.0 + STABLE_SECS
    stability.handle_timeout(100.0 + STABLE_SECS)
    assert counters[Total.STARTS_IN_A_ROW] == 0
    assert stability.next_deadline() is None
    assert count_start(counters) == 0.0


def test_a_process_that_does_not_own_the_counters_leaves_the_count_alone() -> None:
    counters = ArraySlots().counters
    counters[Total.STARTS_IN_A_ROW] = 3
    owns = False
    stability = Stability(counters, lambda: 100.0, lambda: owns)
    stability.handle_timeout(100.0 + STABLE_SECS)
    assert counters[Total.STARTS_IN_A_ROW] == 3
    owns = True  # its successor died, and it serves again
    due_at = stability.next_deadline()
    assert due_at == 100.0 + 2 * STABLE_SECS
    stability.handle_timeout(due_at)
    assert counters[Total.STARTS_IN_A_ROW] == 0


def test_an_end_on_purpose_does_not_count_as_a_crash() -> None:
    counters = ArraySlots().counters
    for _ in range(20):
        counters[ENDED_ON_PURPOSE] = 1
        assert count_start(counters) == 0.0
        assert counters[ENDED_ON_PURPOSE] == 0
