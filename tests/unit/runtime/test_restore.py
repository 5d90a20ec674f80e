"""Restoring a device: after a kill at any place, in a planned hand-off, and in a predecessor whose successor died."""

import pytest

from oxidize.protocol.changes import (
    CookieSecret,
    KeypairState,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    change_key,
)
from oxidize.protocol.constants import (
    ENDPOINT_RECORD_INTERVAL,
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_TIMEOUT,
    STAGED_PACKETS_MAX,
    TYPE_INITIATION,
    ZERO_KEYS_AFTER_TIME,
)
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import message_type
from tests.support.network import Host, World, connected, joined, lose_everything, packet


def sent(host: Host) -> list[int]:
    """Return the types of the messages that a host sends now."""
    return [message_type(datagram) for transmit in host.device.take_transmits() for datagram in transmit.datagrams]


def states(host: Host, other: Host) -> list[KeypairState | None]:
    peer = host.peer(other)
    roles = (peer.older, peer.previous, peer.current, peer.next)
    return [keypair.state if keypair is not None else None for keypair in roles]


# --- Sessions ---


def test_a_session_survives_its_process_on_either_side() -> None:
    world = World()
    client, server = connected(world)
    for host in (server, client, server):
        before = states(host, client if host is server else server)
        host.replace()
        assert states(host, client if host is server else server) == before
        client.send(server, b"to the server")
        server.send(client, b"to the client")
        world.exchange()
    assert server.delivered == [packet(client.inner, server.inner, b"to the server")] * 3
    assert client.delivered == [packet(server.inner, client.inner, b"to the client")] * 3
    assert client.total(Total.INITIATIONS_SENT) == 1


def test_restoring_records_and_sends_nothing() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    for host in (client, server):
        journal, counters = list(host.journal), bytes(host.slots.counters)
        device = host.make_device()
        device.restore(host.folded(), world.now)
        assert device.take_transmits() == []
        assert host.journal == journal
        assert bytes(host.slots.counters) == counters


def test_a_handshake_in_flight_is_answered_to_the_successor() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, b"staged")
    world.carry()
    client.hand_over()
    world.exchange()
    assert client.total(Total.HANDSHAKES_INITIATOR) == 1
    assert server.delivered == [packet(client.inner, server.inner, b"staged")]


def test_a_next_keypair_is_confirmed_to_the_successor() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.carry()
    world.carry()
    server.replace()
    world.exchange()
    assert server.total(Total.HANDSHAKES_RESPONDER) == 1
    assert len(server.delivered) == 1


def test_a_session_ends_by_the_age_of_its_newest_keypair_and_not_by_when_it_was_confirmed() -> None:
    world = World()
    client, server = world.pair()
    assert server.peer(client).session_ends_at(world.now) is None
    client.send(server)
    made_at = world.now
    world.carry()  # the response is on its way: the keypair is the server's next one
    assert server.peer(client).session_ends_at(world.now) == made_at + REJECT_AFTER_TIME
    world.now += 2.0
    world.exchange()
    assert server.peer(client).session_ends_at(world.now) == made_at + REJECT_AFTER_TIME
    server.replace()
    ends_at = server.peer(client).session_ends_at(world.now)
    assert ends_at == made_at + REJECT_AFTER_TIME
    world.now = ends_at
    assert server.peer(client).session_ends_at(world.now) is None
    assert not server.peer(client).has_session(world.now)


def test_a_replay_of_what_a_predecessor_received_is_refused() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    world.exchange()
    server.replace()
    for _, target, datagram in list(world.log):
        if target == server.endpoint:
            assert server.device.receive_datagrams([datagram], client.endpoint, world.now) == []
    assert server.dropped(DropReason.REPLAYED_COUNTER) == 2
    assert server.dropped(DropReason.REPLAYED_TIMESTAMP) == 1
    assert server.device.take_transmits() == []


