"""Compaction of the journal in small steps between batches, whenever enough of it is dead or old.

The rules: a key that is no longer in use leaves the memory within PURGE_SECS (paper, section 6.3), even where so little
happens that nothing else would cause a compaction. The journal says when it was purged last, so that neither a takeover
nor a restart postpones the next purge. A memory file that cannot be written ends nothing: it is tried again later.
"""

from collections.abc import Callable

from oxidize import logs
from oxidize.errors import StateError, StorageError
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.protocol.counters import Total
from oxidize.state.session_state import SessionState

PURGE_SECS = REJECT_AFTER_TIME  # between two compactions for the sake of dead keys
CHECK_SECS = 1.0  # between two checks whether there is anything to do
STEP_PAUSE_SECS = 0.002  # between two steps, so that batches have their turn
FAILURE_PAUSE_SECS = 10.0  # after a step for which the kernel had no memory
QUIET_SECS = 60.0  # after which a failure that occurs again is logged again

log = logs.get(__name__)


class JournalCompactor:
    """Compacts a state's journal from the loop, and logs what it could not take. `now`: the loop's time."""

    def __init__(self, state: SessionState, now: Callable[[], float]) -> None:
        self._state = state
        self._due_at = now() + CHECK_SECS
        self._refusal = state.refusal
        self._quiet_until: dict[str, float] = {}

    def next_deadline(self) -> float:
        """Return when the next check or step is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Do one step; the state itself does nothing while another process writes it."""
        state = self._state
        purged_secs = now - state.journal.purged_at
        try:
            has_more = state.maintain(purge=not 0 <= purged_secs < PURGE_SECS, now=now)
        except StorageError as error:
            self._log("the journal is not compacted", error, now)
            self._due_at = now + FAILURE_PAUSE_SECS
        else:
            self._due_at = now + (STEP_PAUSE_SECS if has_more else CHECK_SECS)
        if state.refusal is not self._refusal:
            self._refusal = state.refusal
            self._log("changes are not recorded", state.refusal, now)

    def _log(self, what: str, error: StateError | None, now: float) -> None:
        """Log a failure, once until it has not occurred for QUIET_SECS."""
        is_new = now >= self._quiet_until.get(what, 0.0)
        self._quiet_until[what] = now + QUIET_SECS
        if is_new:
            changes = self._state.arena.counters[Total.CHANGES_NOT_RECORDED]
            log.error(what, reason=str(error), changes_not_recorded=changes)
