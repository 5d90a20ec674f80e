"""Limits on handshakes: the rate at which a device asks for cookies, and the rate of each source under load.

Rules (paper, section 5.3):
- A handshake costs a hundred times more than any other datagram, so the rate of handshakes alone decides: the device is
  under load from the moment of more than a threshold of them in one second, until a whole second has passed with fewer.
- Under load, a source that proved its address by a cookie is still limited. The paper gives no numbers; 20 handshakes a
  second, 5 at once, are those of the reference implementations. IPv6 sources count by their /64, the least that a site
  is given (RFC 6177).
"""

from collections import OrderedDict

UNDER_LOAD_HANDSHAKES_PER_SECOND = 250  # of some 1,000 that one core can answer

HANDSHAKES_PER_SECOND = 20
HANDSHAKES_BURST = 5

# Sources remembered at once. Beyond that, the source that was allowed longest ago is forgotten, and with it at most a
# quarter of a second's denial.
SOURCES_MAX = 65_536

_TOKEN_NS = 1_000_000_000 // HANDSHAKES_PER_SECOND
_BUCKET_NS = _TOKEN_NS * HANDSHAKES_BURST
_EXPIRED_PER_CALL = 2  # more than the one that a call can add: the table shrinks while it is used


class LoadMeter:
    """A counter of handshake messages in windows of one second; threshold: the most in a window without load."""

    __slots__ = ("_count", "_loaded_until", "_threshold", "_window_end")

    def __init__(self, threshold: int = UNDER_LOAD_HANDSHAKES_PER_SECOND) -> None:
        self._threshold = threshold
        self._count = 0
        self._window_end = 0.0
        self._loaded_until = 0.0

    def note(self, now: float) -> bool:
        """Count one handshake message at `now`, seconds; return whether the device is under load."""
        if now >= self._window_end:
            self._window_end = now + 1.0
            self._count = 0
        self._count += 1
        if self._count > self._threshold:
            self._loaded_until = now + 1.0
        return now < self._loaded_until


class RateLimiter:
    """Token buckets by source address: HANDSHAKES_PER_SECOND each, HANDSHAKES_BURST at once.

    A bucket is held as one number: the time at which it will be full again. A full bucket is the same as none, so
    entries expire by themselves and need no timer.
    """

    def __init__(self) -> None:
        # Whole nanoseconds: sums of floats would deny a source that keeps exactly to the rate.
        # The source that was allowed longest ago comes first. A plain dict would search its deleted front each time.
        self._full_at_ns: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def allow(self, address: bytes, now: float) -> bool:
        """Take a token of a source at `now`; return False, with nothing taken, when its bucket is empty.

        address: the outer address of the source, 4 or 16 bytes. now: seconds of a monotonic clock.
        """
        source = address[:8] if len(address) == 16 else address
        now_ns = round(now * 1_000_000_000)
        self._forget_expired(now_ns)
        full_at_ns = max(self._full_at_ns.get(source, 0), now_ns) + _TOKEN_NS
        if full_at_ns > now_ns + _BUCKET_NS:
            return False
        self._full_at_ns[source] = full_at_ns
        self._full_at_ns.move_to_end(source)
        if len(self._full_at_ns) > SOURCES_MAX:
            self._full_at_ns.popitem(last=False)
        return True

    def _forget_expired(self, now_ns: int) -> None:
        for _ in range(min(_EXPIRED_PER_CALL, len(self._full_at_ns))):
            if self._full_at_ns[next(iter(self._full_at_ns))] > now_ns:
                return
            self._full_at_ns.popitem(last=False)
