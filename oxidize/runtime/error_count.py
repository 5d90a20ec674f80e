"""A counter of the lines that were logged as errors, which a deployment checks after a replacement.

The rule: it counts while this process owns, for counters have one writer at a time, and no failure here reaches the
caller that logs. The counter continues across generations; its value before this one is kept, so that a generation is
not blamed for the errors of its predecessor.
"""

import contextlib
import logging

from oxidize.protocol.counters import Counters, Total


class ErrorCount(logging.Handler):
    """Counts records of ERROR and worse, of every module, between `begin` and `end`.

    before: the counter at the first `begin`, None until then.
    """

    def __init__(self, counters: Counters) -> None:
        super().__init__(logging.ERROR)
        self._counters = counters
        self._enabled = False
        self.before: int | None = None

    def begin(self) -> None:
        """Start counting; only the owner of the counters may call this. Idempotent."""
        if self.before is None:  # after a thaw the errors from before the freeze still belong to this generation
            self.before = self._counters[Total.ERRORS_LOGGED]
        self._enabled = True
        logging.getLogger().addHandler(self)

    def end(self) -> None:
        """Stop counting; idempotent. No record is counted after this, not even one that another thread is logging."""
        logging.getLogger().removeHandler(self)
        self.acquire()
        try:
            self._enabled = False
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record; called with the handler's lock held."""
        if self._enabled:
            with contextlib.suppress(Exception):  # logging matters more than the count
                self._counters[Total.ERRORS_LOGGED] += 1
