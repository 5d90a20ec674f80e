"""Packets that are sent again after an outage or a move: what may not have been answered, and nothing else."""

from oxidize.protocol.constants import (
    INITIATION_INTERVAL_MIN,
    REJECT_AFTER_TIME,
    TYPE_DATA,
    TYPE_INITIATION,
    TYPE_RESPONSE,
)
from oxidize.protocol.counters import ROUND_TRIP_NS, LinkState, Total
from oxidize.protocol.link_policy import IN_FLIGHT_SECS_MIN, REPLAY_BURST_PACKETS, RESEND_AGE_SECS_MAX
from tests.support.client_and_server import (
    NOTICED_SECS,
    TICK,
    hold,
    linked,
    payloads,
    restart,
    state,
    talk,
    until_connected,
)
from tests.support.network import Host, World, lose_everything

# --- What was in flight ---


def test_a_packet_in_flight_at_the_last_answer_is_sent_again() -> None:
    world = World()
    client, server = linked(world)
    client.slots.counters[client.peer(server).slot + ROUND_TRIP_NS] = 200_000_000
    client.send(server, b"answered")
    world.exchange()
    world.run(0.2)
    client.send(server, b"on its way")  # the server ends then
    world.exchange(lose_everything)
    world.run(0.35, lose_everything)
    server.send(client)  # sent before it ended
    world.exchange()
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    world.run(2.0, lose_everything)
    until_connected(world, client, server, 6.0)
    assert payloads(server) == [b"answered", b"on its way"]


def test_a_packet_in_flight_when_a_session_is_renewed_is_sent_again() -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"on its way")  # the server answers an initiation, and ends
    world.exchange(lose_everything)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=False)
    world.run(NOTICED_SECS)
    assert client.total(Total.HANDSHAKES_INITIATOR) == 2
    assert payloads(server) == []
    client.device.on_route_change(world.now, is_lost=True)
    restart(server)
    until_connected(world, client, server, 1.0)
    assert payloads(server) == [b"on its way"]


def test_packets_in_the_queue_of_a_loaded_server_that_ends_are_sent_again() -> None:
    world = World()
    client, server = linked(world)
    end = talk(world, client, server, 1.0, 0.02, answered=True)
    queued = talk(world, client, server, IN_FLIGHT_SECS_MIN - 0.05, 0.02, lose_everything, first=end)
    server.send(client)  # an answer to what came before them
    world.exchange()
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    world.run(0.3, lose_everything)
    restart(server)
    until_connected(world, client, server, 1.0)
    numbers = [int.from_bytes(payload, "big") for payload in payloads(server)]
    assert list(dict.fromkeys(numbers)) == list(range(queued))
    assert len(numbers) - queued <= round(IN_FLIGHT_SECS_MIN / 0.02) + 1


def test_an_answer_that_went_to_an_old_address_is_asked_for_again_although_the_server_is_heard() -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"before")
    for _ in range(2):
        world.exchange()
        server.send(client)
        world.exchange()
        world.run(2 * IN_FLIGHT_SECS_MIN)
    client.send(server, b"answered to the old address")
    world.exchange(lose_everything)
    held: list[bytes] = []
    client.device.on_route_change(world.now)
    world.exchange(hold(TYPE_INITIATION, held))
    for _ in range(3):  # the server has the new address from another packet, and answers those that follow
        server.send(client)
        world.exchange(hold(TYPE_INITIATION, held))
    server.receive(held, client.endpoint)
    world.exchange()
    assert payloads(server) == [b"before", b"answered to the old address"]


def test_what_was_staged_is_not_sent_again_after_a_move_that_became_an_outage() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now)
    end = talk(world, client, server, 2.0, 0.02, lose_everything)
    assert state(client, server) == LinkState.RECONNECTING
    held: list[bytes] = []
    server.send(client)
    world.exchange(hold(TYPE_INITIATION, held))
    assert state(client, server) == LinkState.CONNECTED
    world.run(0.1, hold(TYPE_INITIATION, held))
    server.send(client)
    world.exchange(hold(TYPE_INITIATION, held))
    made = client.total(Total.HANDSHAKES_INITIATOR)
    world.run(6.0)
    assert client.total(Total.HANDSHAKES_INITIATOR) == made + 1
    assert [int.from_bytes(payload, "big") for payload in payloads(server)] == list(range(end))


def test_an_answered_doubt_does_not_make_older_packets_be_sent_again() -> None:
    world = World()
    client, server = linked(world)
    client.slots.counters[client.peer(server).slot + ROUND_TRIP_NS] = 500_000_000
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    server.send(client)
    world.exchange()
    end = talk(world, client, server, 6.0, 0.02, lose_everything)
    assert state(client, server) == LinkState.RECONNECTING
    until_connected(world, client, server, 6.0)
    numbers = [int.from_bytes(payload, "big") for payload in payloads(server)]
    assert min(numbers) > 0
    assert numbers == list(range(min(numbers), end))


# --- Several answers ---


def two_responses(world: World, client: Host, server: Host, initiations: list[bytes]) -> list[bytes]:
    """Have a server answer two initiations, apart in time so that the second is no flood; return what it answers."""
    responses: list[bytes] = []
    for initiation in initiations:
        server.receive([initiation], client.endpoint)
        world.exchange(hold(TYPE_RESPONSE, responses))
        world.now += 2 * INITIATION_INTERVAL_MIN
    assert len(responses) == 2
    return responses


def test_packets_sent_between_two_responses_are_sent_again_in_the_session_that_stays() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    for number in range(2 * REPLAY_BURST_PACKETS):
        client.send(server, bytes([number]))
    held: list[bytes] = []
    world.run(0.3, hold(TYPE_INITIATION, held))
    for response in two_responses(world, client, server, held[:2]):
        client.receive([response], server.endpoint)
        world.exchange()
    world.run(0.1)
    server.send(client)
    world.exchange()
    world.run(1.0)
    assert payloads(server) == [bytes([number]) for number in range(2 * REPLAY_BURST_PACKETS)]


