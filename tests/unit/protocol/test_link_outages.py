"""Links during an outage and after it: probes, bursts, several initiations, unknown indices, and takeovers."""

import pytest

from oxidize.protocol.constants import (
    BATCH_PACKETS_MAX,
    REJECT_AFTER_TIME,
    TYPE_DATA,
    TYPE_INITIATION,
    TYPE_RESPONSE,
    UNKNOWN_INDEX_INTERVAL,
)
from oxidize.protocol.counters import ROUND_TRIP_NS, DropReason, LinkState, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import (
    IN_FLIGHT_SECS_MIN,
    OUTAGE_PROBE_INTERVALS,
    REPLAY_BURST_PACKETS,
    REPLAY_PAUSE_SECS,
    SUPERSEDED_MAX,
)
from oxidize.protocol.messages import DATA_HEADER, message_type
from tests.support.client_and_server import (
    NOTICED_SECS,
    TICK,
    hold,
    linked,
    payloads,
    restart,
    sent,
    state,
    talk,
    until_connected,
)
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import World, lose_everything, packet

# --- Outages ---


def test_outage_probes_find_a_server_that_knows_the_clients_endpoint_at_once() -> None:
    world = World()
    client, server = linked(world, known=True)
    client.send(server)
    world.exchange(lose_everything)
    world.run(30.0, lose_everything)
    assert state(client, server) == LinkState.RECONNECTING
    restart(server)
    server.delivered.clear()
    world.run(OUTAGE_PROBE_INTERVALS[1][1] + TICK)
    assert state(client, server) == LinkState.CONNECTED
    assert server.total(Total.UNKNOWN_INDEX_INITIATIONS) + client.total(Total.HANDSHAKES_INITIATOR) >= 1
    assert len(server.delivered) == 1


def test_outage_probes_end_with_the_session() -> None:
    world = World()
    client, _ = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    world.run(REJECT_AFTER_TIME, lose_everything)
    world.log.clear()
    world.run(60.0, lose_everything)
    assert sent(world, client, TYPE_DATA) == 0
    assert sent(world, client, TYPE_INITIATION) > 0


def test_a_server_is_probed_at_once_when_refusals_end() -> None:
    world = World()
    client, server = linked(world)
    for _ in range(20):
        client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
        world.run(1.0, lose_everything)
    world.run(0.3)
    assert state(client, server) == LinkState.CONNECTED


def test_a_new_route_is_tried_at_once() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    world.run(20.0, lose_everything)
    world.move(client, Endpoint(bytes([198, 51, 100, 7]), 4242))
    client.device.on_route_change(world.now)
    world.exchange()
    assert state(client, server) == LinkState.CONNECTED
    assert server.peer(client).endpoint == client.endpoint


def test_a_server_that_moved_is_found_at_its_resolved_endpoint() -> None:
    world = World()
    client, server = linked(world)
    world.move(server, Endpoint(bytes([203, 0, 113, 9]), 51820))
    client.send(server, b"where")
    world.exchange()
    world.run(2.0)
    assert state(client, server) == LinkState.RECONNECTING
    client.device.set_endpoint(client.peer(server), server.endpoint, world.now)
    world.exchange()
    assert payloads(server) == [b"where"]


@pytest.mark.parametrize("away_secs", [0.01, 0.04, 0.09, 0.12, 0.3])
def test_no_packet_is_lost_when_a_server_is_back_soon_after_its_port_was_closed(away_secs: float) -> None:
    world = World()
    client, server = linked(world)
    end = talk(world, client, server, 0.5, 0.02, answered=True)
    client.send(server, end.to_bytes(4, "big"))
    world.exchange(lose_everything)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    end = talk(world, client, server, away_secs, 0.01, lose_everything, first=end + 1)
    restart(server)
    end = talk(world, client, server, 0.5, 0.01, first=end, answered=True)
    world.run(1.0)
    numbers = [int.from_bytes(payload, "big") for payload in payloads(server)]
    assert list(dict.fromkeys(numbers)) == list(range(end))
    assert len(numbers) - end <= round(IN_FLIGHT_SECS_MIN / 0.02) + 1, (
        "twice only what was sent just before the last answer"
    )


# --- Unknown indices, at the server ---


def test_unknown_indices_cause_one_handshake_at_a_time() -> None:
    world = World()
    client, server = linked(world, known=True)
    restart(server)
    junk = DATA_HEADER.pack(TYPE_DATA, 77, 0) + bytes(16)
    for _ in range(1000):
        server.receive([junk], client.endpoint)
    assert sum(len(transmit.datagrams) for transmit in server.device.take_transmits()) == 1
    world.run(UNKNOWN_INDEX_INTERVAL * 120, lose_everything)
    assert sent(world, server, TYPE_INITIATION) == 0, "the initiation has no retries"


