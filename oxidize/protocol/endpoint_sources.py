"""Endpoints that come from elsewhere than from a peer's own messages: the configuration, and an earlier run.

The rule: the newest word counts. An authentic message of the peer moves its endpoint, and the records keep that for
every later generation; but an endpoint that the operator has changed since is newer than any record. So the records
also say what was configured when they were made.
"""

from collections.abc import Iterator
from hashlib import blake2s

from oxidize.protocol.changes import ConfiguredEndpoints, PeerEndpoint
from oxidize.protocol.constants import ENDPOINT_DIGEST_SIZE
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.protocol.session_table import SessionTable

PEERS_PER_SLICE = 64  # recorded between two batches: 0.2 ms, and 2 ms where the endpoint of each was changed


def digest_of(text: str) -> bytes:
    """Return what the records keep of a configured endpoint, ENDPOINT_DIGEST_SIZE bytes."""
    return blake2s(text.encode(), digest_size=ENDPOINT_DIGEST_SIZE).digest()


class EndpointSources:
    """Compares, records and uses the endpoints that a peer's own messages have not told."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._is_recording = False
        self._is_due = False  # what is configured, or looked up, differs from what was recorded last

    def use_cached(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Use a peer's endpoint from an earlier run, unless a newer one is known."""
        if peer.endpoint is None:
            self._table.remember_endpoint(peer, endpoint, now)

    def record_configured(self) -> None:
        """Record the configured endpoints and those that they have set, unless the records have them.

        A changed name is recorded only when it was looked up: until then the next generation must see the change too.
        """
        for _ in self.record_configured_in_slices():
            pass

    def record_configured_in_slices(self) -> Iterator[None]:
        """Like `record_configured`, but yield after every PEERS_PER_SLICE peers.

        Of two at a time the first one begins once more, and the second one ends at once: the newest is recorded last.
        """
        self._is_due = True
        if self._is_recording:
            return
        self._is_recording = True
        try:
            while self._is_due:
                self._is_due = False
                yield from self._record()
        finally:
            self._is_recording = False

    def _record(self) -> Iterator[None]:
        table, digests, moved = self._table, {}, []
        for number, (key, peer) in enumerate(list(table.peers.items()), start=1):
            if number % PEERS_PER_SLICE == 0:
                yield
            text = peer.settings.configured_endpoint
            if not text:
                continue
            if not peer.is_reconfigured:
                digests[key] = digest_of(text)
            elif peer.settings.endpoint is not None:
                if peer.endpoint is not None and not table.try_record(PeerEndpoint(key, peer.endpoint)):
                    return  # the next generation compares again
                digests[key] = digest_of(text)
                moved.append(peer)
            elif key in (table.configured or {}):
                digests[key] = (table.configured or {})[key]
        if digests == table.configured or not table.try_record(ConfiguredEndpoints(digests)):
            return
        table.configured = digests
        for peer in moved:
            peer.is_reconfigured = False


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
