"""A datagram of an unknown session: it causes one initiation, and moves no endpoint."""

from ipaddress import ip_address

import pytest

from oxidize.protocol.constants import REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, TYPE_INITIATION
from oxidize.protocol.counters import Total
from oxidize.protocol.crypto import public_key
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import message_type
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots
from tests.support.network import World, hub, initiations_to, lose_everything, stranger


@pytest.mark.parametrize("since_boot_secs", [0.0, 1.0, 5.0, 60.0, 89.0, 1000.0])
def test_one_stray_datagram_brings_one_initiation_at_any_time_after_the_boot(since_boot_secs: float) -> None:
    world = World()
    world.now = since_boot_secs
    server, _ = hub(world, 1)
    remote = Endpoint(bytes([198, 18, 0, 0]), 5000)
    server.receive([b"\4\0\0\0" + bytes([1, 2, 3, 4]) + bytes(24)], remote)
    count = len(initiations_to(server))
    server.replace()
    while (due := server.device.next_deadline()) is not None and due < since_boot_secs + 300.0:
        world.now = max(world.now, due)
        server.handle_timeout()
        count += len(initiations_to(server))
    assert count == 1


def test_a_successor_retries_for_packets_that_wait_although_a_stray_datagram_began_their_handshake() -> None:
    world = World()
    server, packets = hub(world, 1)
    (peer,) = server.peers
    server.receive([b"\4\0\0\0" + bytes([1, 2, 3, 4]) + bytes(24)], Endpoint(bytes([198, 18, 0, 0]), 5000))
    server.device.send_packets(packets, world.now)
    server.hand_over()
    server.take_transmits()
    while (due := server.device.next_deadline()) is not None and due < 1000.0 + REKEY_ATTEMPT_TIME / 2:
        world.now = max(world.now, due)
        server.handle_timeout()
    assert len(initiations_to(server)) > REKEY_ATTEMPT_TIME / 2 / (REKEY_TIMEOUT + 1)
    assert list(server.device.peers[peer.public_key].staged) == packets


@pytest.mark.parametrize(
    ("remote", "local"),
    [("198.18.0.0", "192.0.2.77"), ("2001:db8::1", "2001:db8:77::77"), ("fe80::1", "fe80::77")],
)
def test_an_initiation_because_of_an_unknown_index_leaves_from_where_the_datagram_came_to(
    remote: str, local: str
) -> None:
    world = World()
    server = world.host()
    known = Endpoint(ip_address(remote).packed, 5000, 3 if remote.startswith("fe80") else 0)
    server.peers.append(PeerSettings(public_key(world.random.randbytes(32)), endpoint=known))
    server.start()
    came = known._replace(local_address=ip_address(local).packed, local_interface=3)
    server.receive([b"\4\0\0\0" + bytes([1, 2, 3, 4]) + bytes(24)], came)
    (transmit,) = server.device.take_transmits()
    assert transmit.endpoint == came
    (peer,) = server.device.peers.values()
    assert peer.endpoint == known, "the datagram may be forged: it moves nothing"


def test_a_replay_after_lost_state_does_not_hide_the_client_from_the_answer_to_unknown_indices() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.exchange()
    recorded = next(datagram for _, _, datagram in world.log if message_type(datagram) == TYPE_INITIATION)
    server.slots, server.journal, server.live = ArraySlots(256), [], {}
    server.start()
    server.device.endpoints.use_cached(server.peer(client), client.endpoint, world.now)
    server.receive([recorded], stranger(6))
    assert server.peer(client).endpoint == stranger(6), "as in every WireGuard: no timestamp is known"
    world.carry(lose_everything)
    world.run(REKEY_TIMEOUT)
    assert not server.peer(client).has_session(world.now)
    client.send(server, b"in the old session")
    world.exchange()
    assert server.peer(client).endpoint == client.endpoint
    assert server.total(Total.HANDSHAKES_INITIATOR) == 1
    assert server.device._table.by_remote == {client.endpoint.remote: server.peer(client)}


def test_a_remembered_endpoint_is_forgotten_when_another_one_is_confirmed() -> None:
    world = World()
    client, server = world.pair()
    remembered = stranger(1)
    server.device.endpoints.use_cached(server.peer(client), remembered, world.now)
    client.send(server)
    world.carry()
    assert set(server.device._table.by_remote) == {remembered.remote, client.endpoint.remote}
    world.exchange()
    assert set(server.device._table.by_remote) == {client.endpoint.remote}
