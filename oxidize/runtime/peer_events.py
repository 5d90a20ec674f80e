"""Lines in the log about a server's peers: connected, at another endpoint, silent.

The rules: the data path knows nothing of them, for the peers are looked at from time to time, in slices, and only when
something can have changed. What lies between two looks is one change. The lines are limited, one in each turn of the
loop, and what is left out is counted. Whatever was so before this process served is no event, nor is a move in the
FIRST_SECS after that.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from math import inf

from oxidize import logs
from oxidize.protocol.counters import LAST_RECEIVED_NS, Counters, Total
from oxidize.protocol.device import Device
from oxidize.protocol.peer import Peer
from oxidize.runtime.line_limit import LineLimit

FIRST_SECS = 1.0  # from the begin to the first look, which only notes who was connected before it
CHECK_SECS = 5.0  # between two looks
PEERS_PER_SLICE = 256  # looked at between two batches: a tenth of a millisecond
STEP_PAUSE_SECS = 0.002  # between two slices, so that batches have their turn
LINES_BURST = 20  # lines at once
LINE_SECS = 1.0  # and later one in each
TEXTS = {"connected": "a peer has connected", "moved": "a peer has moved", "silent": "a peer is silent"}
LOOKS_AFTER_CHANGE = 2  # a handshake is counted a moment before its session can be used

_END = object()
_Remote = tuple[bytes, int, int]

log = logs.get(__name__)


class PeerEvents:
    """Looks at the peers of a device while it serves (`net.event_loop.Timed`). clock: the loop's."""

    def __init__(self, device: Device, counters: Counters, clock: Callable[[], float]) -> None:
        self._device = device
        self._counters = counters
        self._clock = clock
        self._due_at = 0.0
        self._began_at = inf
        self._is_first = True
        self._work: Iterator[None] | None = None
        self._connected: dict[Peer, _Remote | None] = {}  # and where, at the last look
        self._number = 0  # of the peers, at the last look
        self._seen = (0, 0)
        self._looks_left = 1
        self._ends_at = inf  # of the session that ends first
        self._limit = LineLimit(LINES_BURST, LINE_SECS)
        self._lines: deque[Callable[[], None]] = deque()  # LINES_BURST at most
        self._left_out: Counter[str] = Counter()

    def next_deadline(self) -> float:
        """Return when the next look or slice is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Look whether anything can have changed, or do one slice of a look at all peers."""
        if self._began_at == inf:  # nothing is looked at before the first packets of a hand-off
            self._began_at = now
            self._due_at = now + FIRST_SECS
        if now < self._due_at:
            return
        if self._work is None and self._may_have_changed(now):
            self._work = self._look()
        if self._work is not None and next(self._work, _END) is _END:
            self._work = None
        self._due_at = now + (CHECK_SECS if self._work is None else STEP_PAUSE_SECS)

    def _may_have_changed(self, now: float) -> bool:
        counters = self._counters
        handshakes = counters[Total.HANDSHAKES_INITIATOR] + counters[Total.HANDSHAKES_RESPONDER]
        seen = (handshakes, counters[Total.ENDPOINT_MOVES])
        if seen != self._seen:
            self._seen, self._looks_left = seen, LOOKS_AFTER_CHANGE
        self._looks_left -= 1
        return self._looks_left >= 0 or now >= self._ends_at

    def _look(self) -> Iterator[None]:
        is_first, self._is_first = self._is_first, False
        if is_first and not self._device.live_sessions(self._clock()):
            return  # each session from here on is an event
        self._ends_at = inf
        peers = list(self._device.peers.values())
        if len(peers) < self._number:  # the access of some has ended, which is told elsewhere
            left = set(peers)
            self._connected = {peer: remote for peer, remote in self._connected.items() if peer in left}
        self._number = len(peers)
        for first in range(0, len(peers), PEERS_PER_SLICE):
            now = self._clock()
            for peer in peers[first : first + PEERS_PER_SLICE]:
                self._compare(peer, now, is_event=not is_first)
            yield
            while self._lines:
                self._lines.popleft()()
                yield
        if self._left_out:
            left_out, self._left_out = self._left_out, Counter()
            log.info(
                "more peers have changed than are logged",
                connected=left_out["connected"],
                moved=left_out["moved"],
                silent=left_out["silent"],
            )

    def _compare(self, peer: Peer, now: float, *, is_event: bool) -> None:
        """Compare a peer with the last look at it."""
        was_connected = peer in self._connected
        session = peer.current  # one that the peer has proved: an initiation alone may be a replay
        if session is not None and not session.is_expired(now):
            self._ends_at = min(self._ends_at, session.expires_at)
            is_event = is_event or session.state.created_at > self._began_at
            remote = peer.endpoint.remote if peer.endpoint is not None else None
            before = self._connected.get(peer)
            self._connected[peer] = remote
            if is_event and not was_connected:
                self._tell("connected", peer)
            elif is_event and before != remote:
                self._tell("moved", peer)
        elif was_connected:
            del self._connected[peer]
            heard_at = self._counters[peer.slot + LAST_RECEIVED_NS] / 1e9
            self._tell("silent", peer, round(now - heard_at))

    def _tell(self, event: str, peer: Peer, unheard_secs: int | None = None) -> None:
        if not self._limit.passes(self._clock()):
            self._left_out[event] += 1
            return
        line = partial(log.info, TEXTS[event], peer=peer.settings.name, endpoint=str(peer.endpoint or "unknown"))
        self._lines.append(line if unheard_secs is None else partial(line, unheard_secs=unheard_secs))
