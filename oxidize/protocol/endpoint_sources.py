"""Endpoints that come from elsewhere than from a peer's own messages: the configuration, and an earlier run.

The rule: the newest word counts. An authentic message of the peer moves its endpoint, and the records keep that for
every later generation; but an endpoint that the operator has changed since is newer than any record. So the records
also say what was configured when they were made.
"""

from hashlib import blake2s

from oxidize.protocol.changes import ConfiguredEndpoints, PeerEndpoint
from oxidize.protocol.constants import ENDPOINT_DIGEST_SIZE
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.protocol.session_table import SessionTable


def digest_of(text: str) -> bytes:
    """Return what the records keep of a configured endpoint, ENDPOINT_DIGEST_SIZE bytes."""
    return blake2s(text.encode(), digest_size=ENDPOINT_DIGEST_SIZE).digest()


class EndpointSources:
    """Compares, records and uses the endpoints that a peer's own messages have not told."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table

    def use_cached(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Use a peer's endpoint from an earlier run, unless a newer one is known."""
        if peer.endpoint is None:
            self._table.remember_endpoint(peer, endpoint, now)

    def record_configured(self) -> None:
        """Record the configured endpoints and those that they have set, unless the records have them.

        A changed name is recorded only when it was looked up: until then the next generation must see the change too.
        """
        table, digests = self._table, {}
        for key, peer in table.peers.items():
            text = peer.settings.configured_endpoint
            if not text:
                continue
            if not peer.is_reconfigured:
                digests[key] = digest_of(text)
            elif peer.settings.endpoint is not None:
                if peer.endpoint is not None and not table.try_record(PeerEndpoint(key, peer.endpoint)):
                    return  # the next generation compares again
                digests[key] = digest_of(text)
            elif key in (table.configured or {}):
                digests[key] = (table.configured or {})[key]
        if digests == table.configured or not table.try_record(ConfiguredEndpoints(digests)):
            return
        table.configured = digests
        for peer in table.peers.values():
            peer.is_reconfigured = peer.is_reconfigured and peer.settings.endpoint is None


def restore_recorded(table: SessionTable, peer: Peer, endpoint: Endpoint) -> None:
    """Restore a peer's endpoint as recorded, unless the configuration has a newer one."""
    if not peer.is_reconfigured or peer.settings.endpoint is None:
        table.restore_endpoint(peer, endpoint)


def restore_configured(table: SessionTable, change: ConfiguredEndpoints) -> None:
    """Compare the configured endpoints with those of the records; one that has changed counts from now on."""
    table.configured = dict(change.digests)
    for key, peer in table.peers.items():
        text = peer.settings.configured_endpoint
        peer.is_reconfigured = bool(text) and table.configured.get(key) != digest_of(text)
        if peer.is_reconfigured and peer.settings.endpoint is not None:
            table.restore_endpoint(peer, peer.settings.endpoint)
