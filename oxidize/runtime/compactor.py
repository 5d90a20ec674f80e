"""Upkeep between batches: the journal is compacted in small steps, whenever enough of it is dead or old.

The rule: a key that is no longer in use leaves the memory within PURGE_SECS (paper, section 6.3), also where so little
happens that there would be no other reason to compact.
"""

from collections.abc import Callable

from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.state.session_state import SessionState

PURGE_SECS = REJECT_AFTER_TIME  # between two compactions for the sake of dead keys
CHECK_SECS = 1.0  # between two looks whether there is anything to do
STEP_PAUSE_SECS = 0.002  # between two steps, so that batches have their turn


class Upkeep:
    """Compacts a state's journal from the loop. `now`: the loop's time."""

    def __init__(self, state: SessionState, now: Callable[[], float]) -> None:
        self._state = state
        self._now = now
        self._due_at = now() + CHECK_SECS
        self._purge_at = now() + PURGE_SECS

    def next_deadline(self) -> float:
        """Return when the next look or step is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Do one step; the state itself refrains during a takeover."""
        purge = now >= self._purge_at
        if purge:
            self._purge_at = now + PURGE_SECS
        self._due_at = now + (STEP_PAUSE_SECS if self._state.maintain(purge=purge) else CHECK_SECS)
