"""An endpoint that was changed in the configuration is newer than any record, and what the peer says later is newer."""

import pytest

from oxidize.protocol.changes import ConfiguredEndpoints, PeerSeen
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.endpoint_sources import PEERS_PER_SLICE, digest_of
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.state.records import Unknown, decode_change, encode_change
from tests.support.network import Host, World, packet

ROAMED, MOVED = Endpoint(bytes([198, 51, 100, 7]), 4242), Endpoint(bytes([203, 0, 113, 9]), 51820)


def configure(host: Host, endpoint: Endpoint | None) -> None:
    """Configure the endpoint of a host's only peer, as the file of the next generation does."""
    text = str(endpoint) if endpoint is not None else ""
    host.peers = [host.peers[0]._replace(endpoint=endpoint, configured_endpoint=text)]


def roamed_from(configured: Endpoint | None) -> tuple[World, Host, Host]:
    """Return a server whose peer was configured at one endpoint, and has come from another one."""
    world = World()
    client, server = world.host(), world.host()
    client.know(server)
    server.know(client)
    configure(server, configured)
    client.start()
    server.start()
    server.device.endpoints.record_configured()
    world.move(client, ROAMED)
    client.send(server)
    world.exchange()
    assert server.peer(client).endpoint == ROAMED
    return world, server, client


@pytest.mark.parametrize("configured", [None, Endpoint(bytes([192, 0, 2, 1]), 51820)])
def test_a_changed_or_added_endpoint_of_the_configuration_is_newer_than_the_records(
    configured: Endpoint | None,
) -> None:
    world, server, client = roamed_from(configured)
    configure(server, MOVED)
    server.replace()
    assert server.peer(client).endpoint == MOVED
    world.move(client, MOVED)
    server.send(client, b"at once")
    world.exchange()
    assert packet(server.inner, client.inner, b"at once") in client.delivered
    server.device.endpoints.record_configured()
    world.move(client, ROAMED)
    client.send(server)
    world.exchange()
    server.replace()
    assert server.peer(client).endpoint == ROAMED, "what the peer says after the change is newer"


def test_a_changed_endpoint_counts_also_where_its_generation_died_before_it_recorded_that() -> None:
    _, server, client = roamed_from(None)
    configure(server, MOVED)
    server.replace()
    server.replace()
    assert server.peer(client).endpoint == MOVED
    server.device.endpoints.record_configured()
    server.replace()
    assert server.peer(client).endpoint == MOVED, "recorded with the change"


@pytest.mark.parametrize("configured", [None, Endpoint(bytes([192, 0, 2, 1]), 51820)])
def test_an_unchanged_or_removed_endpoint_leaves_the_peer_where_it_was_last(configured: Endpoint | None) -> None:
    _, server, client = roamed_from(configured)
    server.replace()
    assert server.peer(client).endpoint == ROAMED
    configure(server, None)
    server.replace()
    assert server.peer(client).endpoint == ROAMED


def test_the_records_count_where_an_older_release_has_not_said_what_was_configured() -> None:
    _, server, client = roamed_from(None)
    server.journal = [change for change in server.journal if not isinstance(change, ConfiguredEndpoints)]
    del server.live["configured_endpoints", b""]
    configure(server, MOVED)
    server.replace()
    assert server.peer(client).endpoint == ROAMED


def test_a_changed_endpoint_counts_in_whatever_order_the_records_come() -> None:
    world, server, client = roamed_from(None)
    configure(server, MOVED)
    for changes in (server.folded(), server.folded()[::-1]):
        successor = server.make_device()
        successor.restore(sorted(changes, key=lambda change: not isinstance(change, PeerSeen)), world.now)
        assert successor.peers[client.public_key].endpoint == MOVED


def test_configured_endpoints_are_recorded_once_for_each_change() -> None:
    _, server, _ = roamed_from(MOVED)
    before = len(server.journal)
    server.device.endpoints.record_configured()
    server.replace()
    server.device.endpoints.record_configured()
    assert len(server.journal) == before


def host_of_many(count: int, first: Endpoint | None = MOVED) -> Host:
    """Return a host that has started, with configured endpoints; first: where the first one is, None for a name."""
    host = World().host()
    host.peers = [
        PeerSettings(public_key=number.to_bytes(32, "big"), configured_endpoint=f"192.0.2.1:{number}", endpoint=MOVED)
        for number in range(2, 2 + count)
    ]
    host.peers[0] = host.peers[0]._replace(endpoint=first)
    host.start()
    host.journal.clear()
    return host


def test_the_endpoints_of_many_peers_are_recorded_a_few_between_two_batches() -> None:
    host = host_of_many(5 * PEERS_PER_SLICE)
    for peer in host.device.peers.values():
        peer.is_reconfigured = True
    recorded = []
    for _ in host.device.endpoints.record_configured_in_slices():
        recorded.append(len(host.journal))
        host.journal.clear()
    assert [*recorded, len(host.journal)] == [PEERS_PER_SLICE - 1, *[PEERS_PER_SLICE] * 4, 1 + 1]
    assert not any(peer.is_reconfigured for peer in host.device.peers.values())


def test_what_is_looked_up_while_all_are_recorded_is_recorded_too() -> None:
    host = host_of_many(3 * PEERS_PER_SLICE, first=None)
    first = next(iter(host.device.peers.values()))
    first.is_reconfigured = True
    slices = host.device.endpoints.record_configured_in_slices()
    next(slices)
    first.is_reconfigured = False
    assert list(host.device.endpoints.record_configured_in_slices()) == [], "the one that has begun does it"
    assert not host.journal
    list(slices)
    *_, newest = host.journal
    assert isinstance(newest, ConfiguredEndpoints)
    assert newest.digests[first.public_key] == digest_of("192.0.2.1:2")
    before = len(host.journal)
    host.device.endpoints.record_configured()
    assert len(host.journal) == before, "each recording begins with what the last one has left"


def test_configured_endpoints_are_read_as_they_were_written() -> None:
    change = ConfiguredEndpoints({bytes([number]) * 32: bytes([number]) * 8 for number in range(3)})
    assert decode_change(encode_change(change), Unknown()) == change
    assert decode_change(encode_change(ConfiguredEndpoints({})), Unknown()) == ConfiguredEndpoints({})
