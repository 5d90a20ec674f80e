"""An operator's Ctrl-C, and a terminal that hangs up.

The rule: an interruption is a KeyboardInterrupt at a moment at which one can act on it, and never in the middle of a
takeover. A terminal that hangs up ends nothing: whoever lost the connection finds a deployment that has ended well.
Source: signal(7).
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """SIGINT and SIGTERM, from `listening` on."""

    def __init__(self) -> None:
        self._is_ignored = False
        self._is_noted = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals until the end of the block."""
        before = {number: signal.signal(number, self._interrupt) for number in SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ignore(self) -> None:
        """Let no interruption through from now on, but where `raise_noted` is called; idempotent."""
        self._is_ignored = True

    def raise_noted(self) -> None:
        """Raise KeyboardInterrupt where one came that was not let through; once."""
        if self._is_noted:
            self._is_noted = False
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_ignored:
            self._is_noted = True
        else:
            raise KeyboardInterrupt
