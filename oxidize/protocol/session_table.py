"""The peers, session indices and slots of a device, changed only together.

The rules: a change is recorded before any effect of it can be seen outside, and a slot is released only after the
record that named it has been replaced. So a process that restores the records never finds two keypairs in one slot.
A change that cannot be recorded (StorageError) is not made; one that only spares a successor some work is made all the
same (`try_record`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from oxidize.errors import StorageError
from oxidize.protocol.changes import (
    Change,
    KeypairState,
    PeerEndpoint,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    no_handshake,
)
from oxidize.protocol.constants import BATCH_PACKETS_MAX, ENDPOINT_RECORD_INTERVAL, NEVER
from oxidize.protocol.counters import DROPS_START, SENT_BYTES, Counters, DropReason, Slots, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.index_table import IndexTable
from oxidize.protocol.keypair import Keypair
from oxidize.protocol.link_policy import SUPERSEDED_MAX
from oxidize.protocol.noise import TransportKeys
from oxidize.protocol.peer import Peer, PeerKeypair, PendingHandshake
from oxidize.protocol.session_count import SessionCount
from oxidize.protocol.timers import any_authenticated_sent

UNKNOWN_PEERS_PER_SLICE = 8  # each is a record: together about a millisecond


class Transmit(NamedTuple):
    """Datagrams to send to one endpoint, in order; at most BATCH_PACKETS_MAX."""

    endpoint: Endpoint
    datagrams: list[bytes]


class UnknownPeer:
    """A peer of the predecessor that is not configured here; its slots stay in use until its removal is recorded."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: dict[str, set[int]] = {}  # by the kind of change that named them


