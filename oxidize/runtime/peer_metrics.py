"""The metrics of each peer, in the text format of Prometheus, in pieces.

The rules: they are made for a scrape and for nothing else, a piece in each turn of the loop, so that no packet waits
for all peers. Scrapes at the same time share what is made. All lines of a metric stand together, as the format asks.

Sources: prometheus.io/docs/instrumenting/exposition_formats; docs/practices/naming.
"""

import base64
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

from oxidize import logs
from oxidize.protocol.counters import RECEIVED_BYTES, RECEIVED_PACKETS, SENT_BYTES, SENT_PACKETS, Counters
from oxidize.protocol.device import Device
from oxidize.protocol.peer import Peer

PEERS_PER_PIECE = 128  # lines of one metric: a tenth of a millisecond
SHARED_SECS = 0.25  # for which what was made is used again, as the other metrics are

log = logs.get(__name__)

Value = Callable[[Peer, Counters, float], object]


class _Family(NamedTuple):
    name: str
    kind: str
    text: str
    value: Value


def _counted(word: int) -> Value:
    return lambda peer, counters, _: counters[peer.slot + word] if peer.slot else 0


FAMILIES = (
    _Family(
        "oxidize_peer_received_bytes_total",
        "counter",
        "Bytes of UDP payload received from the peer in its sessions.",
        _counted(RECEIVED_BYTES),
    ),
    _Family(
        "oxidize_peer_sent_bytes_total",
        "counter",
        "Bytes of UDP payload sent to the peer in its sessions.",
        _counted(SENT_BYTES),
    ),
    _Family(
        "oxidize_peer_received_packets_total", "counter", "Inner packets from the peer.", _counted(RECEIVED_PACKETS)
    ),
    _Family("oxidize_peer_sent_packets_total", "counter", "Inner packets to the peer.", _counted(SENT_PACKETS)),
    _Family(
        "oxidize_peer_last_handshake_timestamp_seconds",
        "gauge",
        "Time of the latest handshake with the peer, since the epoch; 0 for none.",
        lambda peer, _counters, _now: peer.last_handshake_unix,
    ),
    _Family(
        "oxidize_peer_connected",
        "gauge",
        "1 for a peer with a live session, else 0.",
        lambda peer, _counters, now: int(peer.has_session(now)),
    ),
)


class PeerMetrics:
    """Makes the metrics of peers. peers_max: with more of them there are none. clock: of the peers' sessions."""

    def __init__(self, device: Device, counters: Counters, peers_max: int, clock: Callable[[], float]) -> None:
        self._device = device
        self._counters = counters
        self._peers_max = peers_max
        self._clock = clock
        self._latest: weakref.ref[_Rendering] | None = None

    @property
    def left_out(self) -> int:
        """The number of peers that have no metrics of their own: all of them, or none."""
        number = len(self._device.peers)
        return number if number > self._peers_max else 0

    def pieces(self) -> Iterator[bytes] | None:
        """Return the text of one scrape in pieces; None where there are no peers, or where they are left out."""
        if self.left_out or not self._device.peers:
            return None
        now = self._clock()
        latest = self._latest() if self._latest is not None else None
        if latest is None or (latest.is_complete and now >= latest.made_at + SHARED_SECS):
            latest = _Rendering(self._render(list(self._device.peers.values()), now), now)
            self._latest = weakref.ref(latest)
        return _ending_without_service(iter(latest))

    def _render(self, peers: list[Peer], now: float) -> Iterator[bytes]:
        for name, kind, text, value in FAMILIES:
            yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
            for first in range(0, len(peers), PEERS_PER_PIECE):
                lines = [
                    f"{name}{_labels(peer)} {value(peer, self._counters, now)}\n"
                    for peer in peers[first : first + PEERS_PER_PIECE]
                ]
                yield "".join(lines).encode()


def _ending_without_service(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces; a bug in one ends the answer, as an error of its connection, and not the process."""
    try:
        yield from pieces
    except Exception as error:  # the boundary of a request: a reader of metrics must not be able to end the service
        log.exception("the metrics of the peers cannot be made")
        raise ConnectionAbortedError("a piece of an answer cannot be made") from error


class _Rendering:
    """Pieces that are made once, when the first of those that iterate over them needs each."""

    def __init__(self, source: Iterator[bytes], made_at: float) -> None:
        self._source = source
        self._pieces: list[bytes] = []
        self._error: Exception | None = None
        self.made_at = made_at
        self.is_complete = False

    def __iter__(self) -> Iterator[bytes]:
        number = 0
        while number < len(self._pieces) or self._has_made_another():
            yield self._pieces[number]
            number += 1

    def _has_made_another(self) -> bool:
        if self._error is not None:
            raise self._error
        try:
            piece = next(self._source, None)
        except Exception as error:  # it is raised again, for each that iterates
            self._error = error
            raise
        if piece is None:
            self.is_complete = True
            return False
        self._pieces.append(piece)
        return True


def _labels(peer: Peer) -> str:
    key = base64.b64encode(peer.public_key).decode()
    return f'{{public_key="{key}",name="{_escaped(peer.settings.name)}"}}'


def _escaped(value: str) -> str:
    """Return a label's value as the format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
