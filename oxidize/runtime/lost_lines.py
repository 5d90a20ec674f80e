"""The count of log lines that were lost, because what reads the log did not, or had no room.

The rule: losing lines costs the process that serves nothing; the count is kept by the owner of the counters, and the
loop looks after it only from a loss until it has been reported in the log.
"""

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.log_output import Losses, losses
from oxidize.net.event_loop import Loop
from oxidize.protocol.counters import Counters, Total

REPORT_PAUSE_SECS = 1.0  # between two attempts to say in the log that lines were lost


class LostLines:
    """Counts lost lines between `begin` and `end`, and reports them once the log takes lines again."""

    def __init__(self, counters: Counters, loop: Loop, lost: Losses = losses) -> None:
        self._counters = counters
        self._loop = loop
        self._losses = lost
        self._report_at = 0.0

    def begin(self) -> None:
        """Start counting, with the lines that were lost before; only the owner of the counters may call this."""
        self._losses.noted = self._count
        self._count()

    def end(self) -> None:
        """Stop counting; idempotent."""
        self._losses.noted = None
        self._loop.remove_timed(self)

    def _count(self) -> None:
        if lost := self._losses.take():
            self._counters[Total.LOG_LINES_LOST] += lost
            self._report_at = boot_time() + REPORT_PAUSE_SECS
            self._loop.add_timed(self)

    # --- Called by the loop ---

    def next_deadline(self) -> float:
        """Return when the next report is due."""
        return self._report_at

    def handle_timeout(self, now: float) -> None:
        """Report the losses, or try again later."""
        if now < self._report_at:
            return
        self._report_at = now + REPORT_PAUSE_SECS
        if logs.report_losses():
            self._loop.remove_timed(self)
