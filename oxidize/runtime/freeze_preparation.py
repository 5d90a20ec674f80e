"""What a predecessor does before it freezes, so that the blackout is independent of what waits in it.

The rule: packets that wait for a session and moves of endpoints are recorded in slices between batches, from OFFER on
and again from READY on; the freeze follows when what is left is small (`protocol.unrecorded`) and the successor, which
reads along, has had the time to read it. It is postponed by POSTPONE_SECS_MAX at most: packets that come faster than
they can be recorded are dropped then, the way packets are dropped that wait beyond a limit.
"""

from collections.abc import Callable
from enum import Enum, auto

from oxidize import logs
from oxidize.errors import StateError
from oxidize.protocol.constants import STAGED_BYTES_MAX
from oxidize.protocol.unrecorded import Unrecorded

SLICE_PAUSE_SECS = 0.001  # between two slices, for batches
LOOK_SECS = 0.02  # between two looks while there is nothing to record
SETTLE_SECS = 0.02  # from a slice to the freeze: some of the successor's `takeover.successor.READ_ALONG_SECS`
POSTPONE_SECS_MAX = 3.0  # from READY to the freeze; less than a successor waits for COMMIT (`Timeouts.commit`)
RECORDED_BYTES_MAX = STAGED_BYTES_MAX  # of packets, from OFFER to READY and from there on: the journal only grows

log = logs.get(__name__)


class _Work(Enum):
    NONE = auto()
    RECORD = auto()
    RETIRE = auto()


class FreezePreparation:
    """Records what the device has not recorded, from `begin` to `stop`, or takes it out of the records after `cancel`.

    It is driven by the loop. `now`: the loop's time.
    """

    def __init__(self, unrecorded: Unrecorded, now: Callable[[], float]) -> None:
        self._unrecorded = unrecorded
        self._now = now
        self._work = _Work.NONE
        self._due_at = 0.0
        self._settled_at = 0.0
        self._bytes_left = 0
        self._ends_at: float | None = None  # when the freeze is due whatever is left, from READY on

    def begin(self) -> None:
        """Begin to record: there is an offer."""
        self._work, self._ends_at, self._bytes_left = _Work.RECORD, None, RECORDED_BYTES_MAX
        self._due_at = self._now()

    def may_freeze(self, *, reads_more: bool) -> bool:
        """Return whether a freeze is short now; to be asked again and again from READY on.

        reads_more: whether the successor reads a PeerStagedMore.
        """
        now = self._now()
        if self._ends_at is None:
            self._ends_at, self._bytes_left = now + POSTPONE_SECS_MAX, RECORDED_BYTES_MAX
            self._unrecorded.record_whole(not reads_more)
        if self._work is _Work.RECORD and now < self._ends_at and self._bytes_left > 0:
            if self._unrecorded.is_small:
                return now >= self._settled_at
            return False
        return True

    def stop(self) -> None:
        """Record nothing in slices from now on: the process freezes, which may record a little at most."""
        self._work = _Work.NONE
        self._unrecorded.shrink()

    def cancel(self) -> None:
        """Take the packets out of the records again: there is no successor."""
        self._unrecorded.record_whole(False)
        self._work, self._due_at = _Work.RETIRE, self._now()

    def next_deadline(self) -> float | None:
        """Return when the next slice is due, or None."""
        return None if self._work is _Work.NONE else self._due_at

    def handle_timeout(self, now: float) -> None:
        """Do one slice, and never fail: a takeover can, and service must not."""
        pause = LOOK_SECS
        try:
            if self._do_slice(now):
                pause = SLICE_PAUSE_SECS
        except StateError as error:
            log.error("packets that wait for a session are not recorded", reason=str(error))
            self._work = _Work.NONE
        self._due_at = self._now() + pause

    def _do_slice(self, now: float) -> bool:
        """Do one slice; return whether there was anything to do."""
        if self._work is _Work.RETIRE:
            if not self._unrecorded.retire_slice():
                self._work = _Work.NONE
            return True
        if self._work is _Work.RECORD and self._bytes_left > 0 and not self._unrecorded.is_small:
            self._bytes_left -= self._unrecorded.record_slice(now)
            self._settled_at = self._now() + SETTLE_SECS
            return True
        return False