def test_unknown_indices_do_not_affect_a_live_session() -> None:
    world = World()
    client, server = linked(world, known=True)
    server.receive([DATA_HEADER.pack(TYPE_DATA, 77, 0) + bytes(16)], client.endpoint)
    assert server.device.take_transmits() == []


def test_unknown_indices_from_unknown_endpoints_are_ignored() -> None:
    world = World()
    client, server = linked(world, known=True)
    restart(server)
    server.receive([DATA_HEADER.pack(TYPE_DATA, 77, 0) + bytes(16)], client.endpoint._replace(port=1))
    assert server.device.take_transmits() == []


def test_unknown_indices_of_many_peers_have_one_limit() -> None:
    world = World()
    server, clients = world.host(), [world.host() for _ in range(100)]
    for client in clients:
        server.know(client)
    server.start()
    for client in clients:
        server.receive([DATA_HEADER.pack(TYPE_DATA, 77, 0) + bytes(16)], client.endpoint)
    assert 10 <= server.total(Total.UNKNOWN_INDEX_INITIATIONS) <= 60


# --- Takeovers during an outage ---


@pytest.mark.parametrize("seconds", [0.15, 0.3, 7.0])
def test_a_successor_continues_an_outage(seconds: float) -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"1")
    world.exchange(lose_everything)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    world.run(seconds, lose_everything)
    client.send(server, b"2")
    began = client.total(Total.OUTAGES)
    client.hand_over()
    client.device.begin_links(world.now)
    client.send(server, b"3")
    assert state(client, server) == LinkState.RECONNECTING
    until_connected(world, client, server, 6.0)
    assert payloads(server) == [b"1", b"2", b"3"]
    assert client.total(Total.OUTAGES) == began == client.total(Total.RECONNECTS)


def test_a_predecessor_that_thaws_sends_no_probes_after_its_successor_has_reconnected() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    predecessor = client.hand_over()
    client.device.begin_links(world.now)
    until_connected(world, client, server, 1.0)
    client.freeze()
    client.thaw(predecessor)
    predecessor.begin_links(world.now)
    before = client.total(Total.SENT_KEEPALIVES)
    world.run(30.0)
    assert client.total(Total.SENT_KEEPALIVES) <= before + 1, "only the keepalive that was due already"


def test_a_successor_sends_nothing_on_a_link_that_is_up() -> None:
    world = World()
    client, server = linked(world)
    client.hand_over()
    client.device.begin_links(world.now)
    assert client.device.take_transmits() == []
    client.send(server, b"on")
    world.exchange()
    assert server.delivered == [packet(client.inner, server.inner, b"on")]


# --- Bursts of staged packets ---


def test_staged_packets_leave_in_bursts_before_newer_packets() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    for number in range(300):
        client.send(server, number.to_bytes(4, "big"))
    sizes = []
    while state(client, server) != LinkState.CONNECTED or client.peer(server).staged:
        before = len(server.delivered)
        world.run(REPLAY_PAUSE_SECS / 5)
        sizes.append(len(server.delivered) - before)
        if sizes[-1]:
            client.send(server, (300 + sum(map(bool, sizes))).to_bytes(4, "big"))
            world.exchange()
        assert world.now < 1010.0
    assert max(sizes) == REPLAY_BURST_PACKETS
    numbers = [int.from_bytes(payload, "big") for payload in payloads(server)]
    assert numbers == sorted(numbers)
    assert numbers[:300] == list(range(300))
    assert len(numbers) > 300
    assert server.drops() == {}


def test_packets_sent_between_two_bursts_start_no_handshake() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    for _ in range(10):
        client.send(server, count=BATCH_PACKETS_MAX)
    while state(client, server) != LinkState.CONNECTED:
        world.run(TICK)
    before = client.total(Total.INITIATIONS_SENT)
    while client.peer(server).staged:
        client.send(server, b"behind it")
        world.run(REPLAY_PAUSE_SECS)
    world.run(0.1)
    assert client.total(Total.INITIATIONS_SENT) == before
    assert payloads(server)[-1] == b"behind it"


def test_an_outage_between_two_bursts_loses_no_packet() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_route_change(world.now, is_lost=True)
    for number in range(200):
        client.send(server, number.to_bytes(4, "big"))
    while state(client, server) != LinkState.CONNECTED:
        world.run(TICK / 10, lambda _, __, datagram: [] if message_type(datagram) == TYPE_DATA else [datagram])
    client.device.on_route_change(world.now, is_lost=True)
    until_connected(world, client, server, 1.0)
    assert [int.from_bytes(payload, "big") for payload in payloads(server)] == list(range(200))


# --- Several initiations at once ---


