"""Staged packets of all peers: they wait for a session.

The rules: they are sent in the order in which they came. The next owner sends those that are recorded; they leave the
records immediately before they are sent. Limits: a number for each peer, beyond which the oldest are dropped; bytes for
each peer (they are one record) and for all peers, beyond which new ones are dropped.

In the records a peer's packets are one PeerStaged, and one PeerStagedMore for those that were staged after it: so the
packets that come while others are recorded cost as many bytes as they have, not as many as all that wait.

Source: the paper, section 6.4; `changes.PeerStaged`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from oxidize.protocol.changes import PeerStaged, PeerStagedMore
from oxidize.protocol.constants import STAGED_BYTES_MAX, STAGED_PEER_BYTES_MAX
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.peer import Peer
from oxidize.protocol.session_table import SessionTable

RECORD_BYTES = 96  # of a record of packets, without the packets; roughly
_SERIAL_SIZE = 4


class Staging:
    """The staged packets, which are in `Peer.staged`, with their sizes and what the records hold of them.

    peers: those with staged packets. recorded: those whose staged packets the records hold, all or the older ones.
    unrecorded: those with staged packets that the records lack, in the order in which they became that.
    """

    def __init__(self, table: SessionTable) -> None:
        self.peers: set[Peer] = set()
        self.recorded: set[Peer] = set()
        self.unrecorded: dict[Peer, None] = {}
        self._table = table
        self._is_whole = False  # a PeerStaged holds all packets of its peer
        self._newer: dict[Peer, int] = {}  # of recorded peers: packets that are newer than the PeerStaged
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
                self._count(peer, -len(peer.staged.pop(0)))
                dropped += 1
            full = self._bytes.get(peer, 0) + len(packet) > STAGED_PEER_BYTES_MAX
            if full or self._bytes_total + len(packet) > STAGED_BYTES_MAX:
                dropped += 1
                continue
            peer.staged.append(bytes(packet))
            self._count(peer, len(packet))
            self.unrecorded[peer] = None
            self._newer[peer] = self._newer.get(peer, 0) + 1
        if dropped:
            self._table.drop(DropReason.STAGED_OVERFLOW, dropped)
        if peer.staged:
            self.peers.add(peer)

    def take(self, peer: Peer, limit: int | None = None) -> list[bytes]:
        """Return the oldest `limit` staged packets of a peer, or all, and forget them; raises StorageError.

        They leave the records first: a process that restores later must not send them as well. They do not leave them
        earlier: until this process has sent any, the other one may.
        """
        self.retire(peer)
        if limit is None or limit >= len(peer.staged):
            return self._forget(peer)
        taken = peer.staged[:limit]
        del peer.staged[:limit]
        self._count(peer, -sum(map(len, taken)))
        return taken

    # --- The records ---

    def record(self, peer: Peer) -> int:
        """Record a peer's staged packets, or those that the records lack; return the bytes of the record, roughly.

        They stay in `unrecorded` where the records cannot take them.
        """
        packets = tuple(self.lacking(peer))
        if self._record(peer, packets):
            self.unrecorded.pop(peer, None)
        return RECORD_BYTES + sum(map(len, packets))

    def _record(self, peer: Peer, packets: tuple[bytes, ...]) -> bool:
        table = self._table
        if len(packets) < len(peer.staged):
            if not table.try_record(PeerStagedMore(peer.public_key, packets, peer.staged_serial)):
                return False
            peer.staged_more = len(packets)
            return True
        # Random: a PeerStagedMore that a crash has left behind must belong to no other PeerStaged.
        serial = int.from_bytes(table.random_bytes(_SERIAL_SIZE), "little")
        if not table.try_record(PeerStaged(peer.public_key, packets, serial)):
            return False
        if peer.staged_more:
            table.try_record(PeerStagedMore(peer.public_key, ()))
        peer.staged_serial, peer.staged_more = serial, 0
        self.recorded.add(peer)
        self._newer.pop(peer, None)
        return True

    def lacking(self, peer: Peer) -> Iterator[bytes]:
        """Return the packets that the next record of a peer will hold: all, or those after the last PeerStaged."""
        first = len(peer.staged) - self._newer.get(peer, 0)
        if self._is_whole or peer not in self.recorded or not peer.staged_serial or 2 * first <= len(peer.staged):
            first = 0
        return islice(peer.staged, first, None)

    def record_whole(self, is_whole: bool) -> None:
        """Record all packets of a peer in its PeerStaged from now on, for a reader that knows no PeerStagedMore."""
        self._is_whole = is_whole
        if is_whole:
            self.unrecorded |= {peer: None for peer in self.recorded if peer.staged_more}

    def retire(self, peer: Peer) -> None:
        """Take a peer's staged packets out of the records, if they hold any; raises StorageError."""
        if peer not in self.recorded:
            return
        self._table.record(PeerStaged(peer.public_key, ()))
        if peer.staged_more:
            self._table.try_record(PeerStagedMore(peer.public_key, ()))
        peer.staged_serial = peer.staged_more = 0
        self.recorded.discard(peer)
        if peer.staged:
            self.unrecorded[peer] = None

    def drop_unrecorded(self, peer: Peer, reason: DropReason) -> None:
        """Drop a peer's packets that the records lack."""
        del self.unrecorded[peer]
        lacking = len(peer.staged)
        if peer in self.recorded:
            lacking = min(lacking, self._newer.get(peer, 0) - (0 if self._is_whole else peer.staged_more))
        dropped = [peer.staged.pop() for _ in range(lacking)]
        self._newer[peer] = self._newer.get(peer, 0) - lacking
        self._count(peer, -sum(map(len, dropped)))
        self._table.drop(reason, len(dropped))
        if not peer.staged:
            self._forget(peer)

    def on_restored(self, peers: Iterable[Peer]) -> None:
        """Account for the staged packets of peers that were restored from the records."""
        for peer in peers:
            for known in (self.peers, self.recorded):
                (known.add if peer.staged else known.discard)(peer)
            self.unrecorded.pop(peer, None)
            self._newer[peer] = peer.staged_more
            self._count(peer, sum(map(len, peer.staged)) - self._bytes.get(peer, 0))

    def forget(self, peer: Peer) -> int:
        """Forget the staged packets of a peer that is removed, which takes them out of the records; return how many."""
        self.recorded.discard(peer)
        return len(self._forget(peer))

    def _forget(self, peer: Peer) -> list[bytes]:
        staged, peer.staged = peer.staged, []
        self.peers.discard(peer)
        self.unrecorded.pop(peer, None)
        self._newer.pop(peer, None)
        self._bytes_total -= self._bytes.pop(peer, 0)
        return staged

    def _count(self, peer: Peer, size: int) -> None:
        self._bytes[peer] = self._bytes.get(peer, 0) + size
        self._bytes_total += size