def test_silence_between_two_responses_loses_no_packet_sent_there() -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"before")
    held: list[bytes] = []
    world.exchange()
    while len(held) < 2:
        world.run(TICK, hold(TYPE_INITIATION, held))
    responses = two_responses(world, client, server, held[:2])
    client.receive(responses[:1], server.endpoint)
    client.send(server, b"between")
    world.exchange()
    while len(held) < 3:
        world.run(TICK, hold(TYPE_INITIATION, held))
    assert b"between" not in payloads(server)
    client.receive(responses[1:], server.endpoint)
    world.exchange()
    assert b"between" in payloads(server)


def test_packets_sent_before_a_long_outage_are_sent_again_in_the_session_that_stays() -> None:
    world = World()
    client, server = linked(world)
    end = talk(world, client, server, 0.2, 0.02, lose_everything)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    held: list[bytes] = []
    talk(world, client, server, 3 * RESEND_AGE_SECS_MAX, 0.02, hold(TYPE_INITIATION, held), first=end)
    assert state(client, server) == LinkState.RECONNECTING
    restart(server)
    for response in two_responses(world, client, server, held[-2:]):
        client.receive([response], server.endpoint)
        world.exchange()
    world.run(0.1)
    assert {int.from_bytes(payload, "big") for payload in payloads(server)} >= set(range(end))


def test_a_late_message_in_the_session_before_answers_nothing_that_was_sent_in_the_new_one() -> None:
    world = World()
    client, server = linked(world)
    late: list[bytes] = []
    server.send(client)
    world.exchange(hold(TYPE_DATA, late))
    client.device.on_route_change(world.now, is_lost=True)
    client.send(server, b"staged")
    held: list[bytes] = []
    world.run(2 * IN_FLIGHT_SECS_MIN, hold(TYPE_INITIATION, held))
    responses = two_responses(world, client, server, held[-2:])
    client.receive(responses[:1], server.endpoint)
    world.exchange()
    assert payloads(server) == [], "the server knows only the session of its last response"
    world.now += 2 * IN_FLIGHT_SECS_MIN
    client.receive(late, server.endpoint)
    client.receive(responses[1:], server.endpoint)
    world.exchange()
    assert payloads(server) == [b"staged"]


def held_initiations(world: World, client: Host, server: Host) -> list[bytes]:
    """Return the initiations of a client that has heard its server and is not answered; they are held back."""
    server.send(client, b"before")
    world.exchange()
    held: list[bytes] = []
    client.send(server, b"asked")
    world.exchange()
    world.run(3 * IN_FLIGHT_SECS_MIN, hold(TYPE_INITIATION, held))
    return held


def test_what_comes_in_the_session_before_two_new_ones_arrives() -> None:
    world = World()
    client, server = linked(world)
    held = held_initiations(world, client, server)
    responses = two_responses(world, client, server, held[:2])
    late: list[bytes] = []
    server.send(client, b"answered")
    world.exchange(hold(TYPE_DATA, late))
    client.receive(responses, server.endpoint)
    client.replace()
    client.receive(late, server.endpoint)
    assert payloads(client) == [b"before", b"answered"]
    client.receive(late, server.endpoint)
    assert client.drops() == {"REPLAYED_COUNTER": 1}


def test_what_a_server_sends_in_the_first_of_two_new_sessions_arrives() -> None:
    world = World()
    client, server = linked(world)
    held = held_initiations(world, client, server)
    late: list[bytes] = []
    server.send(client, b"in the session before")
    world.exchange(hold(TYPE_DATA, late))
    server.receive(held[:1], client.endpoint)
    world.exchange()
    server.send(client, b"in the first new one")
    world.exchange(hold(TYPE_DATA, late))
    world.now += 2 * INITIATION_INTERVAL_MIN
    server.receive(held[1:2], client.endpoint)
    world.exchange()
    client.receive(late, server.endpoint)
    assert payloads(client) == [b"before", b"in the session before", b"in the first new one"]


def test_a_keypair_is_kept_until_the_server_is_heard_in_a_newer_one_and_no_longer_than_it_lives() -> None:
    world = World()
    client, server = linked(world)
    server.send(client)
    world.exchange()
    peer = client.peer(server)
    heard = peer.current
    for _ in range(3):
        client.device.on_route_change(world.now)
        world.exchange()
        world.now += 2 * INITIATION_INTERVAL_MIN
        assert peer.older in {None, heard}
    assert peer.older is heard
    server.send(client)
    world.exchange()
    client.device.on_route_change(world.now)
    world.exchange()
    assert (peer.older, len(peer.keypairs)) == (None, 2)
    world.now += REJECT_AFTER_TIME
    for _ in range(2):
        client.device.on_route_change(world.now)
        world.exchange()
        world.now += 2 * INITIATION_INTERVAL_MIN
    assert (peer.older, len(peer.keypairs)) == (None, 2)


def test_a_second_answer_after_an_outage_does_not_change_the_round_trip() -> None:
    world = World()
    client, server = linked(world)
    round_trip = client.peer(server).slot + ROUND_TRIP_NS
    client.slots.counters[round_trip] = 20_000_000
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    held: list[bytes] = []
    world.run(3.0, hold(TYPE_INITIATION, held))
    world.now += 1.0
    restart(server)
    for response in two_responses(world, client, server, held[-3:-1]):
        client.receive([response], server.endpoint)
        world.exchange()
    assert client.total(Total.HANDSHAKES_INITIATOR) == 3
    assert client.slots.counters[round_trip] == 20_000_000