def test_expired_keys_are_forgotten_by_the_successor_too_and_in_the_records() -> None:
    world = World()
    client, server = connected(world)
    world.now += REJECT_AFTER_TIME + 1
    server.replace()
    assert server.device.live_sessions(world.now) == 0
    assert server.device.receive_datagrams([world.log[-1][2]], client.endpoint, world.now) == []
    world.run(ZERO_KEYS_AFTER_TIME, lose_everything)
    assert server.peer(client).keypairs == ()
    assert PeerKeypairs(client.public_key, None, None, None, server.peer(client).last_handshake_unix) in server.folded()


def slot_of_current(host: Host, other: Host) -> int:
    current = host.peer(other).current
    assert current is not None
    return current.state.slot


def test_the_slot_of_an_expired_keypair_stays_its_own_as_long_as_the_records_name_it() -> None:
    world = World()
    client, server = connected(world)
    slot = slot_of_current(server, client)
    world.now += REJECT_AFTER_TIME + 1
    server.replace()
    client.send(server)
    world.exchange()
    assert slot_of_current(server, client) != slot


def test_an_initiator_keeps_to_rekey_timeout_across_generations() -> None:
    world = World()
    client, server = connected(world)
    client.replace()
    client.peer(server).current = None  # whatever the reason
    client.send(server)
    assert TYPE_INITIATION not in sent(client)
    world.run(REKEY_TIMEOUT + 0.1)
    assert len(server.delivered) == 1


def test_a_kill_between_the_two_records_of_an_answer_leaves_the_session_usable() -> None:
    world = World()
    client, server = connected(world)
    world.run(130)
    client.send(server)  # a rekey; so the records of keypairs stand before that of the handshake
    world.exchange()
    answered, change = next(
        (i, c) for i, c in reversed(list(enumerate(client.journal))) if isinstance(c, PeerHandshake)
    )
    assert change.local_index == 0
    client.cut_journal(answered)
    client.replace()
    assert client.peer(server).handshake is None
    assert client.journal[-1] == PeerHandshake(server.public_key, 0, b"", b"", b"", b"", 0.0, 0.0, 0.0)
    server.send(client, b"still there")
    world.exchange()
    assert client.delivered == [packet(server.inner, client.inner, b"still there")]
    assert client.total(Total.INITIATIONS_SENT) == 2


def test_cookies_of_a_predecessor_stay_good() -> None:
    world = World()
    client, server = joined(world.host(), world.host(under_load_handshakes=0))
    client.send(server)
    world.exchange()
    assert any(isinstance(change, CookieSecret) for change in server.journal)
    server.replace()
    client.replace()
    client.send(server)
    world.run(REKEY_TIMEOUT + 1)
    assert len(server.delivered) == 1
    assert server.total(Total.COOKIE_REPLIES_SENT) == 1


# --- Packets that wait for a session ---


def test_staged_packets_are_handed_over_and_arrive_once() -> None:
    world = World()
    client, server = world.pair()
    for number in range(STAGED_PACKETS_MAX):
        client.send(server, bytes([number]))
    predecessor = client.hand_over()
    world.exchange()
    assert server.delivered == [packet(client.inner, server.inner, bytes([n])) for n in range(STAGED_PACKETS_MAX)]
    client.thaw(predecessor)
    world.run(60)
    assert len(server.delivered) == STAGED_PACKETS_MAX


def test_staged_packets_arrive_once_when_the_successor_dies_at_once() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, b"staged")
    predecessor = client.hand_over()
    client.thaw(predecessor)
    world.run(60)
    assert server.delivered == [packet(client.inner, server.inner, b"staged")]


def test_staged_packets_arrive_once_when_a_frozen_process_is_killed() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, b"staged")
    client.device.freeze()
    client.replace()
    client.replace()
    world.run(60)
    client.replace()
    world.run(60)
    assert server.delivered == [packet(client.inner, server.inner, b"staged")]


