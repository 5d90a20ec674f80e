"""How many handshakes one source address may cost us while we are under load.

The rule (paper, section 5.3): a source that proved its address by a cookie still gets only so much of our time. The
paper gives no numbers; 20 handshakes a second, 5 at once, are those of the reference implementations. IPv6 sources
count by their /64, the least that a site is given (RFC 6177).

Each source is a token bucket, held as one number: the time at which it will be full again. A full bucket is the same as
none, so entries expire by themselves and there is nothing to time.
"""

from collections import OrderedDict

HANDSHAKES_PER_SECOND = 20
HANDSHAKES_BURST = 5

# Sources remembered at once. When they are more, the one that was allowed longest ago is forgotten, and with it at most
# a quarter of a second's denial.
SOURCES_MAX = 65_536

_TOKEN_NS = 1_000_000_000 // HANDSHAKES_PER_SECOND
_BUCKET_NS = _TOKEN_NS * HANDSHAKES_BURST
_EXPIRED_PER_CALL = 2  # more than the one that a call can add: the table shrinks while it is used


class RateLimiter:
    """Token buckets by source address: HANDSHAKES_PER_SECOND each, HANDSHAKES_BURST at once."""

    def __init__(self) -> None:
        # Whole nanoseconds: sums of floats would deny a source that keeps exactly to the rate.
        # The source that was allowed longest ago comes first. A plain dict would search its deleted front each time.
        self._full_at_ns: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def allow(self, address: bytes, now: float) -> bool:
        """Take a token of this source, 4 or 16 bytes, at `now`; False, and nothing taken, when it has none."""
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
