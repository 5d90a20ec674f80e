"""Links: a client that keeps a session up with a server that disappears, loses its state, or is hard to reach."""

from itertools import pairwise

from oxidize.protocol.constants import (
    INITIATION_INTERVAL_MIN,
    KEEPALIVE_TIMEOUT,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    TYPE_INITIATION,
)
from oxidize.protocol.counters import OUTAGE_BOUNDS_SECS, OUTAGES_START, PROBES_ANSWERED, DropReason, LinkState, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import (
    DECAY_SECS,
    IN_FLIGHT_SECS_MIN,
    PROBE_SECS_MIN,
    RESEND_AGE_SECS_MAX,
    UNANSWERED_PROBES_MAX,
)
from oxidize.protocol.messages import message_type
from tests.support.client_and_server import (
    NOTICED_SECS,
    TICK,
    linked,
    payloads,
    restart,
    sent,
    state,
    talk,
    until_connected,
)
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import World, lose_everything

# --- Connecting ---


def test_a_link_connects_without_traffic() -> None:
    world = World()
    client, server = linked(world)
    assert client.total(Total.HANDSHAKES_INITIATOR) == 1
    assert server.peer(client).current is not None
    assert client.total(Total.OUTAGES) == 0


def test_a_link_retries_for_longer_than_the_limit_of_the_paper() -> None:
    world = World()
    client, server = world.host(), world.host()
    client.know(server, link=DEFAULT_POLICY)
    server.know(client, reachable=False)
    client.start()
    server.start()
    client.device.begin_links(world.now)
    client.send(server, b"first")
    world.exchange(lose_everything)
    world.run(300.0, lose_everything)
    assert state(client, server) == LinkState.CONNECTING
    until_connected(world, client, server, 6.0)
    assert payloads(server) == [b"first"]


# --- Noticing ---


def test_a_restarted_server_is_noticed_after_a_short_silence_and_no_packet_is_lost() -> None:
    world = World()
    client, server = linked(world)
    restart(server)
    for number in range(3):
        client.send(server, bytes([number]))
        world.exchange()
    assert payloads(server) == []
    world.run(NOTICED_SECS)
    assert payloads(server) == [b"\0", b"\1", b"\2"]
    assert client.total(Total.RESENT_PACKETS) == 3
    assert client.total(Total.OUTAGES) == 0, "the server was never unreachable"


def test_a_restarted_server_that_knows_the_clients_endpoint_starts_a_handshake_at_once() -> None:
    world = World()
    client, server = linked(world, known=True)
    restart(server)
    client.send(server, b"lost?")
    world.exchange()
    assert payloads(server) == [b"lost?"]
    assert server.total(Total.UNKNOWN_INDEX_INITIATIONS) == 1


def test_no_packet_is_sent_again_when_resending_is_off() -> None:
    world = World()
    client, server = linked(world, DEFAULT_POLICY._replace(resend=False))
    restart(server)
    client.send(server, b"lost")
    world.exchange()
    world.run(1.0)
    client.send(server, b"next")
    world.exchange()
    assert payloads(server) == [b"next"]


def test_silence_is_an_outage_only_after_several_unanswered_probes() -> None:
    world = World()
    client, server = linked(world)
    client.send(server)
    world.exchange(lose_everything)
    states = []
    while state(client, server) == LinkState.CONNECTED:
        states.append(sent(world, client, TYPE_INITIATION))
        world.run(TICK, lose_everything)
        assert world.now < 1002.0
    assert max(states) == UNANSWERED_PROBES_MAX
    assert client.total(Total.OUTAGES) == 1


def test_one_way_traffic_is_probed_more_and_more_rarely() -> None:
    world = World()
    client, server = linked(world)
    talk(world, client, server, 120.0, 0.05)
    probes = sent(world, client, TYPE_INITIATION)
    assert 3 <= probes <= 12
    world.log.clear()
    talk(world, client, server, 120.0, 0.05, first=10_000)
    assert sent(world, client, TYPE_INITIATION) <= 120 / (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT) + 2
    assert client.total(Total.OUTAGES) == 0
    assert len(payloads(server)) == len(set(payloads(server))) + client.total(Total.RESENT_PACKETS)
    assert client.total(Total.RESENT_PACKETS) <= PROBE_SECS_MIN / 0.05 + 2, "only before one-way traffic is known"


