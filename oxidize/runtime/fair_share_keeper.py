"""The fair share of a device at work: told to the kernel, counted, logged, and forgotten when nothing comes any more.

The rule: what is shed for a queue that stands ends with the load, by the next datagrams or by a deadline, and with the
ownership of the socket.
"""

from collections.abc import Mapping
from math import inf

from oxidize import logs
from oxidize.net.udp import UdpSocket
from oxidize.protocol.counters import DROPS_START, Counters, DropReason
from oxidize.protocol.fair_share import FairShare
from oxidize.runtime.flood_filter import FloodFilter

LOGGED_SECS = 60.0  # between two lines: a load that comes and goes would fill the log

log = logs.get(__name__)


class FairShareKeeper:
    """Joins the fair share of a device to its socket and the filter of that."""

    def __init__(self, share: FairShare, udp: UdpSocket, flood_filter: FloodFilter, counters: Counters) -> None:
        self._share = share
        self._filter = flood_filter
        self._counters = counters
        self._logged_at = -inf
        share.look = udp.queue_state
        share.shed = self._thin_out
        share.on_begin = self._log

    def begin(self) -> None:
        """Begin to own: the socket has no filter."""
        self._share.begin()

    def next_deadline(self) -> float | None:
        """Return when what the kernel sheds is to end unless a datagram comes, or None."""
        due = self._share.expires_at
        return due if due < inf else None

    def handle_timeout(self, now: float) -> None:
        """End what the kernel sheds where no datagram has come."""
        self._share.expire(now)

    def _thin_out(self, parts: Mapping[int, float]) -> bool:
        self._counters[DROPS_START + DropReason.OVER_FAIR_SHARE] += self._share.about_shed
        self._share.about_shed = 0
        return self._filter.thin_out(parts)

    def _log(self, now: float) -> None:
        if now >= self._logged_at + LOGGED_SECS:
            self._logged_at = now
            log.warning("more datagrams come than can be processed: the busiest sessions lose a part of theirs")
