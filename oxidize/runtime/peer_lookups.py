"""Look-ups of the names that a server's peers have as endpoints, beside the data path.

The rule: a name never stops the service. It is looked up while the server runs, for as long as it takes, and only where
an answer is of use: the peer's endpoint is not known, it was changed in the configuration, it is known from an earlier
run alone, or the peer does not answer there. What the peer itself has said since then is newer than any name.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from oxidize import logs
from oxidize.net.event_loop import Loop
from oxidize.net.resolve import look_up
from oxidize.net.resolver import LOOKUP_PAUSE_SECS, LOOKUP_PAUSE_SECS_MAX, Lookup, Outcome, Resolver
from oxidize.protocol.constants import REKEY_TIMEOUT
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.runtime.sliced_work import SlicedWork

START_PAUSE_SECS = 0.05  # from the first packet on: a thread takes 0.1 ms to start, and no packet waits for it
CHECK_SECS = 1.0  # between two looks at a peer
UNANSWERED_SECS = REKEY_TIMEOUT  # that a handshake is in flight: at least one initiation was not answered
CHECKS_PER_SLICE = 256  # peers looked at between two batches: less than a millisecond
STARTS_PER_SLICE = 8  # threads started between two batches: about a millisecond
LOOKUPS_MAX = 64  # names looked up at once: each takes a thread and two descriptors; the others wait for their turn
NOT_ASKED = "not looked up yet"

log = logs.get(__name__)


class Waiting(NamedTuple):
    """A peer that waits for its name: the reason is the resolver's, or that it has not answered yet."""

    peer: Peer
    name: str
    reason: str


class _Name:
    """The look-ups of one peer's name. `due_at`: of the next one. tried: since an answer was last of no use."""

    def __init__(self, peer: Peer, resolver: Resolver) -> None:
        self.peer = peer
        self.resolver = resolver
        self.is_unconfirmed = True  # until it was looked up once, or the peer was heard
        self.due_at = 0.0
        self.pause_secs = LOOKUP_PAUSE_SECS
        self.tried = 0
        self.in_flight_since: float | None = None
        self.reason = ""  # why the last look-up failed

    @property
    def text(self) -> str:
        return self.peer.settings.configured_endpoint

    def is_wanted(self, now: float) -> bool:
        """Return whether an answer would be of use."""
        peer = self.peer
        if peer.is_removed:
            return False
        if peer.handshake is None:
            self.in_flight_since = None
        elif self.in_flight_since is None:
            self.in_flight_since = now
        if peer.endpoint is None or peer.is_reconfigured:
            return True
        if self.is_unconfirmed:
            self.is_unconfirmed = peer.endpoint.remote == peer.remembered and not peer.has_session(now)
        return self.is_unconfirmed or not self.is_answering(now)

    def is_answering(self, now: float) -> bool:
        """Return whether no handshake has been in flight for too long; it is looked at once in CHECK_SECS."""
        return self.in_flight_since is None or now - self.in_flight_since < UNANSWERED_SECS

    def rest(self) -> None:
        """Begin from the start the next time."""
        self.due_at, self.pause_secs, self.tried, self.reason = 0.0, LOOKUP_PAUSE_SECS, 0, ""


