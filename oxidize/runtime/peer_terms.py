"""Ends the access of peers at its time (`expires`), and restores it where the clock was set back.

The rule: the machine's clock decides, at every moment, and no reload is needed. It may jump in either direction (NTP, a
machine without a battery, a suspend), so it is read again after CHECK_SECS at the latest, and what it says now counts:
a device has exactly the peers whose time has not come. What a process before has recorded of the others is removed by
the usual way for peers that are not configured.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import attrgetter

from oxidize import logs
from oxidize.protocol.constants import NEVER
from oxidize.protocol.device import Device
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings

CHECK_SECS = 5.0  # between two looks at the clock, which may have been set meanwhile
CHANGES_PER_SLICE = 64  # peers between two batches: some milliseconds
RETRY_SECS = 1.0  # before a removal that could not be recorded is tried again

log = logs.get(__name__)


class PeerTerms:
    """The peers of the settings that are inactive, and those that will be; a `Timed` of the loop, while it owns.

    on_added: called with a peer that the device has again. unix_time: () -> seconds since the epoch.
    """

    def __init__(
        self,
        peers: Iterable[PeerSettings],
        device: Device,
        on_added: Callable[[Peer], None],
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._device = device
        self._on_added = on_added
        self._unix_time = unix_time
        self._disabled: list[PeerSettings] = []
        self._ending: list[PeerSettings] = []
        for peer in peers:
            if not peer.enabled:
                self._disabled.append(peer)
            elif peer.expires_unix < NEVER:
                self._ending.append(peer)
        self._ending.sort(key=attrgetter("expires_unix"))
        self._ends = [peer.expires_unix for peer in self._ending]
        # The device was made with those that had not ended at one moment.
        self._ended = sum(peer.public_key not in device.peers for peer in self._ending)
        self._unrecorded: list[bytes] = []
        self._due_at: float | None = 0.0 if self._ending else None

    def inactive(self) -> list[tuple[PeerSettings, str]]:
        """Return the peers that the device has not, each with the reason: "disabled" or "expired"."""
        disabled = [(peer, "disabled") for peer in self._disabled]
        return disabled + [(peer, "expired") for peer in self._ending[: self._ended]]

    def begin(self, now: float) -> None:
        """Do what is due at once; for the owner, before it reads the first packet."""
        if self._due_at is not None:
            self._due_at = now
            self.handle_timeout(now)

    def next_deadline(self) -> float | None:
        """Return when the clock is looked at next."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Compare the clock with the ends, and change the peers of the device by it."""
        if self._due_at is None or now < self._due_at:
            return
        self._unrecorded = [key for key in self._unrecorded if not self._device.membership.record_removal(key)]
        unix = self._unix_time()
        ended = bisect_right(self._ends, unix)
        for _ in range(CHANGES_PER_SLICE):
            if self._ended == ended or not (self._remove_next() if self._ended < ended else self._add_last()):
                break
        if self._ended == ended:
            left = self._ends[ended] - unix if ended < len(self._ends) else CHECK_SECS
            pause = min(left, RETRY_SECS if self._unrecorded else CHECK_SECS)
        else:
            pause = 0.0 if self._ended < ended else RETRY_SECS
        self._due_at = now + pause

    def _remove_next(self) -> bool:
        settings = self._ending[self._ended]
        self._ended += 1
        peer = self._device.peers[settings.public_key]
        self._device.membership.remove(peer)
        if not self._device.membership.record_removal(settings.public_key):
            self._unrecorded.append(settings.public_key)
        log.info("a peer's access has ended", peer=settings.name)
        return True

    def _add_last(self) -> bool:
        """Add the peer that was removed last; return False where that cannot be recorded now."""
        settings = self._ending[self._ended - 1]
        peer = self._device.membership.admit(settings)
        if peer is None:
            return False
        self._ended -= 1
        self._on_added(peer)
        log.info("the clock was set back: a peer has access again", peer=settings.name)
        return True
