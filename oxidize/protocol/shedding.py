"""Shedding: of a flood, which share of each class of datagrams a device receives.

The rule: what exceeds the budgets of `admission` is dropped by the kernel, at random, before it is received, for the
reception alone takes the time that sessions need. A data message is of no class and never shed. Of each class a part
always passes (PASS_SHARE_MIN), so that a retry gets through, even where a process was killed and its filter is left.

The meter is told what has arrived, and decides; it has no deadline unless datagrams are shed. `net.socket_filter` makes
the kernel drop them.
"""

from collections.abc import Sequence
from enum import IntEnum, unique
from math import inf

from oxidize.protocol.constants import DATA_OVERHEAD, INITIATION_SIZE, MAC_SIZE, TYPE_INITIATION

# What of each class is received in a second; twice as many are a flood.
SHORT_PER_SECOND = 2000  # none is of use, and one takes 0.01 ms
UNPROVEN_PER_SECOND = 3000  # half as many again as get a cookie
PROVEN_PER_SECOND = 3000  # as many as are answered, and as may fail
PASS_SHARE_MIN = 1 / 16

FLOOD_FACTOR = 2.0
WINDOW_SECS = 0.05  # between two decisions
# A flood that pauses is expected back: the estimate of its rate falls by this factor in each window.
ESTIMATE_DECAY = 0.9
SHARE_TOLERANCE = 1.25  # changes of a share by less are not worth a new filter

_NO_MAC2 = bytes(MAC_SIZE)


@unique
class Sheddable(IntEnum):
    """A class of datagrams that may be shed, of those that came alone and not from the endpoint of a peer."""

    SHORT = 0  # shorter than any message
    UNPROVEN = 1  # an initiation without a cookie
    PROVEN = 2  # an initiation with one, right or wrong


_USABLE = (SHORT_PER_SECOND, UNPROVEN_PER_SECOND, PROVEN_PER_SECOND)
_ALL_PASS = (1.0,) * len(Sheddable)


def classify(datagram: bytes | memoryview) -> Sheddable | None:
    """Return the class of a datagram, or None for one that is never shed."""
    size = len(datagram)
    if size < DATA_OVERHEAD:
        return Sheddable.SHORT
    if size != INITIATION_SIZE or datagram[0] != TYPE_INITIATION:
        return None
    return Sheddable.UNPROVEN if datagram[-MAC_SIZE:] == _NO_MAC2 else Sheddable.PROVEN


class FloodMeter:
    """Measures the datagrams of each class, and decides which share of them passes.

    shares: by class, from PASS_SHARE_MIN to 1.0. decide_at: when `decide` is due, `inf` for not before the next flood.
    """

    __slots__ = ("_began_at", "_estimates", "_passed", "decide_at", "shares")

    def __init__(self) -> None:
        self._began_at = -inf
        self.reset()

    def reset(self) -> None:
        """Let all datagrams pass, as after a change of owner: the filter is gone."""
        self.shares: Sequence[float] = _ALL_PASS
        self.decide_at = inf
        self._estimates = [0.0] * len(Sheddable)
        self._passed = [0] * len(Sheddable)

    @property
    def is_shedding(self) -> bool:
        """Whether a class is thinned out."""
        return self.shares != _ALL_PASS

    def note(self, kind: Sheddable, now: float) -> None:
        """Count a datagram that has arrived."""
        if now >= self._began_at + WINDOW_SECS and not self.is_shedding:
            self._begin(now)
        self._passed[kind] += 1
        if self._passed[kind] >= FLOOD_FACTOR * _USABLE[kind] * WINDOW_SECS and self.decide_at == inf:
            self.decide_at = now

    def _begin(self, now: float) -> None:
        self._began_at = now
        self._passed = [0] * len(Sheddable)

    def decide(self, now: float) -> int:
        """Set the shares for the next window; return about how many datagrams were shed in the last one."""
        secs = max(now - self._began_at, WINDOW_SECS / 100)
        arrived = [passed / share for passed, share in zip(self._passed, self.shares, strict=True)]
        shed = sum(arrived) - sum(self._passed)
        self._estimates = [
            max(number / secs, estimate * ESTIMATE_DECAY)
            for number, estimate in zip(arrived, self._estimates, strict=True)
        ]
        self.shares = tuple(map(_next_share, self.shares, self._estimates, _USABLE))
        self._begin(now)
        self.decide_at = now + WINDOW_SECS if self.is_shedding else inf
        return round(shed)


def _next_share(share: float, estimate: float, usable: int) -> float:
    """Return the share of a class that passes; estimate: of its datagrams in a second."""
    if estimate <= (usable if share < 1.0 else FLOOD_FACTOR * usable):
        return 1.0
    wanted = max(usable / estimate, PASS_SHARE_MIN)
    return wanted if not 1 / SHARE_TOLERANCE < wanted / share < SHARE_TOLERANCE or share == 1.0 else share
