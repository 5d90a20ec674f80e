"""Crash loops: a process that keeps crashing delays READY, with exponential backoff.

The rule: a start limit of the service manager would close the sockets and drop the stored state, so the unit has none
and the starts are counted here. The count is in the arena, which survives crashes; a generation that has lived for
STABLE_SECS resets it, and one that was told to end does not count. Only the owner of the state counts: a process that
waits for its successor's end writes no counter.
"""

from collections.abc import Callable

from oxidize.protocol.counters import ENDED_ON_PURPOSE, Counters, Total

STABLE_SECS = 10.0  # a generation that lived this long did not crash at the start
STARTS_WITHOUT_DELAY = 5  # in a row: a few crashes are no loop
DELAY_FIRST_SECS = 0.1
DELAY_MAX_SECS = 10.0  # well below the unit's TimeoutStartSec=


def count_start(counters: Counters) -> float:
    """Count a start with a predecessor's state, as its owner; return the seconds to wait before READY."""
    if counters[ENDED_ON_PURPOSE]:
        counters[ENDED_ON_PURPOSE] = 0
        counters[Total.STARTS_IN_A_ROW] = 0
    counters[Total.STARTS_IN_A_ROW] += 1
    excess = counters[Total.STARTS_IN_A_ROW] - STARTS_WITHOUT_DELAY
    return min(DELAY_MAX_SECS, DELAY_FIRST_SECS * 2.0 ** min(excess - 1, 32)) if excess > 0 else 0.0


class Stability:
    """Resets the count once a generation has served for STABLE_SECS.

    now: the loop's time. is_owner: whether this process owns the counters at this moment.
    """

    def __init__(self, counters: Counters, now: Callable[[], float], is_owner: Callable[[], bool]) -> None:
        self._counters = counters
        self._is_owner = is_owner
        self._due_at: float | None = now() + STABLE_SECS

    def next_deadline(self) -> float | None:
        """Return when this generation counts as stable, or None once it does."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Count this generation as stable."""
        if self._due_at is None or now < self._due_at:
            return
        if not self._is_owner():
            self._due_at = now + STABLE_SECS
            return
        self._counters[Total.STARTS_IN_A_ROW] = 0
        self._due_at = None