def test_staged_packets_leave_though_the_successor_died_between_the_session_and_their_record() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, b"staged")
    predecessor = client.hand_over()
    world.carry()
    journal = len(client.journal)
    client.device.receive_datagrams(server.device.take_transmits()[0].datagrams, server.endpoint, world.now)
    rotated = next(i for i in range(journal, len(client.journal)) if isinstance(client.journal[i], PeerKeypairs))
    client.cut_journal(rotated + 1)  # it was killed there, having sent nothing
    client.thaw(predecessor)
    world.run(0.1)
    assert server.delivered == [packet(client.inner, server.inner, b"staged")]
    assert client.total(Total.INITIATIONS_SENT) == 1


def test_staged_packets_that_are_given_up_are_dead_in_the_records() -> None:
    world = World()
    client, server = world.pair()
    client.send(server, b"staged")
    client.hand_over()
    world.run(100, lose_everything)
    assert client.dropped(DropReason.HANDSHAKE_TIMED_OUT) == 1
    assert [c for c in client.folded() if isinstance(c, PeerStaged)] == [PeerStaged(server.public_key, ())]


# --- Slots ---


@pytest.mark.parametrize("order", ["as recorded", "forwards", "backwards"])
def test_a_thawing_predecessor_gives_up_a_slot_that_its_successor_gave_away(order: str) -> None:
    world = World()
    hub, *others = hosts = [world.host() for _ in range(3)]
    for host in others:
        hub.know(host)
        host.know(hub)
    for host in hosts:
        host.start()
    for host in others:
        host.send(hub)
    world.exchange()
    predecessor = hub.hand_over()
    for _ in range(4):  # keypairs go round in the slots
        world.now += 130
        for host in others:
            host.send(hub)
            world.exchange()
    if order == "as recorded":
        hub.thaw(predecessor)
    else:  # from a compacted journal, in any order
        predecessor.restore(sorted(hub.folded(), key=change_key, reverse=order == "backwards"), world.now)
        hub.device = predecessor
    world.now += 130
    for host in others:
        host.send(hub)
        world.exchange()
    slots = [hub.peer(host).slot for host in others]
    slots += [keypair.state.slot for host in others for keypair in hub.peer(host).keypairs]
    assert len(set(slots)) == len(slots)
    for host in others:
        hub.send(host, b"after the thaw")
    world.exchange()
    assert [host.delivered[-1] for host in others] == [packet(hub.inner, h.inner, b"after the thaw") for h in others]


def lonely(world: World) -> tuple[Host, Host, Host]:
    """Return a hub with a session to each of two others, of which a new configuration keeps the first alone."""
    hub, kept, removed = hosts = [world.host() for _ in range(3)]
    for host in (kept, removed):
        hub.know(host)
        host.know(hub)
    for host in hosts:
        host.start()
    removed.send(hub)
    world.exchange()
    hub.peers.pop()
    return hub, kept, removed


def test_the_slots_of_a_peer_that_is_no_longer_configured_are_not_allocated() -> None:
    world = World()
    hub, kept, removed = lonely(world)
    slot = slot_of_current(hub, removed)
    predecessor = hub.hand_over()
    kept.send(hub)
    world.exchange()
    taken = {hub.peer(kept).slot, *(k.state.slot for k in hub.peer(kept).keypairs)}
    assert taken.isdisjoint({predecessor.peers[removed.public_key].slot, slot})
    hub.thaw(predecessor)  # with its own configuration, it has that session yet
    hub.send(removed, b"still here")
    world.exchange()
    assert removed.delivered == [packet(hub.inner, removed.inner, b"still here")]


