"""Links among liars: forged errors and datagrams, servers that mean harm, clocks that are wrong."""

from collections import Counter

import pytest

from oxidize.protocol.constants import REKEY_TIMEOUT, TYPE_INITIATION
from oxidize.protocol.link import ERROR_BURST_SECS, ERROR_INTERVAL_SECS, RESEND_AGE_SECS_MAX, LinkPolicy
from oxidize.protocol.timers import shortest_retry_secs
from oxidize.protocol.words import ROUND_TRIP_NS, LinkState, Total
from tests.unit.test_link import TICK, linked, payloads, sent, state
from tests.world import Host, World, lose_everything

HOUR = 3600.0


def held_response(world: World, client: Host, server: Host) -> list[bytes]:
    """Let the client begin a handshake; return the response, which is still on its way."""
    world.run(1.0)
    client.device.note_network_change(world.now)
    world.carry()
    return [datagram for transmit in server.take_transmits() for datagram in transmit.datagrams]


# --- Clocks ---


def test_a_response_that_waited_for_a_suspended_client_is_no_measure_of_the_way():
    world = World()
    client, server = linked(world)
    response = held_response(world, client, server)
    world.now += 8 * HOUR
    client.receive(response, server.endpoint)
    assert state(client, server) == LinkState.CONNECTED
    assert shortest_retry_secs(client.peer(server), client.slots.words) <= REKEY_TIMEOUT


@pytest.mark.parametrize("known_ns", [0, 1])
def test_an_initiation_that_a_predecessors_clock_says_is_still_to_come_can_be_answered(known_ns: int):
    world = World()
    client, server = linked(world)
    response = held_response(world, client, server)
    peer = client.peer(server)
    assert peer.handshake is not None
    peer.handshake.sent_at = world.now + 50.0
    client.slots.words[peer.slot + ROUND_TRIP_NS] = known_ns
    client.receive(response, server.endpoint)
    assert peer.handshake is None
    assert client.slots.words[peer.slot + ROUND_TRIP_NS] <= known_ns


# --- After the end ---


@pytest.mark.parametrize("event", ["network change", "error", "packet"])
def test_a_link_that_has_failed_comes_to_rest_whatever_happens(event: str):
    world = World()
    client, server = linked(world, LinkPolicy(retries_max=2))
    notes: list[LinkState] = []
    client.device.watch_links(lambda _, new, reason: notes.append(new))
    client.send(server)
    world.exchange(lose_everything)
    world.run(60.0, lose_everything)
    if event == "network change":
        client.device.note_network_change(world.now)
    elif event == "error":
        client.device.note_unreachable(server.endpoint.remote, world.now, refused=True)
    else:
        client.send(server)
    looks = 0
    while (due := client.device.next_deadline()) is not None and due < world.now + 60.0:
        world.now = max(world.now, due)
        client.handle_timeout()
        client.take_transmits()
        looks += 1
        assert looks < 100, "it never rests"
    assert notes == [LinkState.RECONNECTING, LinkState.FAILED]
    assert not client.peer(server).staged


# --- Forged errors ---


def storm(world: World, client: Host, server: Host, answered: bool) -> int:
    """Let somebody forge errors for ten seconds, under traffic; return how many packets the client sent."""
    number = 0
    for moment in range(1000):
        if moment % 5 == 0:
            client.send(server, number.to_bytes(4, "big"))
            number += 1
            world.exchange()
            if answered:
                server.send(client)
        client.device.note_unreachable(server.endpoint.remote, world.now, refused=moment % 2 == 0)
        world.exchange()
        world.run(TICK)
    return number


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "one-way"])
def test_forged_errors_at_any_rate_cost_pauses_and_neither_packets_nor_many_handshakes(answered: bool):
    world = World()
    client, server = linked(world)
    count = storm(world, client, server, answered)
    world.run(2.0)
    assert state(client, server) == LinkState.CONNECTED
    copies = Counter(payloads(server))
    assert len(copies) == count, "all arrived"
    assert max(copies.values()) <= 5, "for a first silence, and for as many errors as are heeded while it is young"
    assert sum(copies.values()) - count <= client.total(Total.RESENT_PACKETS) <= count + 40
    assert client.total(Total.OUTAGES) == client.total(Total.RECONNECTS) <= 13
    assert sent(world, client, TYPE_INITIATION) <= 4 * 14


def test_a_few_errors_are_heeded_at_once_and_then_one_in_a_while():
    world = World()
    client, server = linked(world)
    outages = []
    for _ in range(50):
        client.device.note_unreachable(server.endpoint.remote, world.now, refused=False)
        world.run(0.1)
        assert state(client, server) == LinkState.CONNECTED
        outages.append(client.total(Total.OUTAGES))
    assert outages[:3] == [1, 2, 3]
    assert outages[-1] <= 1 + (ERROR_BURST_SECS + 5.0) / ERROR_INTERVAL_SECS
    assert outages[-1] > outages[-15] > outages[-30]


def test_a_packet_is_not_sent_again_and_again_for_longer_than_it_is_young():
    world = World()
    client, server = linked(world)
    client.send(server, b"old")
    began = world.now
    for _ in range(5):
        world.exchange()
        client.device.note_unreachable(server.endpoint.remote, world.now, refused=False)
        world.run(0.9)
        link = client.peer(server).link
        assert link is not None
        link.errors_free_at = 0.0
    assert world.now > began + 2 * RESEND_AGE_SECS_MAX
    assert payloads(server) == [b"old"] * 3
