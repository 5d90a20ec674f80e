"""Staged packets of all peers: they wait for a session.

The rules: they are sent in the order in which they came. The next owner sends those that a freeze has recorded; they
leave the records immediately before they are sent. Limits: a number for each peer, beyond which the oldest are dropped;
bytes for each peer (they are one record) and for all peers, beyond which new ones are dropped.

Source: the paper, section 6.4; `changes.PeerStaged`.
"""

from collections.abc import Iterable, Sequence

from oxidize.protocol.changes import PeerStaged
from oxidize.protocol.constants import STAGED_BYTES_MAX, STAGED_PEER_BYTES_MAX
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.peer import Peer
from oxidize.protocol.session_table import SessionTable


class Staging:
    """The staged packets, which are in `Peer.staged`, with their sizes and what the records hold of them."""

    def __init__(self, table: SessionTable) -> None:
        self.peers: set[Peer] = set()  # peers with staged packets
        self.recorded: set[Peer] = set()  # peers whose staged packets the records hold
        self._table = table
        self._bytes: dict[Peer, int] = {}
        self._bytes_total = 0

    def add(self, peer: Peer, packets: Sequence[bytes | memoryview]) -> None:
        """Stage packets of a peer, behind those that are staged."""
        self._table.count(Total.BUFFERED_PACKETS, len(packets))
        self._keep(peer, packets)

    def add_older(self, peer: Peer, packets: Sequence[bytes]) -> None:
        """Stage packets of a peer that are older than those that are staged."""
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
            self.peers.add(peer)

    def take(self, peer: Peer, limit: int | None = None) -> list[bytes]:
        """Return the oldest `limit` staged packets of a peer, or all, and forget them.

        They leave the records first: a process that restores later must not send them as well. They do not leave them
        earlier: until this process has sent any, the other one may.
        """
        if peer in self.recorded:
            self._table.record(PeerStaged(peer.public_key, ()))
            self.recorded.discard(peer)
        if limit is None or limit >= len(peer.staged):
            return self._forget(peer)
        taken = [peer.staged.popleft() for _ in range(limit)]
        self._count(peer, -sum(map(len, taken)))
        return taken

    def record_all(self) -> None:
        """Record all staged packets, for the next owner."""
        for peer in self.peers:
            self._table.record(PeerStaged(peer.public_key, tuple(peer.staged)))
            self.recorded.add(peer)

    def on_restored(self, peers: Iterable[Peer]) -> None:
        """Account for the staged packets of peers that were restored from the records."""
        for peer in peers:
            for known in (self.peers, self.recorded):
                (known.add if peer.staged else known.discard)(peer)
            self._count(peer, sum(map(len, peer.staged)) - self._bytes.get(peer, 0))

    def _forget(self, peer: Peer) -> list[bytes]:
        staged = list(peer.staged)
        peer.staged.clear()
        self.peers.discard(peer)
        self._bytes_total -= self._bytes.pop(peer, 0)
        return staged

    def _count(self, peer: Peer, size: int) -> None:
        self._bytes[peer] = self._bytes.get(peer, 0) + size
        self._bytes_total += size
