"""Upkeep between batches: the journal is compacted in small steps, whenever enough of it is dead."""

from collections.abc import Callable

from oxidize.state.session_state import SessionState

CHECK_SECS = 1.0  # between two looks whether there is anything to do
STEP_PAUSE_SECS = 0.002  # between two steps, so that batches have their turn


class Upkeep:
    """Compacts a state's journal from the loop. `now`: the loop's time."""

    def __init__(self, state: SessionState, now: Callable[[], float]) -> None:
        self._state = state
        self._now = now
        self._due_at = now() + CHECK_SECS

    def next_deadline(self) -> float:
        """Return when the next look or step is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Do one step; the state itself refrains during a takeover."""
        self._due_at = now + (STEP_PAUSE_SECS if self._state.maintain() else CHECK_SECS)
