"""Packets that wait for a session, of all peers.

Rules: they leave in the order in which they came. Whoever owns next sends them: a freeze leaves them in the records,
and they leave the records before they are sent, no sooner. Limits: a number for each peer, beyond which the oldest go
first; bytes for each peer (they are one record) and for all, beyond which nothing is kept.

Source: the paper, section 6.4; `changes.PeerStaged`.
"""

from collections.abc import Iterable, Sequence

from oxidize.protocol.changes import PeerStaged
from oxidize.protocol.constants import STAGED_BYTES_MAX, STAGED_PEER_BYTES_MAX
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.peer import Peer
from oxidize.protocol.session_table import SessionTable


class Staging:
    """The packets that wait, `Peer.staged`, and what must be known of them besides."""

    def __init__(self, table: SessionTable) -> None:
        self.waiting: set[Peer] = set()  # peers with staged packets
        self.written_down: set[Peer] = set()  # peers whose staged packets the records hold
        self._table = table
        self._bytes: dict[Peer, int] = {}
        self._bytes_total = 0

    def add(self, peer: Peer, packets: Sequence[bytes | memoryview]) -> None:
        """Keep packets of a peer, behind those that wait already."""
        self._table.count(Total.BUFFERED_PACKETS, len(packets))
        self._keep(peer, packets)

    def put_before(self, peer: Peer, packets: Sequence[bytes]) -> None:
        """Keep packets that are older than those that wait."""
        newer = self._forget(peer)
        self.add(peer, packets)
        self._keep(peer, newer)

    def _keep(self, peer: Peer, packets: Sequence[bytes | memoryview]) -> None:
        dropped = 0
        for packet in packets:
            if len(peer.staged) >= peer.settings.staged_max:
                self._count(peer, -len(peer.staged.popleft()))
                dropped += 1
            full = self._bytes.get(peer, 0) + len(packet) > STAGED_PEER_BYTES_MAX
            if full or self._bytes_total + len(packet) > STAGED_BYTES_MAX:
                dropped += 1
                continue
            peer.staged.append(bytes(packet))
            self._count(peer, len(packet))
        if dropped:
            self._table.drop(DropReason.STAGED_OVERFLOW, dropped)
        if peer.staged:
            self.waiting.add(peer)

    def take(self, peer: Peer, limit: int | None = None) -> list[bytes]:
        """Return what waits for a session, `limit` packets at most, and forget it.

        It leaves the records first: whoever restores after us must not send it as well. No sooner than that, though: as
        long as we have sent nothing of it, they may.
        """
        if peer in self.written_down:
            self._table.record(PeerStaged(peer.public_key, ()))
            self.written_down.discard(peer)
        if limit is None or limit >= len(peer.staged):
            return self._forget(peer)
        taken = [peer.staged.popleft() for _ in range(limit)]
        self._count(peer, -sum(map(len, taken)))
        return taken

    def write_down(self) -> None:
        """Record all that waits, for the next owner."""
        for peer in self.waiting:
            self._table.record(PeerStaged(peer.public_key, tuple(peer.staged)))
            self.written_down.add(peer)

    def note_restored(self, peers: Iterable[Peer]) -> None:
        """Take notice that the records have set what waits for these peers."""
        for peer in peers:
            for known in (self.waiting, self.written_down):
                (known.add if peer.staged else known.discard)(peer)
            self._count(peer, sum(map(len, peer.staged)) - self._bytes.get(peer, 0))

    def _forget(self, peer: Peer) -> list[bytes]:
        staged = list(peer.staged)
        peer.staged.clear()
        self.waiting.discard(peer)
        self._bytes_total -= self._bytes.pop(peer, 0)
        return staged

    def _count(self, peer: Peer, size: int) -> None:
        self._bytes[peer] = self._bytes.get(peer, 0) + size
        self._bytes_total += size
