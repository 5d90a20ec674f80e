"""The peers that a device has: added at its start, and removed and added again while it runs.

The rule: from `remove` on nothing of a peer can be used - no key opens or seals, no handshake is answered or retried,
no packet is routed to it - whether or not the records could take the removal. Its slots stay in use until they have
taken it: a process that restores them finds no two owners of one.
"""

from collections.abc import Collection

from oxidize.errors import StateError
from oxidize.protocol.allowed_ips import AllowedIPs
from oxidize.protocol.constants import PEERS_MAX
from oxidize.protocol.counters import DropReason
from oxidize.protocol.noise import LocalIdentity, RemoteIdentity
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.schedule import Schedule
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.staging import Staging


class Membership:
    """Adds peers to the tables of a device, and removes them."""

    def __init__(
        self,
        identity: LocalIdentity,
        table: SessionTable,
        routes: AllowedIPs[Peer],
        staging: Staging,
        schedule: Schedule,
    ) -> None:
        self._identity = identity
        self._table = table
        self._routes = routes
        self._staging = staging
        self._schedule = schedule

    @property
    def unknown(self) -> Collection[bytes]:
        """The public keys of peers that the records have and the device has not."""
        return self._table.unknown_peers

    def add(self, settings: PeerSettings) -> Peer:
        """Add a peer that the device has not, and return it; raises StateError beyond PEERS_MAX peers."""
        table = self._table
        if len(table.peers) >= PEERS_MAX:
            raise StateError(f"peer {len(table.peers) + 1}: expected at most {PEERS_MAX} peers; use another server")
        peer = Peer(settings, RemoteIdentity(self._identity, settings.public_key, settings.preshared_key))
        table.peers[settings.public_key] = peer
        table.set_endpoint(peer, settings.endpoint)
        for network in settings.allowed_ips:
            self._routes.insert(network, peer)
        return peer

    def admit(self, settings: PeerSettings) -> Peer | None:
        """Add a peer while the device runs; None where the records cannot take now that it had been removed."""
        if not self.record_removal(settings.public_key):
            return None
        peer = self.add(settings)
        self._schedule.add(peer)
        return peer

    def remove(self, peer: Peer) -> None:
        """Remove a peer at once; `record_removal` records it."""
        for network in peer.settings.allowed_ips:
            self._routes.remove(network, peer)
        if dropped := self._staging.forget(peer):
            self._table.drop(DropReason.NO_ROUTE, dropped)
        self._table.remove_peer(peer)

    def record_removal(self, public_key: bytes) -> bool:
        """Record the removal of a peer, and free its slots; return False where the records cannot take it now."""
        return self._table.record_removal(public_key)
