"""Restore a device's tables from the changes that a predecessor recorded.

The rule: restoring only reads. It records nothing, sends nothing, zeroes no counter and allocates no slot, because
until the hand-off the counters and the journal belong to the predecessor.
"""

from oxidize.protocol.changes import (
    Change,
    ConfiguredEndpoints,
    CookieSecret,
    PeerChange,
    PeerCookie,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerStagedMore,
    PeerTimestamp,
)
from oxidize.protocol.cookie import CookieChecker
from oxidize.protocol.endpoint_sources import restore_configured, restore_recorded
from oxidize.protocol.noise import InitiatorState
from oxidize.protocol.peer import Peer, PendingHandshake
from oxidize.protocol.session_table import SessionTable


class RestoreReport:
    """The outcome of a restore: the number of changes applied, and of peers in them that are not configured."""

    def __init__(self) -> None:
        self.applied = 0
        self.unknown_peers = 0


def restore_change(table: SessionTable, cookies: CookieChecker, change: Change) -> Peer | None:
    """Apply one change; return its peer, or None for a change of the device itself or of an unknown peer."""
    match change:
        case CookieSecret():
            cookies.secret, cookies.secret_created_at = change.secret, change.created_at
            return None
        case ConfiguredEndpoints():
            restore_configured(table, change)
            return None
        case _:
            return _restore_of_peer(table, change)


def _restore_of_peer(table: SessionTable, change: PeerChange) -> Peer | None:
    peer = table.peers.get(change.peer)
    if peer is None:
        if isinstance(change, PeerRemoved):
            table.forget_unknown_peer(change.peer)
        else:
            table.restore_unknown_peer(change.peer, change)
        return None
    match change:
        case PeerSeen(slot=slot):
            table.restore_slot(peer, slot)
        case PeerKeypairs():
            table.restore_keypairs(peer, (change.older, change.previous, change.current, change.next))
            peer.last_handshake_unix = change.last_handshake_unix
        case PeerEndpoint(endpoint=endpoint):
            restore_recorded(table, peer, endpoint)
        case PeerTimestamp():
            peer.last_timestamp, peer.initiation_received_at = change.timestamp, change.received_at
        case PeerHandshake():
            _restore_handshake(table, peer, change)
        case PeerCookie():
            peer.cookie_jar.cookie, peer.cookie_jar.received_at = change.cookie, change.received_at
        case PeerStaged() | PeerStagedMore():
            _restore_staged(peer, change)
        case PeerRemoved():
            table.restore_removal(peer)
    return peer


def _restore_handshake(table: SessionTable, peer: Peer, change: PeerHandshake) -> None:
    pending = None
    if change.local_index:
        keys = (change.ephemeral_private, change.chaining_key, change.hash)
        state = InitiatorState(change.local_index, *keys)
        pending = PendingHandshake(peer, state, change.started_at, change.sent_at, change.retry_at, change.mac1)
        peer.cookie_jar.last_mac1 = change.mac1
    table.restore_handshake(peer, pending)


def _restore_staged(peer: Peer, change: PeerStaged | PeerStagedMore) -> None:
    if isinstance(change, PeerStaged):
        peer.staged = list(change.packets)
        peer.staged_serial, peer.staged_more = change.serial, 0
    elif change.serial and change.serial == peer.staged_serial:
        peer.staged.extend(change.packets[peer.staged_more :])  # each change has all packets of the one before
        peer.staged_more = len(change.packets)
    del peer.staged[: -peer.settings.staged_max]  # a predecessor may have been configured to keep more