def test_a_response_to_an_earlier_initiation_connects() -> None:
    world = World()
    client, server = world.host(), world.host()
    client.know(server, link=DEFAULT_POLICY)
    server.know(client, reachable=False)
    client.start()
    server.start()
    client.device.begin_links(world.now)
    held: list[bytes] = []
    world.exchange(hold(TYPE_INITIATION, held))
    world.run(1.0, hold(TYPE_INITIATION, held))
    assert len(held) >= 4
    server.receive(held, client.endpoint)  # all at once: the server answers the first and drops the others as a flood
    world.exchange()
    assert state(client, server) == LinkState.CONNECTED
    assert server.total(Total.INITIATIONS_RECEIVED) == 1
    client.send(server, b"at once")
    world.exchange()
    assert payloads(server) == [b"at once"]
    assert client.peer(server).handshake is None


def test_the_session_of_the_later_of_two_answered_initiations_stays() -> None:
    world = World()
    client, server = linked(world)
    held: list[bytes] = []
    world.run(1.0)
    client.device.on_route_change(world.now)
    world.exchange(hold(TYPE_INITIATION, held))
    world.run(0.5, hold(TYPE_INITIATION, held))
    responses: list[bytes] = []
    for initiation in held[:2]:
        world.run(1.0, lose_everything)
        server.receive([initiation], client.endpoint)
        world.exchange(hold(TYPE_RESPONSE, responses))
    assert len(responses) == 2
    for response in responses:
        client.receive([response], server.endpoint)
    client.send(server, b"still")
    world.exchange()
    assert b"still" in payloads(server)
    assert server.dropped(DropReason.UNKNOWN_INDEX) <= 1, "only the confirmation of the first session"


@pytest.mark.parametrize("away_secs", [3.0, 10.0])
def test_an_initiation_that_waited_for_its_server_does_not_change_the_round_trip(away_secs: float) -> None:
    world = World()
    client, server = linked(world)
    round_trip = client.peer(server).slot + ROUND_TRIP_NS
    client.slots.counters[round_trip] = 20_000_000
    held: list[bytes] = []
    client.send(server)
    world.exchange(hold(TYPE_INITIATION, held))
    world.run(away_secs, lambda *sent: [] if message_type(sent[2]) == TYPE_DATA else hold(TYPE_INITIATION, held)(*sent))
    server.receive(held, client.endpoint)  # from a socket that was kept while no process read it
    world.exchange()
    assert state(client, server) == LinkState.CONNECTED
    assert client.slots.counters[round_trip] == 20_000_000


def test_indices_of_forgotten_initiations_are_released() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    for _ in range(100):
        client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
        world.run(0.5, lose_everything)
    assert sent(world, client, TYPE_INITIATION) > 2 * SUPERSEDED_MAX
    assert len(client.device._table.indices) <= SUPERSEDED_MAX + 3
    until_connected(world, client, server, 6.0)
    assert len(client.device._table.indices) <= 2


# --- Reasons ---


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("silence", "no answer: is the server up, and does each side have the other's public key?"),
        ("refused", "the port is closed"),
        ("unreachable", "the host is unreachable"),
        ("no name", "the name does not resolve"),
    ],
)
def test_a_link_that_does_not_come_up_is_reported_once_with_the_reason(why: str, expected: str) -> None:
    world = World()
    client, server = world.host(), world.host()
    client.know(server, reachable=why != "no name", link=DEFAULT_POLICY._replace(retries_max=8))
    client.start()
    server.start()
    reported: list[tuple[LinkState, str]] = []
    client.device.watch_links(lambda _, state, reason: reported.append((state, reason)))
    client.device.begin_links(world.now)
    for _ in range(600):
        if why in {"refused", "unreachable"}:
            client.device.on_unreachable(server.endpoint.remote, world.now, refused=why == "refused")
        world.run(0.1, lose_everything)
    assert reported == [(LinkState.CONNECTING, expected), (LinkState.FAILED, expected)]


def test_resetting_the_backoff_does_not_raise_the_number_of_retries() -> None:
    world = World()
    client, server = linked(world, DEFAULT_POLICY._replace(retries_max=20))
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    for _ in range(60):
        world.run(1.5, lose_everything)
        client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
        client.device.on_route_change(world.now)
    assert state(client, server) == LinkState.FAILED


def test_the_time_without_a_process_is_no_silence_of_the_server() -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"asked")  # the answer is in the socket, or on its way
    client.take_transmits()
    world.now += 2.0
    client.replace()
    client.device.begin_links(world.now)
    client.device.handle_timeout(world.now)
    world.exchange()
    assert sent(world, client, TYPE_INITIATION) == 0
    world.run(NOTICED_SECS)
    assert sent(world, client, TYPE_INITIATION) == 1, "silence counts from the new process on"