class PeerLookups:
    """Looks up the names of a device's peers, from `start` on, while this process owns.

    flush: sends what the device has queued.
    """

    def __init__(self, device: Device, loop: Loop, flush: Callable[[], None], lookup: Lookup = look_up) -> None:
        self._device = device
        self._loop = loop
        self._flush = flush
        self._lookup = lookup
        self._names = [self._name_of(peer) for peer in device.peers.values() if _has_name(peer)]
        self._next = 0  # the index of the name to be looked at next
        self._check_at: float | None = None  # None while this process does not own
        self._asked = 0
        self._must_record = False  # an answer has made a change of the configuration good

    def _name_of(self, peer: Peer) -> _Name:
        text = peer.settings.configured_endpoint
        name = _Name(peer, Resolver(text, self._lookup, self._loop, lambda outcome: self._note(name, outcome)))
        return name

    def add(self, peer: Peer, now: float) -> None:
        """Look up the name of a peer that the device has again, if it has one, in place of that of the removed one."""
        if not _has_name(peer):
            return
        self._names = [name for name in self._names if not name.peer.is_removed] + [self._name_of(peer)]
        self._next = 0
        self.stop()
        self.start(now)

    # --- Serving ---

    def start(self, now: float) -> None:
        """Look names up from now on; for the owner."""
        if self._names:
            self._check_at = now + START_PAUSE_SECS
            self._loop.add_timed(self)

    def stop(self) -> None:
        """Look nothing up from now on. What is under way is not waited for, and its answer not used."""
        self._check_at = None
        self._loop.remove_timed(self)

    def waiting(self) -> Iterator[Waiting]:
        """Yield the peers whose name has no answer yet, where one is of use."""
        for name in self._names:
            if not name.peer.is_removed and (name.reason or name.peer.endpoint is None or name.peer.is_reconfigured):
                yield Waiting(name.peer, name.text, name.reason or NOT_ASKED)

    def waiting_by_name(self) -> dict[str, bool]:
        """Return whether each peer whose endpoint is a name waits for it, by the name of the peer."""
        waiting = {each.peer for each in self.waiting()}
        return {name.peer.settings.name: name.peer in waiting for name in self._names if not name.peer.is_removed}

    # --- Called by the loop ---

    def next_deadline(self) -> float | None:
        """Return when the next peers are looked at."""
        return self._check_at

    def handle_timeout(self, now: float) -> None:
        """Look at the next peers, and begin the look-ups that are due."""
        if self._check_at is None or now < self._check_at:
            return
        if self._must_record:
            self._must_record = False
            slices = self._device.endpoints.record_configured_in_slices()
            SlicedWork(slices, self._loop, lambda: self._check_at is not None)
        count = len(self._names)
        started = 0
        for _ in range(min(count, CHECKS_PER_SLICE)):
            started += self._check(self._names[self._next], now)
            self._next = (self._next + 1) % count
            if started == STARTS_PER_SLICE:
                self._check_at = now
                return
        self._check_at = now + CHECK_SECS * min(count, CHECKS_PER_SLICE) / count

    def _check(self, name: _Name, now: float) -> bool:
        """Begin a look-up where one is due; return whether that was done."""
        if not name.is_wanted(now):
            name.rest()
            return False
        if now < name.due_at or name.resolver.is_asking or self._asked >= LOOKUPS_MAX:
            return False
        self._asked += 1
        name.resolver.ask()
        return True

    # --- Answers ---

    def _note(self, name: _Name, outcome: Outcome) -> None:
        self._asked -= 1
        now = self._loop.now()
        name.due_at = now + name.pause_secs
        name.pause_secs = min(2 * name.pause_secs, LOOKUP_PAUSE_SECS_MAX)
        if self._check_at is None or not name.is_wanted(now):
            return  # a successor owns, or the peer was heard since
        name.tried += 1
        if isinstance(outcome, OSError):
            if not name.reason:
                log.warning(
                    "a peer's endpoint cannot be looked up; retrying",
                    peer=name.peer.settings.name,
                    endpoint=name.text,
                    reason=str(outcome),
                )
            name.reason = str(outcome) or type(outcome).__name__
            return
        self._use(name, outcome, now)

    def _use(self, name: _Name, found: Sequence[Endpoint], now: float) -> None:
        """Move the peer to an address of its name; if it is at one already and does not answer, to the next one."""
        peer, name.reason = name.peer, ""
        remotes = [endpoint.remote for endpoint in found]
        endpoint = found[0]
        if peer.endpoint is not None and peer.endpoint.remote in remotes:
            step = 1 if name.tried > 1 and not name.is_answering(now) else 0
            endpoint = found[(remotes.index(peer.endpoint.remote) + step) % len(found)]
        is_other = peer.endpoint is None or peer.endpoint.remote != endpoint.remote
        was_reconfigured = peer.is_reconfigured
        peer.is_reconfigured = name.is_unconfirmed = False
        if is_other:
            log.info("a peer's endpoint was looked up", peer=peer.settings.name, name=name.text, endpoint=str(endpoint))
            self._device.set_endpoint(peer, endpoint, now)
            self._flush()
        self._must_record |= was_reconfigured


def _has_name(peer: Peer) -> bool:
    return bool(peer.settings.configured_endpoint) and peer.settings.endpoint is None
