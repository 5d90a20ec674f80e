"""Limits on handshakes: when a device asks for cookies, and the rates of each source and of all sources together.

Rules (paper, section 5.3):
- A handshake costs a hundred times more than any other datagram, so handshakes alone decide: a device is under load
  once those that came exceed what it can answer beside its packets. One that fails counts FAILED_WEIGHT times, since
  no configured peer sends it: a whole fleet that comes back at once is not load, the same number of forgeries is.
- All sources together cause no more work in a second than a Budget allows. A budget keeps a part of its tokens for the
  requests that deserve them more.
- Under load, a source that proved its address by a cookie is still limited. The paper gives no numbers; 20 handshakes a
  second, 5 at once, are those of the reference implementations. IPv6 sources count by their /64, the least that a site
  is given (RFC 6177).
"""

from collections import OrderedDict

# Handshakes at once, and then in each second, that are not load: to answer one takes 0.4 ms, to refuse one 0.1 ms.
UNDER_LOAD_HANDSHAKES = 1000
FAILED_WEIGHT = 2

HANDSHAKES_PER_SECOND = 20
HANDSHAKES_BURST = 5

# Sources remembered at once. Beyond that, the source that was allowed longest ago is forgotten, and with it at most a
# quarter of a second's denial.
SOURCES_MAX = 65_536

_TOKEN_NS = 1_000_000_000 // HANDSHAKES_PER_SECOND
_BUCKET_NS = _TOKEN_NS * HANDSHAKES_BURST
_EXPIRED_PER_CALL = 2  # more than the one that a call can add: the table shrinks while it is used


class LoadMeter:
    """A leaky bucket of handshake messages; threshold: how many it holds without load, and loses in each second.

    It holds twice as many at most, so that load ends a second after its cause.
    """

    __slots__ = ("_at", "_level", "_threshold")

    def __init__(self, threshold: int = UNDER_LOAD_HANDSHAKES) -> None:
        self._threshold = threshold
        self._level = 0.0
        self._at = 0.0

    def note(self, now: float, weight: int = 1) -> None:
        """Count one handshake message at `now`, seconds."""
        self._level = min(self._level_at(now) + weight, 2.0 * self._threshold)
        self._at = now

    def fill(self, now: float) -> None:
        """Put the device under load for a second."""
        self._level, self._at = 2.0 * self._threshold, now

    def is_loaded(self, now: float) -> bool:
        """Return whether the device is under load, for one more message at `now`."""
        return self._level_at(now) + 1.0 > self._threshold

    def _level_at(self, now: float) -> float:
        return max(0.0, self._level - max(0.0, now - self._at) * self._threshold)


class Budget:
    """A token bucket for all sources together: `per_second` tokens, `burst` at once.

    It is held as one number: the time at which it will be full again.
    """

    __slots__ = ("_burst_secs", "_full_at", "_token_secs")

    def __init__(self, per_second: int, burst: int) -> None:
        self._token_secs = 1.0 / per_second
        self._burst_secs = burst * self._token_secs
        self._full_at = 0.0

    def has(self, now: float, reserved: int = 0) -> bool:
        """Return whether there is a token beside those that are `reserved` for other requests."""
        full_at = max(self._full_at, now) + (1 + reserved) * self._token_secs
        return full_at <= now + self._burst_secs + self._token_secs / 2

    def next_at(self, reserved: int = 0) -> float:
        """Return from when on `has` is true, unless a token is taken before."""
        return self._full_at + (reserved + 0.5) * self._token_secs - self._burst_secs

    def take(self, now: float, reserved: int = 0) -> bool:
        """Take a token beside those that are `reserved` for other requests; return False where there is none."""
        if not self.has(now, reserved):
            return False
        self._full_at = max(self._full_at, now) + self._token_secs
        return True

    def reserve(self, now: float) -> float:
        """Take a token, or the next that nothing has taken yet; return when it may be used."""
        self._full_at = max(self._full_at, now) + self._token_secs
        return max(now, self._full_at - self._burst_secs)


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

    def is_new(self, address: bytes) -> bool:
        """Return whether a source has all of its tokens."""
        return (address[:8] if len(address) == 16 else address) not in self._full_at_ns

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
