"""Every peer, session index and slot of a device, changed only together.

The rule: a change is recorded before any effect of it can be seen outside, and a slot is released only after the record
that named it has been replaced. So whoever restores from the records never meets a slot that serves two keypairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from oxidize.protocol.changes import Change, KeypairState, PeerEndpoint, PeerSeen
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.handshake import TransportKeys
from oxidize.protocol.index_table import IndexTable
from oxidize.protocol.keypair import Keypair
from oxidize.protocol.peer import Peer, PendingHandshake, no_handshake
from oxidize.protocol.timers import any_authenticated_sent
from oxidize.protocol.words import DROPS_WORD, SENT_BYTES, DropReason, Slots, Total, Words


class Transmit(NamedTuple):
    """Datagrams that leave for one endpoint, in order; at most BATCH_PACKETS_MAX."""

    endpoint: Endpoint
    datagrams: list[bytes]


@dataclass(slots=True)
class SessionTable:
    """The device's memory: what the handshakes and the data path share.

    slots: the words. record: takes every change, at once. random_bytes: count -> bytes.
    """

    slots: Slots
    record: Callable[[Change], None]
    random_bytes: Callable[[int], bytes]
    peers: dict[bytes, Peer] = field(default_factory=dict)
    indices: IndexTable[Keypair | PendingHandshake | None] = field(default_factory=IndexTable)
    transmits: list[Transmit] = field(default_factory=list)
    words: Words = field(init=False)
    _slot_owners: dict[int, Keypair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = self.slots.words

    # --- Counting and sending ---

    def count(self, total: Total, amount: int = 1) -> None:
        """Add to one of the totals."""
        self.words[total] += amount

    def drop(self, reason: DropReason, amount: int = 1) -> None:
        """Count what went no further."""
        self.words[DROPS_WORD + reason] += amount

    def transmit(self, peer: Peer, endpoint: Endpoint, messages: Sequence[bytes], now: float) -> None:
        """Queue authenticated messages to a peer and count them."""
        self.transmit_unaccounted(endpoint, messages)
        self.words[peer.slot + SENT_BYTES] += sum(map(len, messages))
        any_authenticated_sent(peer, self.words, now)

    def transmit_unaccounted(self, endpoint: Endpoint, messages: Sequence[bytes]) -> None:
        """Queue messages that belong to no session: cookie replies."""
        for first in range(0, len(messages), BATCH_PACKETS_MAX):
            batch = list(messages[first : first + BATCH_PACKETS_MAX])
            self.transmits.append(Transmit(endpoint, batch))
            self.words[Total.SENT_DATAGRAMS] += len(batch)
            self.words[Total.SENT_BYTES] += sum(map(len, batch))

    # --- Peers ---

    def give_slot(self, peer: Peer) -> None:
        """Give a peer its words, once; raises StateError when the arena is full."""
        if not peer.slot:
            slot = self.slots.allocate()
            self.record(PeerSeen(peer.public_key, slot))
            peer.slot = slot

    def move_endpoint(self, peer: Peer, endpoint: Endpoint) -> None:
        """Take the endpoint at which a peer was just authenticated as its own (roaming, section 2.1)."""
        if peer.endpoint == endpoint:
            return
        if peer.endpoint is not None:
            self.words[Total.ENDPOINT_MOVES] += 1
        self.record(PeerEndpoint(peer.public_key, endpoint))
        peer.endpoint = endpoint

    # --- Keypairs ---

    def create_keypair(
        self, peer: Peer, keys: TransportKeys, indices: tuple[int, int], initiator: bool, now: float
    ) -> Keypair:
        """Return a keypair with a slot of its own, not yet installed; `indices`: ours and the peer's."""
        local, remote = indices
        slot = self.slots.allocate()
        state = KeypairState(local, remote, keys.send_key, keys.receive_key, now, initiator, slot)
        keypair = self._slot_owners[slot] = Keypair(state, peer, self.words)
        return keypair

    def rotate(self, peer: Peer, rotation: Callable[[], None]) -> None:
        """Change a peer's keypairs by `rotation`, record the outcome, and let go of what fell out."""
        before = peer.keypairs
        rotation()
        after = peer.keypairs
        for keypair in after:
            self.indices.claim(keypair.state.local_index, keypair)
        self.record(peer.keypairs_change())
        for keypair in before:
            if keypair not in after:
                self._let_go(keypair)

    def forget_keys(self, peer: Peer) -> None:
        """Forget a peer's keypairs (section 6.3); a handshake in flight goes on."""

        def clear() -> None:
            peer.previous = peer.current = peer.next = None

        if peer.keypairs:
            self.rotate(peer, clear)

    def _let_go(self, keypair: Keypair) -> None:
        """Free what a keypair held, unless it is another's by now: a successor may have given its slot away."""
        if self.indices.get(keypair.state.local_index) is keypair:
            self.indices.release(keypair.state.local_index)
        if self._slot_owners.get(keypair.state.slot) is keypair:
            del self._slot_owners[keypair.state.slot]
            self.slots.release(keypair.state.slot)

    # --- Handshakes of ours ---

    def begin_handshake(self, pending: PendingHandshake, mac1: bytes) -> None:
        """Make an initiation of ours the one that a response may answer."""
        peer = pending.peer
        self._release_handshake(peer)
        self.record(pending.change(mac1))
        peer.handshake = pending
        self.indices.claim(pending.state.local_index, pending)

    def end_handshake(self, peer: Peer) -> None:
        """Forget the handshake in flight, if any: answered or given up."""
        if peer.handshake is not None:
            self.record(no_handshake(peer.public_key))
            self._release_handshake(peer)

    def _release_handshake(self, peer: Peer) -> None:
        pending = peer.handshake
        peer.handshake = None
        if pending is not None and self.indices.get(pending.state.local_index) is pending:
            self.indices.release(pending.state.local_index)

    # --- Restoring: the same tables, set from records and never recorded again ---

    def restore_slot(self, peer: Peer, slot: int) -> None:
        """Take over a peer's words."""
        self.slots.claim(slot)
        peer.slot = slot

    def restore_keypairs(self, peer: Peer, states: Sequence[KeypairState | None], now: float) -> None:
        """Take over `states`: previous, current and next. Expired ones are left out, their slots free."""
        before = {keypair.state.local_index: keypair for keypair in peer.keypairs}
        restored: list[Keypair | None] = []
        for state in states:
            if state is None:
                restored.append(None)
                continue
            known = before.get(state.local_index)
            keypair = known if known is not None and known.state == state else Keypair(state, peer, self.words)
            restored.append(None if keypair.is_expired(now) else keypair)
        peer.previous, peer.current, peer.next = restored
        for keypair in before.values():
            if keypair not in restored:
                self._let_go(keypair)
        for keypair in peer.keypairs:
            self.slots.claim(keypair.state.slot)
            self._slot_owners[keypair.state.slot] = keypair
            self.indices.claim(keypair.state.local_index, keypair)

    def restore_handshake(self, peer: Peer, pending: PendingHandshake | None) -> None:
        """Take over the handshake in flight, or that there is none."""
        self._release_handshake(peer)
        peer.handshake = pending
        if pending is not None:
            self.indices.claim(pending.state.local_index, pending)
            peer.initiation_sent_at = max(peer.initiation_sent_at, pending.sent_at)
