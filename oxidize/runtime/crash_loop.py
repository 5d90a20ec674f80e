"""Crash loops: a process that keeps crashing delays READY, with exponential backoff.

The rule: a start limit of the service manager would close the sockets and drop the stored state, so the unit has none
and the starts are counted here. The count is in the arena, which survives crashes; a generation that has lived for
STABLE_SECS resets it, and one that was told to end does not count.
"""

from collections.abc import Callable

from oxidize.protocol.counters import ENDED_ON_PURPOSE, Counters, Total

STABLE_SECS = 10.0  # a generation that lived this long did not crash at the start
STARTS_WITHOUT_DELAY = 5  # in a row: a few crashes are no loop
DELAY_FIRST_SECS = 0.1
DELAY_MAX_SECS = 10.0  # well below the unit's TimeoutStartSec=


def count_start(counters: Counters) -> float:
    """Count a start with a predecessor's state; return the seconds to wait before READY."""
    if counters[ENDED_ON_PURPOSE]:
        counters[ENDED_ON_PURPOSE] = 0
        counters[Total.STARTS_IN_A_ROW] = 0
    counters[Total.STARTS_IN_A_ROW] += 1
    excess = counters[Total.STARTS_IN_A_ROW] - STARTS_WITHOUT_DELAY
    return min(DELAY_MAX_SECS, DELAY_FIRST_SECS * 2.0 ** min(excess - 1, 32)) if excess > 0 else 0.0


class Stability:
    """Resets the count once a generation has served for STABLE_SECS. `now`: the loop's time."""

    def __init__(self, counters: Counters, now: Callable[[], float]) -> None:
        self._counters = counters
        self._due_at: float | None = now() + STABLE_SECS

    def next_deadline(self) -> float | None:
        """Return when this generation counts as stable, or None once it does."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Count this generation as stable."""
        if self._due_at is not None and now >= self._due_at:
            self._counters[Total.STARTS_IN_A_ROW] = 0
            self._due_at = None