def test_prompt_answers_shorten_the_silence_before_a_probe_again() -> None:
    world = World()
    client, server = linked(world)
    talk(world, client, server, 60.0, 0.05)
    for pause in [DECAY_SECS] * 20 + [1.0]:
        client.send(server, b"asked")
        world.exchange()
        server.send(client)
        world.exchange()
        world.run(pause)
    server.delivered.clear()
    restart(server)
    client.send(server, b"noticed")
    world.exchange()
    world.run(NOTICED_SECS)
    assert payloads(server) == [b"noticed"]


def test_slow_answers_do_not_cause_a_probe_each_time() -> None:
    world = World()
    client, server = linked(world)
    for number in range(50):
        client.send(server, bytes([number]))
        world.exchange()
        world.run(PROBE_SECS_MIN + 0.05)  # the host behind the server is slow
        server.send(client)
        world.exchange()
        world.run(5.0)
    rekeys = 50 * 5.25 / REKEY_AFTER_TIME
    assert client.total(Total.HANDSHAKES_INITIATOR) <= 2 + rekeys
    assert client.total(Total.RESENT_PACKETS) == 1


def test_a_network_error_makes_a_link_ask_soon_and_only_the_missing_answer_starts_an_outage() -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"refused")
    world.exchange(lose_everything)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    world.run(0.05 - TICK, lose_everything)
    assert sent(world, client, TYPE_INITIATION) == 0
    world.run(2 * TICK, lose_everything)
    assert sent(world, client, TYPE_INITIATION) == 1
    assert state(client, server) == LinkState.CONNECTED
    world.run(0.05, lose_everything)
    assert state(client, server) == LinkState.RECONNECTING
    client.send(server, b"kept")
    world.exchange(lose_everything)
    world.run(0.05 + TICK)
    assert payloads(server) == [b"refused", b"kept"]
    assert client.total(Total.RECONNECTS) == 1
    assert client.slots.counters[OUTAGES_START] == 1, "the outage was shorter than the lowest bound"


def test_network_errors_about_other_endpoints_are_ignored() -> None:
    world = World()
    client, server = linked(world)
    client.device.on_unreachable((b"\x01\x02\x03\x04", 5, 0), world.now, refused=True)
    assert state(client, server) == LinkState.CONNECTED
    server.device.on_unreachable(client.endpoint.remote, world.now, refused=True)
    assert server.device.link_state(server.peer(client)) is None


# --- Retrying ---


def test_retries_back_off_and_are_never_closer_than_servers_accept() -> None:
    world = World()
    client, server = linked(world)
    client.send(server)
    times: list[float] = []

    def lose(source: Endpoint, destination: Endpoint, datagram: bytes) -> list[bytes]:
        if message_type(datagram) == TYPE_INITIATION:
            times.append(world.now)
        return []

    world.exchange(lose)
    world.run(60.0, lose)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) > INITIATION_INTERVAL_MIN
    assert max(gaps) <= 5.0 + TICK
    assert gaps[-1] >= 3.75 - TICK
    assert len(times) < 30


def test_a_link_fails_after_the_allowed_number_of_retries() -> None:
    world = World()
    client, server = linked(world, DEFAULT_POLICY._replace(retries_max=4))
    client.send(server, b"never")
    world.exchange(lose_everything)
    world.run(60.0, lose_everything)
    assert state(client, server) == LinkState.FAILED
    assert client.dropped(DropReason.HANDSHAKE_TIMED_OUT) == 1
    count = sent(world, client, TYPE_INITIATION)
    assert count <= UNANSWERED_PROBES_MAX + 1 + 4
    world.run(60.0, lose_everything)
    assert sent(world, client, TYPE_INITIATION) == count
    client.device.begin_links(world.now)
    world.exchange()
    assert state(client, server) == LinkState.CONNECTED, "a new owner starts a failed link again"


