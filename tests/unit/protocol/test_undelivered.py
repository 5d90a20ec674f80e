"""Packets that no peer gets: which count as drops, which are answered, and how many."""

from ipaddress import ip_interface

import pytest

from oxidize.protocol.allowed_ips import packet_source
from oxidize.protocol.constants import REKEY_ATTEMPT_TIME, STAGED_PACKETS_MAX
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.undelivered import UNREACHABLES_BURST, UNREACHABLES_PER_SECOND
from tests.support.network import Host, World, connected, lose_everything, packet

NOBODY = "10.9.9.9"


def answers(host: Host) -> list[bytes]:
    """Return the addresses about which the host has had an answer from its device."""
    return [packet_source(answer) for answer in host.device.undelivered.take_answers()]


def address(text: str) -> bytes:
    return ip_interface(text).ip.packed


def test_the_sender_learns_that_no_peer_has_an_address() -> None:
    world = World()
    client, server = connected(world)
    client.device.send_packets(
        [packet(client.inner, server.inner), packet(client.inner, NOBODY), packet(client.inner, server.inner)],
        world.now,
    )
    assert answers(client) == [address(NOBODY)]
    assert answers(client) == []
    assert client.drops() == {"NO_ROUTE": 1}


def test_the_sender_learns_that_the_endpoint_of_a_peer_is_not_known() -> None:
    world = World()
    client, server = world.pair()
    server.send(client)
    assert answers(server) == [address(client.inner)]
    assert server.drops() == {"NO_ENDPOINT": 1}


def test_the_sender_learns_of_a_handshake_that_was_given_up() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, count=3)
    assert answers(client) == []
    world.run(REKEY_ATTEMPT_TIME - 1, lose_everything)
    assert answers(client) == []
    world.run(7, lose_everything)
    assert answers(client) == [address(server.inner)] * 3
    assert client.drops() == {"HANDSHAKE_TIMED_OUT": 3}


def test_packets_that_too_many_others_wait_before_are_not_answered() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, count=STAGED_PACKETS_MAX + 1)
    assert client.drops() == {"STAGED_OVERFLOW": 1}
    assert answers(client) == []


@pytest.mark.parametrize("group", ["224.0.0.22", "239.255.255.250", "255.255.255.255", "10.0.0.255"])
def test_multicast_and_broadcast_are_counted_apart_and_not_answered(group: str) -> None:
    world = World()
    client, _ = world.pair()
    client.device.undelivered.know_networks([ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")])
    client.device.send_packets([packet(client.inner, group), packet(client.inner, NOBODY)], world.now)
    assert client.total(Total.MULTICAST_PACKETS) == 1
    assert client.drops() == {"NO_ROUTE": 1}
    assert answers(client) == [address(NOBODY)]


def test_router_solicitations_of_the_kernel_are_no_drops() -> None:
    world = World()
    client, _ = world.pair()
    solicitation = bytes.fromhex("6000000000083aff") + address("fe80::1") + address("ff02::2") + bytes((133, *bytes(7)))
    client.device.send_packets([solicitation], world.now)
    assert client.total(Total.MULTICAST_PACKETS) == 1
    assert client.drops() == {}
    assert answers(client) == []


def test_a_network_of_two_addresses_has_no_broadcast_address() -> None:
    world = World()
    client, _ = world.pair()
    client.device.undelivered.know_networks([ip_interface("10.0.9.0/31")])
    client.device.send_packets([packet(client.inner, "10.0.9.1")], world.now)
    assert client.drops() == {"NO_ROUTE": 1}
    assert answers(client) == [address("10.0.9.1")]


def test_packets_from_a_broadcast_address_are_not_answered() -> None:
    world = World()
    client, _ = world.pair()
    client.device.undelivered.know_networks([ip_interface("10.0.0.1/24")])
    client.device.send_packets([packet("10.0.0.255", NOBODY)], world.now)
    assert client.drops() == {"NO_ROUTE": 1}
    assert answers(client) == []


def test_answers_have_a_budget() -> None:
    world = World()
    client, _ = world.pair()
    flood = [packet(client.inner, NOBODY)] * 64
    for _ in range(10):
        client.device.send_packets(flood, world.now)
    assert len(answers(client)) == UNREACHABLES_BURST
    world.now += 10 / UNREACHABLES_PER_SECOND
    client.device.send_packets(flood, world.now)
    assert len(answers(client)) == 10
    assert client.dropped(DropReason.NO_ROUTE) == 11 * 64


def test_packets_without_an_answer_cost_none_of_the_budget() -> None:
    world = World()
    client, _ = world.pair()
    error = bytes((3, 1, *bytes(34)))
    errors = [packet(client.inner, NOBODY, error)[:9] + b"\x01" + packet(client.inner, NOBODY, error)[10:]] * 64
    for _ in range(10):
        client.device.send_packets(errors, world.now)
    assert answers(client) == []
    client.device.send_packets([packet(client.inner, NOBODY)], world.now)
    assert answers(client) == [address(NOBODY)]


def test_bytes_from_the_tunnel_that_are_no_packet_are_dropped() -> None:
    world = World()
    client, _ = world.pair()
    client.device.send_packets([b"", b"\x45", bytes(20), b"\x60" + bytes(20)], world.now)
    assert client.drops() == {"NO_ROUTE": 4}
    assert answers(client) == []
