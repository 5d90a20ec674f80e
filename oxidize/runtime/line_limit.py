"""A limit for lines of the log that others cause.

The rule: what is left out is counted, and said with the next line.
"""


class LineLimit:
    """Lets `burst` lines pass at once, and later one in each `secs`."""

    def __init__(self, burst: int, secs: float) -> None:
        self._burst = burst
        self._secs = secs
        self._room = float(burst)
        self._filled_at = 0.0
        self._left_out = 0

    def passes(self, now: float) -> bool:
        """Return whether a line may be logged now; one that may not is counted."""
        self._room = min(float(self._burst), self._room + max(0.0, now - self._filled_at) / self._secs)
        self._filled_at = now
        if self._room < 1.0:
            self._left_out += 1
            return False
        self._room -= 1.0
        return True

    def take_left_out(self) -> int:
        """Return how many lines were left out since the last call."""
        left_out, self._left_out = self._left_out, 0
        return left_out
