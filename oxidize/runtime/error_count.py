"""How many lines were logged as errors, in the counters: what a deployment looks at after a replacement.

The rule: it counts while this process owns, for counters have one writer at a time, and nothing that goes wrong here
reaches whoever logs. The word runs on across generations; what it was before this one is remembered, so that nobody is
blamed for the errors of its predecessor.
"""

import contextlib
import logging

from oxidize.protocol.counters import Counters, Total


class ErrorCount(logging.Handler):
    """Counts records of ERROR and worse, from whatever module, between `begin` and `end`.

    before: the word as it was at the first `begin`, None until then.
    """

    def __init__(self, counters: Counters) -> None:
        super().__init__(logging.ERROR)
        self._counters = counters
        self._is_on = False
        self.before: int | None = None

    def begin(self) -> None:
        """Count from now on; only the owner of the counters may call this. Idempotent."""
        if self.before is None:  # after a thaw the errors from before the freeze are still our own
            self.before = self._counters[Total.ERRORS_LOGGED]
        self._is_on = True
        logging.getLogger().addHandler(self)

    def end(self) -> None:
        """Count no more; idempotent. Behind this nothing is written, also for what another thread is just logging."""
        logging.getLogger().removeHandler(self)
        self.acquire()
        try:
            self._is_on = False
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record; called with the handler's lock held."""
        if self._is_on:
            with contextlib.suppress(Exception):  # to log matters more than to count
                self._counters[Total.ERRORS_LOGGED] += 1
