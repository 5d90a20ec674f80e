"""Links among liars: forged errors and datagrams, servers that mean harm, clocks that are wrong."""

import pytest

from oxidize.protocol.constants import REKEY_TIMEOUT
from oxidize.protocol.link import LinkPolicy
from oxidize.protocol.timers import shortest_retry_secs
from oxidize.protocol.words import ROUND_TRIP_NS, LinkState
from tests.unit.test_link import linked, state
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
