"""The operator's Ctrl-C, and a terminal that hangs up.

The rule: an interruption is a KeyboardInterrupt at a moment at which it can be handled, never in the middle of a
takeover. A terminal that hangs up interrupts nothing: the deployment continues to its end. Source: signal(7).
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handles SIGINT and SIGTERM inside of `listening`."""

    def __init__(self) -> None:
        self._is_ignored = False
        self._is_pending = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals until the end of the block."""
        before = {number: signal.signal(number, self._interrupt) for number in SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ignore(self) -> None:
        """Record interruptions from now on, and raise them only in `raise_pending`; idempotent."""
        self._is_ignored = True

    def raise_pending(self) -> None:
        """Raise KeyboardInterrupt once if an interruption was recorded."""
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_ignored:
            self._is_pending = True
        else:
            raise KeyboardInterrupt
