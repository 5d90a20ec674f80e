"""The flood filter: has the kernel drop what the device decides to shed, and counts that.

The rule: there is a filter only while a flood is measured, or a queue stands (`fair_share_keeper`). It is gone before
another process owns the socket, and a kernel that has none costs nothing but the shedding.
"""

from collections.abc import Mapping

from oxidize import logs
from oxidize.net.socket_filter import SOURCES_SPARED_MAX
from oxidize.net.udp import UdpSocket
from oxidize.protocol.admission import Admission
from oxidize.protocol.constants import NEVER
from oxidize.protocol.counters import Counters, Total

ESTIMATE_ERROR = 1.5  # up to this multiple of the estimate, all that the kernel has dropped was shed
SOURCES_SECS = 1.0  # between two looks at which sources are spared

log = logs.get(__name__)


class FloodFilter:
    """Keeps the filter of a UDP socket as `Admission.flood` decides, while its process owns the socket."""

    def __init__(self, admission: Admission, udp: UdpSocket, counters: Counters) -> None:
        self._admission = admission
        self._flood = admission.flood
        self._udp = udp
        self._counters = counters
        self._spared: list[tuple[bytes, int]] = []
        self._spared_at = 0.0
        self._sessions: Mapping[int, float] = {}
        self._kernel_drops = 0
        self._is_refused = False

    def begin(self) -> None:
        """Begin to own: the socket has no filter."""
        self._flood.reset()
        self._sessions = {}

    def next_deadline(self) -> float | None:
        """Return when the next decision is due, or None while there is no flood."""
        due = self._flood.decide_at
        return due if due < NEVER and not self._is_refused else None

    def handle_timeout(self, now: float) -> None:
        """Decide, and change the filter where it differs."""
        flood = self._flood
        if now < flood.decide_at:
            return
        before, was_shedding = flood.shares, flood.is_shedding
        shed = flood.decide(now)
        dropped, self._kernel_drops = self._kernel_drops, self._udp.kernel_drops()
        if was_shedding:
            # The kernel counts these and those that its queue has no room for in one number.
            grown = (self._kernel_drops - dropped) % (1 << 32)
            self._counters[Total.SHED_DATAGRAMS] += grown if grown <= ESTIMATE_ERROR * shed else shed
        if self._refresh_spared(now) or flood.shares != before:
            self._apply()

    def _refresh_spared(self, now: float) -> bool:
        """Look which sources are spared, once in SOURCES_SECS; return whether they have changed."""
        if not self._flood.is_shedding or now < self._spared_at + SOURCES_SECS:
            return False
        before, self._spared_at = self._spared, now
        self._spared = self._admission.sources_to_spare(SOURCES_SPARED_MAX, now)
        return self._spared != before

    def thin_out(self, sessions: Mapping[int, float]) -> bool:
        """Let a part of the data of these sessions pass, by receiver index, of all others all.

        Return whether the kernel does.
        """
        self._sessions = sessions
        self._apply()
        return self._sessions is sessions

    def _apply(self) -> None:
        try:
            self._udp.shed(self._flood.shares, self._spared, self._sessions)
        except OSError as error:
            if self._sessions:  # they are thinned out without the kernel as well
                self._sessions = {}
                self._apply()
                return
            self._is_refused = True
            self._flood.reset()
            log.warning("floods are not shed: the kernel refuses a socket filter", reason=str(error))
