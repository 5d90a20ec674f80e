"""Timers of a device that affect each other, and their cost."""

import pytest

from oxidize.protocol.constants import (
    INITIATIONS_PER_TIMEOUT_MAX,
    KEEPALIVE_TIMEOUT,
    PEERS_PER_TIMEOUT_MAX,
    REKEY_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
    ZERO_KEYS_AFTER_TIME,
)
from oxidize.protocol.counters import DropReason, Total
from tests.support.network import World, connected, initiations, initiations_to, joined, lose_everything


def test_a_keepalive_may_require_a_new_keypair() -> None:
    world = World()
    client, _ = world.pair(keepalive=25.0)
    world.run(REKEY_AFTER_TIME + 25.0 + 1)
    assert client.total(Total.HANDSHAKES_INITIATOR) == 2


def test_a_new_session_cancels_the_initiation_that_was_held_back() -> None:
    world = World()
    client, server = joined(world.host(), world.host())
    client.send(server)
    world.exchange()
    client.peer(server).current = client.peer(server).previous = None
    client.send(server)  # held back: the last initiation is too recent
    assert client.peer(server).handshake_wanted_at < world.now + REKEY_TIMEOUT + 1
    server.peer(client).current = server.peer(client).previous = None
    world.now += 1
    server.send(client)
    world.exchange()
    world.run(REKEY_TIMEOUT + 1)
    assert initiations(world) == 2
    assert len(server.delivered) == 2


def test_a_device_that_still_sends_packets_does_not_give_up_its_handshake() -> None:
    world = World()
    client, server = world.pair()
    for _ in range(12):
        client.send(server)
        world.run(10, lose_everything)
    assert client.dropped(DropReason.HANDSHAKE_TIMED_OUT) == 0
    world.run(REKEY_ATTEMPT_TIME, lose_everything)
    assert client.dropped(DropReason.HANDSHAKE_TIMED_OUT) == 12


def test_packets_that_keep_coming_do_not_postpone_the_keepalive() -> None:
    world = World()
    client, server = connected(world)
    for _ in range(int(KEEPALIVE_TIMEOUT)):
        client.send(server)
        world.exchange()
        world.run(1.0)
    world.run(0.1)
    assert server.total(Total.SENT_KEEPALIVES) == 1


def test_packets_that_keep_leaving_do_not_postpone_the_handshake() -> None:
    world = World()
    client, server = connected(world)
    for _ in range(int(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX) + 1):
        client.send(server)
        world.run(1.0, lose_everything)
    assert initiations(world) == 2


def test_keys_are_kept_for_zero_keys_after_time_of_the_newest() -> None:
    world = World()
    client, server = connected(world)
    world.now += REKEY_AFTER_TIME
    client.send(server)
    world.exchange()
    assert initiations(world) == 2
    world.run(ZERO_KEYS_AFTER_TIME - 1)
    assert client.peer(server).keypairs
    world.run(2)
    assert not client.peer(server).keypairs


def test_silence_lets_the_kernel_choose_the_local_address_again() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.exchange()
    here = client.endpoint._replace(local_address=bytes([203, 0, 113, 9]), local_interface=3)
    client.send(server)
    server.device.receive_datagrams(client.device.take_transmits()[0].datagrams, here, world.now)
    server.send(client)
    assert server.device.take_transmits()[0].endpoint == here
    world.now += KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + 1
    server.device.handle_timeout(world.now)
    assert server.device.take_transmits()[0].endpoint == client.endpoint


def test_few_deadlines_of_a_peer_are_scheduled_under_long_traffic() -> None:
    world = World()
    client, server = world.pair()
    for _ in range(60):
        client.send(server)
        world.exchange()
        world.run(20)
    for host in (client, server):
        assert len(host.device._schedule._due) <= 6


def test_staged_packets_of_all_peers_have_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxidize.protocol.staging.STAGED_BYTES_MAX", 3000)
    world = World()
    client, *servers = (world.host() for _ in range(3))
    for server in servers:
        client.know(server)
        server.know(client)
    client.start()
    for server in servers:
        server.start()
        client.send(server, bytes(980), count=2)
    assert client.dropped(DropReason.STAGED_OVERFLOW) == 1
    world.exchange()
    assert [len(server.delivered) for server in servers] == [2, 1]
    client.peer(servers[0]).current = None
    client.send(servers[0], bytes(980), count=3)
    assert client.dropped(DropReason.STAGED_OVERFLOW) == 1


def test_neither_of_two_simultaneous_handshakes_is_repeated() -> None:
    world = World()
    client, server = joined(world.host(), world.host())
    client.send(server)
    server.send(client)
    world.carry()
    world.carry(lambda source, _, datagram: [datagram] if source == server.endpoint else [])  # one response is lost
    world.exchange()
    world.run(REKEY_TIMEOUT + 1)
    assert initiations(world) == 2
    assert len(server.delivered) == len(client.delivered) == 1


def test_handshakes_with_many_peers_are_begun_one_at_a_time_and_keepalives_sent_a_few_at_a_time() -> None:
    world = World()
    hub = world.host()
    others = [world.host() for _ in range(PEERS_PER_TIMEOUT_MAX + 4)]
    for other in others:
        hub.know(other, keepalive=25.0)
        other.know(hub)
        other.start()
    hub.start()
    hub.device.handle_timeout(world.now)
    assert initiations_to(hub) == [others[0].endpoint]
    for _ in others[1:]:
        hub.device.handle_timeout(world.now)
        assert len(hub.take_transmits()) == INITIATIONS_PER_TIMEOUT_MAX
    due = hub.device.next_deadline()
    assert due is None or due > world.now
    for other in others:
        other.send(hub)
    world.exchange()
    world.now += 25.0
    for count in (PEERS_PER_TIMEOUT_MAX, 4):
        hub.device.handle_timeout(world.now)
        assert len(hub.take_transmits()) == count