def test_attempts_without_an_endpoint_count_as_retries() -> None:
    world = World()
    client, server = world.host(), world.host()
    client.know(server, reachable=False, link=DEFAULT_POLICY._replace(retries_max=3))
    server.know(client, reachable=False)
    client.start()
    server.start()
    client.device.begin_links(world.now)
    client.send(server, b"early")
    world.run(0.1)
    assert state(client, server) == LinkState.CONNECTING
    client.device.set_endpoint(client.peer(server), server.endpoint, world.now)
    world.exchange()
    assert payloads(server) == [b"early"]
    other = world.host()
    other.know(server, reachable=False, link=DEFAULT_POLICY._replace(retries_max=3))
    other.start()
    other.device.begin_links(world.now)
    world.run(10.0)
    assert state(other, server) == LinkState.FAILED


def test_a_draining_server_is_not_flooded_with_initiations() -> None:
    world = World()
    client, server = linked(world)
    world.run(REKEY_AFTER_TIME)
    server.device.accepting = False
    world.log.clear()
    for _ in range(300):
        client.send(server)
        world.exchange()
        server.send(client)
        world.exchange()
        world.run(0.1)
    assert state(client, server) == LinkState.CONNECTED, "the server still answers"
    assert sent(world, client, TYPE_INITIATION) < 20
    assert server.dropped(DropReason.DRAINING) == sent(world, client, TYPE_INITIATION)


def test_a_client_whose_clock_was_set_back_can_connect() -> None:
    world = World()
    client, server = linked(world)
    client.device._handshaker._unix_time = lambda: 1_600_000_000.0
    world.run(1.0)
    client.device.on_route_change(world.now)
    world.exchange()
    assert client.total(Total.HANDSHAKES_INITIATOR) == 2
    assert server.dropped(DropReason.REPLAYED_TIMESTAMP) == 0


# --- Buffering ---


def test_packets_sent_during_an_outage_arrive_in_order_after_it() -> None:
    world = World()
    client, server = linked(world)
    end = talk(world, client, server, 0.5, 0.05, answered=True)
    end = talk(world, client, server, 10.0, 0.05, lose_everything, first=end)
    assert state(client, server) == LinkState.RECONNECTING
    until_connected(world, client, server, 6.0)
    numbers = [int.from_bytes(payload, "big") for payload in payloads(server)]
    assert list(dict.fromkeys(numbers)) == list(range(end))
    assert len(numbers) - end <= round(IN_FLIGHT_SECS_MIN / 0.05) + 1, (
        "twice only what was sent just before the last answer"
    )
    assert client.total(Total.OUTAGES) == client.total(Total.RECONNECTS) == 1
    (bucket,) = (i for i in range(len(OUTAGE_BOUNDS_SECS) + 1) if client.slots.counters[OUTAGES_START + i])
    assert OUTAGE_BOUNDS_SECS[bucket - 1] < client.total(Total.OUTAGE_NS_SUM) / 1e9 <= OUTAGE_BOUNDS_SECS[bucket]


def test_the_oldest_packets_are_dropped_first_when_the_buffer_is_full() -> None:
    world = World()
    client, server = linked(world, DEFAULT_POLICY._replace(buffer_packets=10))
    client.device.on_route_change(world.now, is_lost=True)
    for number in range(25):
        client.send(server, bytes([number]))
    until_connected(world, client, server, 1.0)
    assert payloads(server) == [bytes([number]) for number in range(15, 25)]
    assert client.dropped(DropReason.STAGED_OVERFLOW) == 15
    assert client.total(Total.BUFFERED_PACKETS) == 25
    assert client.total(Total.REPLAYED_PACKETS) == 10


def test_old_unanswered_packets_are_not_sent_again() -> None:
    world = World()
    client, server = linked(world)
    client.slots.counters[client.peer(server).slot + PROBES_ANSWERED] = 8  # as after long one-way traffic
    client.send(server, b"old")
    world.exchange(lose_everything)
    world.run(RESEND_AGE_SECS_MAX + TICK, lose_everything)
    client.send(server, b"young")
    world.exchange(lose_everything)
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    world.run(0.2, lose_everything)
    world.run(1.0)
    assert payloads(server) == [b"young"]
