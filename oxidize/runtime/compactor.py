"""Compaction of the journal in small steps between batches, whenever enough of it is dead or old.

The rule: a key that is no longer in use leaves the memory within PURGE_SECS (paper, section 6.3), even where so little
happens that nothing else would cause a compaction.
"""

from collections.abc import Callable

from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.state.session_state import SessionState

PURGE_SECS = REJECT_AFTER_TIME  # between two compactions for the sake of dead keys
CHECK_SECS = 1.0  # between two checks whether there is anything to do
STEP_PAUSE_SECS = 0.002  # between two steps, so that batches have their turn


class JournalCompactor:
    """Compacts a state's journal from the loop. `now`: the loop's time."""

    def __init__(self, state: SessionState, now: Callable[[], float]) -> None:
        self._state = state
        self._due_at = now() + CHECK_SECS
        self._purge_at = now() + PURGE_SECS

    def next_deadline(self) -> float:
        """Return when the next check or step is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Do one step; during a takeover the state itself does nothing."""
        purge = now >= self._purge_at
        if purge:
            self._purge_at = now + PURGE_SECS
        self._due_at = now + (STEP_PAUSE_SECS if self._state.maintain(purge=purge) else CHECK_SECS)
