"""Tells when we are under load, which is when cookies are asked for (paper, section 5.3).

The rule: a handshake costs a hundred times more than any other datagram, so their rate alone decides. More of them in
one second than the threshold means load, until a whole second has passed with fewer.
"""

UNDER_LOAD_HANDSHAKES_PER_SECOND = 250  # of some 1,000 that one core can answer


class LoadMeter:
    """Counts handshake messages in windows of one second."""

    __slots__ = ("_count", "_loaded_until", "_threshold", "_window_end")

    def __init__(self, threshold: int = UNDER_LOAD_HANDSHAKES_PER_SECOND) -> None:
        self._threshold = threshold
        self._count = 0
        self._window_end = 0.0
        self._loaded_until = 0.0

    def note(self, now: float) -> bool:
        """Count one handshake message; tell whether it came under load."""
        if now >= self._window_end:
            self._window_end = now + 1.0
            self._count = 0
        self._count += 1
        if self._count > self._threshold:
            self._loaded_until = now + 1.0
        return now < self._loaded_until