def test_a_peer_that_was_declared_dead_shares_no_slot_with_those_that_came_after() -> None:
    world = World()
    hub, kept, removed = lonely(world)
    predecessor = hub.hand_over()
    list(hub.device.forget_unknown_peers())
    assert PeerRemoved(removed.public_key) in hub.journal
    for _ in range(3):
        kept.send(hub)
        world.exchange()
        world.now += 130
    hub.thaw(predecessor)
    assert hub.peer(removed).keypairs == ()
    assert hub.peer(removed).slot == 0
    removed.send(hub, b"afresh")
    world.run(60)
    assert packet(removed.inner, hub.inner, b"afresh") in hub.delivered
    slots = [hub.peer(host).slot for host in (kept, removed)]
    slots += [keypair.state.slot for host in (kept, removed) for keypair in hub.peer(host).keypairs]
    assert len(set(slots)) == len(slots)


def test_the_rotation_of_an_unknown_peer_moves_what_is_kept_for_it() -> None:
    world = World()
    hub, kept, removed = lonely(world)
    successor = hub.make_device()
    successor.restore(hub.folded(), world.now)
    read = len(hub.journal)
    for _ in range(4):
        world.now += 130
        removed.send(hub)
        world.exchange()
    hub.device.freeze()
    assert successor.restore(hub.journal[read:], world.now).unknown_peers == 1
    last = [change for change in hub.folded() if isinstance(change, PeerKeypairs | PeerSeen)]
    hub.device = successor
    list(successor.forget_unknown_peers())
    assert successor.restore([], world.now).unknown_peers == 0
    kept.send(hub)
    world.exchange()
    named = {c.slot for c in last if isinstance(c, PeerSeen)}
    assert hub.peer(kept).slot in named | {
        s.slot for c in last if isinstance(c, PeerKeypairs) for s in (c.current,) if s
    }


# --- Endpoints ---


def test_a_peer_that_moves_to_and_fro_is_recorded_once_in_an_interval() -> None:
    world = World()
    client, server = connected(world)
    world.now += ENDPOINT_RECORD_INTERVAL
    places = [Endpoint(bytes([198, 51, 100, number]), 4242) for number in (1, 2)]
    journal = len(server.journal)
    for number in range(50):
        world.move(client, places[number % 2])
        client.send(server)
        world.exchange()
    assert server.total(Total.ENDPOINT_MOVES) == 50
    assert server.journal[journal:] == [PeerEndpoint(client.public_key, places[0])]
    server.send(client, b"found you")
    world.exchange()
    assert client.delivered == [packet(server.inner, client.inner, b"found you")]
    world.run(ENDPOINT_RECORD_INTERVAL)
    assert server.journal[journal:] == [PeerEndpoint(client.public_key, place) for place in places]


def test_a_hand_over_includes_the_last_endpoint_change() -> None:
    world = World()
    client, server = connected(world)
    for number in range(3):
        world.move(client, Endpoint(bytes([198, 51, 100, number]), 4242))
        client.send(server)
        world.exchange()
    server.hand_over()
    assert server.peer(client).endpoint == client.endpoint


def test_a_packet_to_another_local_address_is_no_endpoint_change() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    here = client.endpoint._replace(local_address=bytes([203, 0, 113, 9]), local_interface=3)
    server.device.receive_datagrams(client.device.take_transmits()[0].datagrams, here, world.now)
    assert server.peer(client).endpoint == here
    assert server.total(Total.ENDPOINT_MOVES) == 0


def test_a_packet_between_restore_and_hand_off_is_still_answered_by_a_keepalive() -> None:
    """Such a packet changes a counter and leaves no record: only a second read of the counters finds it."""
    world = World()
    client, server = connected(world)
    world.run(20.0)
    predecessor = server.device
    server.start()
    successor = server.device
    successor.restore(server.folded(), world.now)
    server.device = predecessor
    client.send(server)
    world.exchange()
    server.device = successor
    successor.own()
    successor.prepare()
    handshakes = client.total(Total.HANDSHAKES_INITIATOR)
    keepalives = server.total(Total.SENT_KEEPALIVES)
    world.run(KEEPALIVE_TIMEOUT + 0.1)
    assert server.total(Total.SENT_KEEPALIVES) == keepalives + 1
    world.run(30.0)
    assert client.total(Total.HANDSHAKES_INITIATOR) == handshakes
