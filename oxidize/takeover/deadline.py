"""The end of one wait for the other side of a takeover.

The rule: a wait measures the silence of the other side, not a pause of this process. A process whose loop works looks
at its deadline within milliseconds; one that looks far too late was itself stopped, or the whole machine was suspended
(CLOCK_BOOTTIME runs on). It then waits once more, for the whole time. Once: a process that always looks late ends its
waits all the same.
"""

LATE_SECS = 1.0  # a look this long after the deadline means that this process itself did not run


class Deadline:
    """A deadline that its owner starts and asks; `at` is None while there is none."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._secs = 0.0
        self._may_wait_again = False

    def start(self, secs: float | None, now: float) -> None:
        """Begin a wait of `secs` seconds in place of any other; None for no wait."""
        self.at, self._secs, self._may_wait_again = (None, 0.0, False) if secs is None else (now + secs, secs, True)

    def restart(self, now: float) -> None:
        """Begin the current wait again, if there is one: what the other side answers has been sent only now."""
        if self.at is not None:
            self.start(self._secs, now)

    def has_passed(self, now: float) -> bool:
        """Return whether the other side has had its time; the first look that is far too late starts the wait again."""
        if self.at is None or now < self.at:
            return False
        if now - self.at < LATE_SECS or not self._may_wait_again:
            return True
        self.at, self._may_wait_again = now + self._secs, False
        return False
