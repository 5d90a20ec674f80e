"""Peers that a running device loses, and gets again: nothing of them is used, and no slot has two owners."""

import pytest

from oxidize.errors import StorageError
from oxidize.protocol.changes import Change, PeerRemoved
from oxidize.protocol.counters import DropReason
from tests.support.network import Host, World, connected, packet


def remove(host: Host, other: Host) -> bool:
    host.device.membership.remove(host.peer(other))
    return host.device.membership.record_removal(other.public_key)


def used_slots(host: Host) -> set[int]:
    return {slot for change in host.folded() for slot in _slots(change)}


def _slots(change: Change) -> list[int]:
    slot = getattr(change, "slot", None)
    return [slot] if slot else [state.slot for state in getattr(change, "states", [])]


def test_the_session_of_a_removed_peer_ends_and_its_handshakes_are_refused() -> None:
    world = World()
    client, server = connected(world)
    assert remove(server, client)
    client.send(server)
    world.exchange()
    assert server.delivered == []
    assert server.drops() == {"UNKNOWN_INDEX": 1}
    world.run(30)  # silence: the client asks for a new session, again and again
    client.send(server)
    world.run(10)
    assert server.delivered == []
    assert server.dropped(DropReason.UNKNOWN_PEER) > 2
    assert server.device.live_sessions(world.now) == 0
    assert (server.folded(), server.take_transmits()) == ([], [])


def test_packets_to_a_removed_peer_are_answered_or_go_to_the_network_around_it() -> None:
    world = World()
    client, server = connected(world)
    remove(server, client)
    server.send(client)
    assert (server.dropped(DropReason.NO_ROUTE), len(server.device.undelivered.take_answers())) == (1, 1)


def test_nothing_of_a_handshake_in_flight_is_left() -> None:
    world = World()
    client, server = world.host(), world.host()
    server.know(client, keepalive=5.0)
    client.start()
    server.start()
    server.send(client, count=3)
    server.take_transmits()
    assert remove(server, client)
    world.run(300)
    assert (server.take_transmits(), server.folded()) == ([], [])
    assert server.dropped(DropReason.NO_ROUTE) == 3


def test_a_peer_that_is_added_again_shakes_hands() -> None:
    world = World()
    client, server = connected(world)
    remove(server, client)
    assert server.device.membership.admit(server.peers[0]) is not None
    world.run(20)
    client.send(server, b"again")
    world.run(20)
    client.send(server, b"again")
    world.exchange()
    assert server.delivered[-1] == packet(client.inner, server.inner, b"again")
    server.replace()
    client.send(server, b"restored")
    world.exchange()
    assert server.delivered[-1] == packet(client.inner, server.inner, b"restored")


def test_a_successor_that_restores_meanwhile_has_the_peer_without_a_session() -> None:
    world = World()
    client, server = connected(world)
    server.offer()
    remove(server, client)
    server.freeze()
    server.commit()
    assert server.device.live_sessions(world.now) == 0
    client.send(server)
    world.exchange()
    assert server.delivered == []


class FullHost(Host):
    is_full = False

    def record(self, change: Change) -> None:
        if self.is_full and isinstance(change, PeerRemoved):
            raise StorageError("made up")
        super().record(change)


def test_a_removal_that_cannot_be_recorded_counts_and_keeps_the_slots() -> None:
    world = World()
    client, server, other = world.host(), world.add(FullHost(world, 2)), world.host()
    for host in (client, other):
        host.know(server)
        server.know(host, reachable=False)
        host.start()
    server.start()
    client.send(server)
    world.exchange()
    taken = used_slots(server)
    server.is_full = True
    assert not remove(server, client)
    assert server.device.membership.admit(server.peers[0]) is None
    server.delivered.clear()
    client.send(server)
    other.send(server)
    world.exchange()
    assert server.delivered == [packet(other.inner, server.inner)]
    assert len(used_slots(server)) == len(taken) * 2, "a slot was given to another peer too early"
    server.is_full = False
    assert server.device.membership.record_removal(client.public_key)
    assert not used_slots(server) & taken


@pytest.mark.parametrize("is_restored", [True, False])
def test_a_removed_peer_is_not_found_at_its_endpoint(is_restored: bool) -> None:
    world = World()
    client, server = connected(world)
    if is_restored:
        server.replace()
    remove(server, client)
    client.send(server)
    world.exchange()
    assert server.take_transmits() == [], "an unknown index must not make the server ask for a session"