class SessionTable:
    """The tables that the handshakes and the data path of a device share.

    slots: the store of the counters. record: called with every change, at once. random_bytes: count -> bytes.
    by_remote: the peer that was last at this address and port (`Endpoint.remote`), or is expected there.
    endpoint_changes: how often any peer's endpoint changed. moved: peers whose new endpoint is not recorded yet.
    configured: the configured endpoints that the records know (`changes.ConfiguredEndpoints`), None for no record.
    """

    def __init__(self, slots: Slots, record: Callable[[Change], None], random_bytes: Callable[[int], bytes]) -> None:
        self.slots = slots
        self.counters: Counters = slots.counters
        self.record = record
        self.random_bytes = random_bytes
        self.peers: dict[bytes, Peer] = {}
        self.by_remote: dict[tuple[bytes, int, int], Peer] = {}
        self.unknown_peers: dict[bytes, UnknownPeer] = {}
        self.indices: IndexTable[PeerKeypair | PendingHandshake | None] = IndexTable()
        self.transmits: list[Transmit] = []
        self.endpoint_changes = 0
        self.moved: set[Peer] = set()
        self.configured: dict[bytes, bytes] | None = None
        self.session_count = SessionCount()
        self._slot_owners: dict[int, PeerKeypair | Peer | UnknownPeer] = {}
        self._answered: set[Peer] = set()  # peers whose answered handshake is unanswered in the records

    # --- Counting and sending ---

    def count(self, total: Total, amount: int = 1) -> None:
        """Add to one of the totals."""
        self.counters[total] += amount

    def drop(self, reason: DropReason, amount: int = 1) -> None:
        """Count dropped datagrams or packets."""
        self.counters[DROPS_START + reason] += amount

    def transmit(self, peer: Peer, endpoint: Endpoint, messages: Sequence[bytes], now: float) -> None:
        """Queue authenticated messages to a peer and count them."""
        self.transmit_unaccounted(endpoint, messages)
        self.counters[peer.slot + SENT_BYTES] += sum(map(len, messages))
        any_authenticated_sent(peer, self.counters, now)

    def transmit_unaccounted(self, endpoint: Endpoint, messages: Sequence[bytes]) -> None:
        """Queue messages outside any session, which are cookie replies, and count them in the totals only."""
        for first in range(0, len(messages), BATCH_PACKETS_MAX):
            batch = list(messages[first : first + BATCH_PACKETS_MAX])
            self.transmits.append(Transmit(endpoint, batch))
            self.counters[Total.SENT_DATAGRAMS] += len(batch)
            self.counters[Total.SENT_BYTES] += sum(map(len, batch))

    def try_record(self, change: Change) -> bool:
        """Record a change that may be lost at the price of some work; return whether the records could take it."""
        try:
            self.record(change)
        except StorageError:  # the recorder counts it
            return False
        return True

    # --- Peers ---

    def allocate_slot(self, peer: Peer) -> None:
        """Allocate and record a peer's slot, unless it has one; raises StorageError, with nothing changed."""
        if not peer.slot:
            slot = self.slots.allocate()
            try:
                self.record(PeerSeen(peer.public_key, slot))
            except StorageError:
                self.slots.release(slot)
                raise
            self._slot_owners[slot] = peer
            peer.slot = slot

    def set_endpoint(self, peer: Peer, endpoint: Endpoint | None) -> None:
        """Set a peer's endpoint, or None for not known, without recording it."""
        if peer.endpoint is not None and peer.endpoint.remote != peer.remembered:
            self._forget_remote(peer, peer.endpoint.remote)
        self.endpoint_changes += 1
        peer.endpoint = endpoint
        if endpoint is not None:
            self.by_remote[endpoint.remote] = peer

    def remember_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Set and record the endpoint at which a peer was in an earlier run."""
        peer.remembered = endpoint.remote
        self.move_endpoint(peer, endpoint, now)

    def forget_remembered(self, peer: Peer) -> None:
        """Forget where a peer was expected: a session has confirmed where it is.

        An initiation alone does not: to a device that lost its state it may be a replay, from any address.
        """
        remembered, peer.remembered = peer.remembered, None
        if remembered is not None and (peer.endpoint is None or peer.endpoint.remote != remembered):
            self._forget_remote(peer, remembered)

    def _forget_remote(self, peer: Peer, remote: tuple[bytes, int, int]) -> None:
        if self.by_remote.get(remote) is peer:
            del self.by_remote[remote]

    def move_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Set and record the endpoint at which a peer was just authenticated (roaming, paper, section 2.1).

        A peer that alternates between endpoints is recorded once in ENDPOINT_RECORD_INTERVAL. After a crash in between,
        its packets go to an endpoint that it had a moment ago, until it sends its next packet.
        """
        if peer.endpoint == endpoint:
            peer.endpoint = endpoint  # the fast path compares identities first
            return
        if peer.endpoint is not None and peer.endpoint.remote != endpoint.remote:
            self.counters[Total.ENDPOINT_MOVES] += 1
        self.set_endpoint(peer, endpoint)
        if now < peer.endpoint_recorded_at + ENDPOINT_RECORD_INTERVAL:
            peer.endpoint_record_at = peer.endpoint_recorded_at + ENDPOINT_RECORD_INTERVAL
            self.moved.add(peer)
        else:
            self.record_endpoint(peer, now)

    def record_endpoint(self, peer: Peer, now: float) -> None:
        """Record a peer's endpoint, if it is known; later, where the records cannot take it now."""
        peer.endpoint_recorded_at, peer.endpoint_record_at = now, NEVER
        self.moved.discard(peer)
        if peer.endpoint is not None and not self.try_record(PeerEndpoint(peer.public_key, peer.endpoint)):
            peer.endpoint_record_at = now + ENDPOINT_RECORD_INTERVAL
            self.moved.add(peer)

    def clear_source(self, peer: Peer, now: float) -> None:
        """Forget the local address of a peer's endpoint: the route may have changed, so the kernel chooses it."""
        if peer.endpoint is not None:
            self.move_endpoint(peer, Endpoint(*peer.endpoint.remote), now)

    # --- Keypairs ---

    def create_keypair(
        self, peer: Peer, keys: TransportKeys, indices: tuple[int, int], initiator: bool, now: float
    ) -> PeerKeypair:
        """Return a keypair with a new slot, not yet installed; indices: the local one and the peer's, 32 bits each.

        Raises StorageError when all slots are in use.
        """
        local, remote = indices
        slot = self.slots.allocate()
        state = KeypairState(local, remote, keys.send_key, keys.receive_key, now, initiator, slot)
        keypair = self._slot_owners[slot] = Keypair(state, peer, self.counters)
        return keypair

    def rotate(self, peer: Peer, rotation: Callable[[], None]) -> None:
        """Change a peer's keypairs by `rotation`, record the outcome, and release the keypairs that it removed.

        Raises StorageError, with the peer's keypairs as before, and the slot of a new one released.
        """
        roles, before = (peer.older, peer.previous, peer.current, peer.next), peer.keypairs
        rotation()
        after = peer.keypairs
        try:
            self.record(peer.keypairs_change())
        except StorageError:
            peer.older, peer.previous, peer.current, peer.next = roles
            for keypair in after:
                if keypair not in before:
                    self._release_slot(keypair.state.slot, keypair)
            raise
        self.session_count.note(peer)
        for keypair in after:
            self.indices.claim(keypair.state.local_index, keypair)
        for keypair in before:
            if keypair not in after:
                self._let_go(keypair)

    def forget_keys(self, peer: Peer) -> None:
        """Forget a peer's keypairs (paper, section 6.3); a handshake in flight continues."""

        def clear() -> None:
            peer.older = peer.previous = peer.current = peer.next = None

        if peer.keypairs:
            self.rotate(peer, clear)

    def _let_go(self, keypair: PeerKeypair) -> None:
        """Free a keypair's index and slot unless another owns them: a successor may have allocated the slot again."""
        if self.indices.get(keypair.state.local_index) is keypair:
            self.indices.release(keypair.state.local_index)
        self._release_slot(keypair.state.slot, keypair)

    def _release_slot(self, slot: int, owner: PeerKeypair | Peer | UnknownPeer) -> None:
        if self._slot_owners.get(slot) is owner:
            del self._slot_owners[slot]
            self.slots.release(slot)

    # --- Handshakes that this device started ---

    def begin_handshake(self, pending: PendingHandshake) -> None:
        """Record an initiation about to be sent, and make it the one that a response may answer.

        Raises StorageError, with nothing changed.
        """
        peer = pending.peer
        self.record(pending.change())
        self._supersede_handshake(peer)
        peer.handshake = pending
        self.indices.claim(pending.state.local_index, pending)

    def end_handshake(self, peer: Peer) -> None:
        """Forget the handshake in flight, if any, because it was answered or given up."""
        if peer.handshake is not None:
            # A successor that finds it in flight starts another one, which harms nothing.
            self.try_record(no_handshake(peer.public_key))
            self._release_handshake(peer)

    def answer_handshake(self, pending: PendingHandshake) -> None:
        """Forget a handshake that was answered, and the earlier ones.

        Responses to the later ones are still accepted: the peer may have answered them as well, and then it knows only
        the session of the last one.
        """
        peer = pending.peer
        if peer.handshake is not None:
            self.try_record(no_handshake(peer.public_key))
            self._supersede_handshake(peer)
        if pending in peer.superseded:
            later = peer.superseded.index(pending) + 1
            for earlier in peer.superseded[:later]:
                self._release_index(earlier)
            peer.superseded = peer.superseded[later:]

    def _supersede_handshake(self, peer: Peer) -> None:
        """Replace the handshake in flight by a newer one; on a link its response is still accepted.

        A server that was away for a moment finds all initiations of that time in its queue, and answers the first.
        """
        pending, peer.handshake = peer.handshake, None
        if pending is None:
            return
        superseded = (*peer.superseded, pending)
        kept = superseded[-SUPERSEDED_MAX:] if peer.link is not None else ()
        for forgotten in superseded[: len(superseded) - len(kept)]:
            self._release_index(forgotten)
        peer.superseded = kept

    def _release_handshake(self, peer: Peer) -> None:
        self._supersede_handshake(peer)
        for pending in peer.superseded:
            self._release_index(pending)
        peer.superseded = ()

    def _release_index(self, pending: PendingHandshake) -> None:
        if self.indices.get(pending.state.local_index) is pending:
            self.indices.release(pending.state.local_index)

    # --- Restoring: the same tables, set from records without recording ---

    def restore_endpoint(self, peer: Peer, endpoint: Endpoint | None) -> None:
        """Restore a peer's endpoint."""
        self.set_endpoint(peer, endpoint)
        peer.endpoint_record_at = NEVER
        self.moved.discard(peer)

    def _claim_slot(self, slot: int, owner: PeerKeypair | Peer | UnknownPeer) -> None:
        self.slots.claim(slot)
        before = self._slot_owners.get(slot)
        self._slot_owners[slot] = owner
        if isinstance(before, Keypair) and before.peer.older is before and before is not owner:
            self._forget_older(before.peer)  # a release that does not know of it has allocated its slot again

    def restore_slot(self, peer: Peer, slot: int) -> None:
        """Restore a peer's slot."""
        if peer.slot != slot:
            self._release_slot(peer.slot, peer)
        self._claim_slot(slot, peer)
        peer.slot = slot

    def restore_keypairs(self, peer: Peer, states: Sequence[KeypairState | None]) -> None:
        """Restore a peer's keypairs; states: older, previous, current and next.

        Expired keypairs are restored too: the records name their slots, and the peer's timers will forget them.
        """
        before = {keypair.state.local_index: keypair for keypair in peer.keypairs}
        restored: list[PeerKeypair | None] = []
        for state in states:
            if state is None:
                restored.append(None)
                continue
            known = before.get(state.local_index)
            restored.append(
                known if known is not None and known.state == state else Keypair(state, peer, self.counters)
            )
            if state.is_initiator:  # the initiation was sent before that
                peer.initiation_sent_at = max(peer.initiation_sent_at, state.created_at)
        peer.older, peer.previous, peer.current, peer.next = restored
        for keypair in before.values():
            if keypair not in restored:
                self._let_go(keypair)
        if peer.older is not None and self._slot_owners.get(peer.older.slot, peer.older) is not peer.older:
            peer.older = None  # as in `_claim_slot`
        for keypair in peer.keypairs:
            self._claim_slot(keypair.state.slot, keypair)
            self.indices.claim(keypair.state.local_index, keypair)
        self.session_count.note(peer)
        self._forget_if_answered(peer)

    def _forget_older(self, peer: Peer) -> None:
        older, peer.older = peer.older, None
        if older is not None and self.indices.get(older.state.local_index) is older:
            self.indices.release(older.state.local_index)

    def restore_handshake(self, peer: Peer, pending: PendingHandshake | None) -> None:
        """Restore the handshake in flight, or that there is none."""
        self._release_handshake(peer)
        peer.handshake = pending
        if pending is not None:
            peer.initiation_sent_at = max(peer.initiation_sent_at, pending.sent_at)
            self._forget_if_answered(peer)
        if peer.handshake is not None:
            peer.handshake_wanted_at = NEVER
            self.indices.claim(peer.handshake.state.local_index, peer.handshake)

    def _forget_if_answered(self, peer: Peer) -> None:
        """Forget a handshake whose index is a keypair's: the recorder died between the two records of the answer."""
        pending = peer.handshake
        if pending is not None and any(k.state.local_index == pending.state.local_index for k in peer.keypairs):
            peer.handshake = None
            self._answered.add(peer)

    def record_answered(self) -> None:
        """Record the end of the handshakes that were found answered while restoring."""
        for peer in self._answered:
            if peer.handshake is None:
                self.try_record(no_handshake(peer.public_key))
        self._answered.clear()

    def restore_removal(self, peer: Peer) -> None:
        """Reset a peer that another generation removed: that generation may have allocated its slots again."""
        self.restore_handshake(peer, None)
        self.restore_keypairs(peer, (None, None, None, None))
        self._release_slot(peer.slot, peer)
        peer.slot = 0
        self.restore_endpoint(peer, peer.settings.endpoint)
        peer.staged.clear()
        peer.staged_serial = peer.staged_more = 0

    # --- Peers that are not configured ---

    def restore_unknown_peer(self, public_key: bytes, change: Change) -> None:
        """Keep the slots that a change of an unknown peer names, in place of those of the last change of its kind."""
        unknown = self.unknown_peers.setdefault(public_key, UnknownPeer())
        if isinstance(change, PeerSeen):
            self._rename_slots(unknown, "peer", {change.slot})
        elif isinstance(change, PeerKeypairs):
            older = change.older.slot if change.older is not None else 0
            reused = {older} if self._slot_owners.get(older, unknown) is not unknown else set()  # as in `_claim_slot`
            self._rename_slots(unknown, "keypairs", {state.slot for state in change.states} - reused)

    def remove_peer(self, peer: Peer) -> None:
        """Forget a peer at once: it becomes an unknown one, whose slots stay in use until its removal is recorded."""
        peer.is_removed = True
        self._release_handshake(peer)
        slots = {"peer": {peer.slot} - {0}, "keypairs": {keypair.state.slot for keypair in peer.keypairs}}
        for keypair in peer.keypairs:
            if self.indices.get(keypair.state.local_index) is keypair:
                self.indices.release(keypair.state.local_index)
        peer.older = peer.previous = peer.current = peer.next = None
        self.session_count.note(peer)
        peer.slot = 0  # for another peer may get it
        self.set_endpoint(peer, None)
        self.forget_remembered(peer)
        self.moved.discard(peer)
        self._answered.discard(peer)
        del self.peers[peer.public_key]
        unknown = self.unknown_peers[peer.public_key] = UnknownPeer()
        for kind, named in slots.items():
            self._rename_slots(unknown, kind, named)

    def forget_unknown_peers(self) -> Iterator[None]:
        """Record the removal of the unknown peers; yield after every UNKNOWN_PEERS_PER_SLICE."""
        for number, public_key in enumerate(list(self.unknown_peers), start=1):
            self.record_removal(public_key)  # else the next generation tries again
            if number % UNKNOWN_PEERS_PER_SLICE == 0:
                yield

    def record_removal(self, public_key: bytes) -> bool:
        """Record the removal of an unknown peer, and forget it; return False where the records cannot take that."""
        # Another generation may have removed it.
        if public_key in self.unknown_peers:
            if not self.try_record(PeerRemoved(public_key)):
                return False
            self.forget_unknown_peer(public_key)
        return True

    def forget_unknown_peer(self, public_key: bytes) -> None:
        """Free an unknown peer's slots; if this process is the recorder, it must have recorded the removal before."""
        unknown = self.unknown_peers.pop(public_key, None)
        if unknown is not None:
            for kind in unknown.slots:
                self._rename_slots(unknown, kind, set())

    def _rename_slots(self, unknown: UnknownPeer, kind: str, slots: set[int]) -> None:
        for slot in unknown.slots.get(kind, set()) - slots:
            self._release_slot(slot, unknown)
        for slot in slots:
            self._claim_slot(slot, unknown)
        unknown.slots[kind] = slots
