"""Links under attack: forged errors and datagrams, malicious servers, and wrong clocks."""

from collections import Counter
from ipaddress import ip_network

import pytest

from oxidize.protocol.admission import OWN_INITIATIONS_BURST, OWN_INITIATIONS_PER_SECOND
from oxidize.protocol.constants import (
    INITIATION_INTERVAL_MIN,
    REKEY_TIMEOUT,
    TYPE_COOKIE_REPLY,
    TYPE_DATA,
    TYPE_INITIATION,
    TYPE_RESPONSE,
    UNKNOWN_INDEX_INTERVAL,
)
from oxidize.protocol.counters import (
    LINK_STATE,
    OUTAGE_SINCE_NS,
    ROUND_TRIP_NS,
    TOTALS_WORDS,
    DropReason,
    LinkState,
    Total,
)
from oxidize.protocol.crypto import public_key
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import (
    ERROR_BURST_SECS,
    ERROR_INTERVAL_SECS,
    RESEND_AGE_SECS_MAX,
    SUPERSEDED_SECS_MAX,
)
from oxidize.protocol.messages import DATA_HEADER, message_type
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.timers import shortest_retry_secs
from tests.support.client_and_server import TICK, hold, linked, payloads, restart, sent, state, until_connected
from tests.support.counters import ArraySlots
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import Host, World, lose_everything

HOUR = 3600.0


def held_response(world: World, client: Host, server: Host) -> list[bytes]:
    """Let the client start a handshake; return the response, which is still on its way."""
    world.run(1.0)
    client.device.on_route_change(world.now)
    world.carry()
    return [datagram for transmit in server.take_transmits() for datagram in transmit.datagrams]


# --- Clocks ---


def test_a_response_that_waited_for_a_suspended_client_is_no_round_trip() -> None:
    world = World()
    client, server = linked(world)
    response = held_response(world, client, server)
    world.now += 8 * HOUR
    client.receive(response, server.endpoint)
    assert state(client, server) == LinkState.CONNECTED
    assert shortest_retry_secs(client.peer(server), client.slots.counters) <= REKEY_TIMEOUT


@pytest.mark.parametrize("known_ns", [0, 1])
def test_an_initiation_whose_sending_time_is_in_the_future_can_be_answered(known_ns: int) -> None:
    world = World()
    client, server = linked(world)
    response = held_response(world, client, server)
    peer = client.peer(server)
    pending = peer.handshake
    assert pending is not None
    pending.sent_at = world.now + 50.0
    client.slots.counters[peer.slot + ROUND_TRIP_NS] = known_ns
    client.receive(response, server.endpoint)
    assert peer.handshake is None
    assert client.slots.counters[peer.slot + ROUND_TRIP_NS] <= known_ns


# --- Kills between two counters ---


@pytest.mark.parametrize(
    ("before", "since_ns", "after", "is_since_set"),
    [
        (LinkState.RECONNECTING, 0, LinkState.RECONNECTING, True),
        (LinkState.CONNECTED, 5, LinkState.CONNECTED, False),
        (LinkState.FAILED, 5, LinkState.RECONNECTING, True),
        (LinkState.FAILED, 0, LinkState.CONNECTING, False),
    ],
)
def test_a_successor_makes_the_counters_of_a_link_agree(
    before: LinkState, since_ns: int, after: LinkState, is_since_set: bool
) -> None:
    world = World()
    client, server = linked(world)
    slot = client.peer(server).slot
    client.slots.counters[slot + LINK_STATE], client.slots.counters[slot + OUTAGE_SINCE_NS] = before, since_ns
    client.replace()
    client.device.begin_links(world.now)
    assert state(client, server) == after
    assert bool(client.slots.counters[slot + OUTAGE_SINCE_NS]) == is_since_set
    until_connected(world, client, server, 1.0)
    assert client.slots.counters[slot + OUTAGE_SINCE_NS] == 0


@pytest.mark.parametrize("initiations", [1, 7])
def test_an_error_before_a_link_begins_changes_no_total(initiations: int) -> None:
    world = World()
    client, server = world.host(), world.host()
    client.know(server, link=DEFAULT_POLICY)
    client.start()
    client.slots.counters[Total.INITIATIONS_SENT] = initiations
    client.device.on_route_change(world.now, is_lost=True)
    assert list(client.slots.counters[:TOTALS_WORDS]).count(0) == TOTALS_WORDS - 1
    assert client.total(Total.INITIATIONS_SENT) == initiations
    assert state(client, server) == LinkState.CONNECTING


# --- FAILED ---


@pytest.mark.parametrize("event", ["network change", "error", "packet"])
def test_a_failed_link_comes_to_rest_after_any_event(event: str) -> None:
    world = World()
    client, server = linked(world, DEFAULT_POLICY._replace(retries_max=2))
    notes: list[LinkState] = []
    client.device.watch_links(lambda _, new, reason: notes.append(new))
    client.send(server)
    world.exchange(lose_everything)
    world.run(60.0, lose_everything)
    if event == "network change":
        client.device.on_route_change(world.now)
    elif event == "error":
        client.device.on_unreachable(server.endpoint.remote, world.now, refused=True)
    else:
        client.send(server)
    timeouts = 0
    while (due := client.device.next_deadline()) is not None and due < world.now + 60.0:
        world.now = max(world.now, due)
        client.handle_timeout()
        client.take_transmits()
        timeouts += 1
        assert timeouts < 100, "its timers never stop"
    assert notes == [LinkState.RECONNECTING, LinkState.FAILED]
    assert not client.peer(server).staged


# --- Forged errors ---


def storm(world: World, client: Host, server: Host, answered: bool, *, forged: bool = True) -> int:
    """Forge errors for ten seconds, under traffic; return how many packets the client sent."""
    number = 0
    for moment in range(1000):
        if moment % 5 == 0:
            client.send(server, number.to_bytes(4, "big"))
            number += 1
            world.exchange()
            if answered:
                server.send(client)
        if forged:
            client.device.on_unreachable(server.endpoint.remote, world.now, refused=moment % 2 == 0)
        world.exchange()
        world.run(TICK)
    return number


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "one-way"])
def test_forged_errors_at_any_rate_cost_no_packets_and_few_handshakes(answered: bool) -> None:
    world = World()
    client, server = linked(world)
    count = storm(world, client, server, answered)
    world.run(2.0)
    assert state(client, server) == LinkState.CONNECTED
    copies = Counter(payloads(server))
    assert len(copies) == count, "all packets arrived"
    quiet_world = World()
    quiet, quiet_server = linked(quiet_world)
    storm(quiet_world, quiet, quiet_server, answered, forged=False)
    resent = client.total(Total.RESENT_PACKETS) - quiet.total(Total.RESENT_PACKETS)
    assert resent <= (0 if answered else 10), (
        "apart from silence, only the first errors may resend, when answers have just stopped"
    )
    assert sum(copies.values()) - count <= client.total(Total.RESENT_PACKETS)
    assert client.total(Total.OUTAGES) == 0
    assert sent(world, client, TYPE_INITIATION) <= (0 if answered else 2 * 14)


@pytest.mark.parametrize("refused", [False, True])
def test_network_errors_have_an_effect_in_one_burst_and_then_once_an_interval(refused: bool) -> None:
    world = World()
    client, server = linked(world)
    handshakes = []
    for _ in range(50):
        client.device.on_unreachable(server.endpoint.remote, world.now, refused=refused)
        world.run(0.1)
        assert state(client, server) == LinkState.CONNECTED
        handshakes.append(client.total(Total.HANDSHAKES_INITIATOR) - 1)
    assert handshakes[:3] == [1, 2, 3]
    assert handshakes[-1] <= 1 + (ERROR_BURST_SECS + 5.0) / ERROR_INTERVAL_SECS
    assert handshakes[-1] > handshakes[-15] > handshakes[-30]
    assert client.total(Total.OUTAGES) == 0


@pytest.mark.parametrize("refused", [False, True])
def test_network_errors_have_no_effect_while_the_peer_is_heard(refused: bool) -> None:
    world = World()
    client, server = linked(world)
    reports: list[LinkState] = []
    client.device.watch_links(lambda _, state, reason: reports.append(state))
    for number in range(1000):
        client.send(server, number.to_bytes(4, "big"))
        client.device.on_unreachable(server.endpoint.remote, world.now, refused=refused)
        world.exchange()
        world.run(TICK)
        server.send(client)
        world.exchange()
        world.run(TICK)
    assert [int.from_bytes(payload, "big") for payload in payloads(server)] == list(range(1000))
    assert len(client.delivered) == 1000
    assert sent(world, client, TYPE_INITIATION) == 0
    assert client.total(Total.RESENT_PACKETS) == client.total(Total.OUTAGES) == 0
    assert reports == []


def test_a_packet_is_not_sent_again_beyond_its_maximum_age() -> None:
    world = World()
    client, server = linked(world)
    client.send(server, b"old")
    began = world.now
    for _ in range(5):
        world.exchange()
        client.device.on_route_change(world.now, is_lost=True)
        world.run(0.9)
    assert world.now > began + 2 * RESEND_AGE_SECS_MAX
    assert payloads(server) == [b"old"] * 3


# --- Forged and repeated datagrams ---


def junk(world: World) -> bytes:
    return DATA_HEADER.pack(TYPE_DATA, world.random.getrandbits(32), 0) + world.random.randbytes(16)


def test_junk_from_a_peers_endpoint_causes_at_most_one_initiation_a_second() -> None:
    world = World()
    client, server = linked(world, known=True)
    restart(server)
    del world.hosts[client.endpoint]  # datagrams to it are lost
    count, seconds = 0, 30
    for _ in range(seconds * 100):
        server.receive([junk(world)], client.endpoint)
        count += sum(len(transmit.datagrams) for transmit in server.device.take_transmits())
        world.now += 0.01
        while (due := server.device.next_deadline()) is not None and due <= world.now:
            server.handle_timeout()
        count += sum(len(transmit.datagrams) for transmit in server.device.take_transmits())
    assert 1 <= count <= seconds / UNKNOWN_INDEX_INTERVAL + 1
    assert server.total(Total.UNKNOWN_INDEX_INITIATIONS) == count
    assert not server.peer(client).staged


PEERS = 600


def test_junk_from_the_endpoints_of_all_peers_has_one_limit() -> None:
    world = World()
    server = world.host()
    server.slots = ArraySlots(2 * PEERS)
    endpoints = [Endpoint(bytes([10, 9, number >> 8, number & 255]), 4242) for number in range(PEERS)]
    for number, endpoint in enumerate(endpoints):
        key = public_key(world.random.randbytes(32))
        networks = (ip_network(f"10.1.{number >> 8}.{number & 255}"),)
        server.peers.append(PeerSettings(key, allowed_ips=networks, endpoint=endpoint))
    server.start()
    began = world.now
    for _ in range(20):
        for endpoint in endpoints:
            server.receive([junk(world)], endpoint)
        world.now += 0.05
    allowed = OWN_INITIATIONS_PER_SECOND * (world.now - began) + OWN_INITIATIONS_BURST
    assert 1.5 * allowed < PEERS  # each peer's own limit, one in this time, is not the one that holds
    assert 100 < server.total(Total.UNKNOWN_INDEX_INITIATIONS) <= allowed + 1


@pytest.mark.parametrize("is_down", [False, True], ids=["up", "down"])
def test_junk_from_a_servers_endpoint_has_no_effect_on_a_client(is_down: bool) -> None:
    world = World()
    client, server = linked(world)
    if is_down:
        client.device.on_route_change(world.now, is_lost=True)
    for _ in range(1000):
        client.receive([junk(world), bytes(world.random.randbytes(world.random.randrange(200)))], server.endpoint)
    assert client.device.take_transmits() == []
    world.run(1.0)
    assert state(client, server) == LinkState.CONNECTED
    assert sent(world, client, TYPE_INITIATION) == is_down


def test_repeated_datagrams_have_no_effect() -> None:
    world = World()
    client, server = linked(world)
    for number in range(20):
        client.send(server, bytes([number]))
        world.exchange()
        server.send(client)
        world.exchange()
        client.device.on_route_change(world.now)
        world.exchange()
        world.run(1.0)
    log = list(world.log)
    delivered = len(client.delivered), len(server.delivered)
    keys = client.peer(server).current, server.peer(client).current
    for _ in range(3):
        for source, target, datagram in log:
            world.hosts[target].receive([datagram], source._replace(port=666))
            answers = [each for host in (client, server) for each in host.device.take_transmits()]
            # So many at once are load: each initiation is answered by a request for a cookie.
            assert all(message_type(answer) == TYPE_COOKIE_REPLY for each in answers for answer in each.datagrams)
    assert (len(client.delivered), len(server.delivered)) == delivered
    assert (client.peer(server).current, server.peer(client).current) == keys
    assert client.peer(server).endpoint == server.endpoint
    assert state(client, server) == LinkState.CONNECTED


# --- Cookies for superseded initiations ---


def asked_for_cookies(world: World) -> tuple[Host, Host, list[bytes]]:
    """Return a client that has begun two handshakes, its loaded server, and the replies to both initiations."""
    client, server = world.pair(link=DEFAULT_POLICY, under_load_handshakes=0)
    client.device.begin_links(world.now)
    replies = []
    for pause in (0.0, 10.0):
        world.now += pause
        client.handle_timeout()
        for transmit in client.take_transmits():
            server.receive(transmit.datagrams, client.endpoint)
        replies += [datagram for transmit in server.take_transmits() for datagram in transmit.datagrams]
    assert [message_type(reply) for reply in replies] == [TYPE_COOKIE_REPLY] * 2
    return client, server, replies


def test_a_forged_reply_to_a_superseded_initiation_does_not_void_the_reply_to_the_latest() -> None:
    world = World()
    client, server, (earlier, latest) = asked_for_cookies(world)
    client.receive([earlier[:8] + bytes(len(earlier) - 8)], server.endpoint)
    client.receive([latest], server.endpoint)
    assert client.total(Total.COOKIE_REPLIES_RECEIVED) == 1
    assert client.dropped(DropReason.AUTHENTICATION_FAILED) == 1


def test_a_reply_that_was_taken_is_not_taken_again_once_its_initiation_is_superseded() -> None:
    world = World()
    client, server, (_, latest) = asked_for_cookies(world)
    client.receive([latest], server.endpoint)
    received_at = client.peer(server).cookie_jar.received_at
    world.now += 10.0
    client.handle_timeout()
    client.receive([latest], server.endpoint)
    assert client.peer(server).cookie_jar.received_at == received_at


# --- Malicious servers ---


def test_a_server_that_floods_a_client_with_handshakes_exhausts_nothing() -> None:
    world = World()
    client, server = linked(world, DEFAULT_POLICY._replace(buffer_packets=50), known=True)
    count, pause = 600, 0.005
    for number in range(count):
        client.send(server, number.to_bytes(4, "big"))
        server.device._handshaker._send_initiation(server.peer(client), world.now, world.now)
        world.exchange()
        world.now += pause
    peer = client.peer(server)
    assert peer.link is not None
    assert len(peer.link.unanswered) <= 50
    assert len(peer.link.first_sent) <= 50
    assert not peer.staged
    assert len(peer.keypairs) <= 3
    assert len(client.slots._free) >= 256 - 8, "slots are released"
    assert client.dropped(DropReason.INITIATION_FLOOD) > count / 2
    assert client.total(Total.INITIATIONS_RECEIVED) <= count * pause / INITIATION_INTERVAL_MIN + 1
    assert state(client, server) == LinkState.CONNECTED


def test_a_server_that_only_sends_keepalives_keeps_the_link_up_without_probes() -> None:
    world = World()
    client, server = linked(world)
    for number in range(200):
        client.send(server, number.to_bytes(4, "big"))
        world.exchange()
        server.device._send_keepalive(server.peer(client), world.now)
        world.exchange()
        world.run(0.5)
    assert sent(world, client, TYPE_INITIATION) == 0
    assert len(payloads(server)) == 200
    assert client.total(Total.RESENT_PACKETS) == 0


def test_responses_held_back_for_long_do_not_break_the_session() -> None:
    world = World()
    client, server = linked(world)
    held: list[bytes] = []
    client.device.on_route_change(world.now, is_lost=True)
    world.run(5.0, hold(TYPE_RESPONSE, held))
    assert len(held) > 3
    until_connected(world, client, server, 6.0)
    for response in held:
        world.run(20.0)
        client.receive([response], server.endpoint)
        client.send(server, b"on")
        world.exchange()
    world.run(20.0)
    server.delivered.clear()
    client.send(server, b"last")
    world.exchange()
    assert payloads(server) == [b"last"]


def test_a_response_that_was_held_back_for_too_long_makes_no_session() -> None:
    world = World()
    client, server = linked(world)
    held: list[bytes] = []
    client.device.on_unreachable(server.endpoint.remote, world.now, refused=False)
    world.run(SUPERSEDED_SECS_MAX + 5.0, hold(TYPE_RESPONSE, held))
    current = client.peer(server).current
    unknown = client.dropped(DropReason.UNKNOWN_INDEX)
    client.receive([held[0]], server.endpoint)
    assert client.peer(server).current is current
    assert client.dropped(DropReason.UNKNOWN_INDEX) == unknown + 1
    client.receive([held[-1]], server.endpoint)
    assert client.peer(server).current is not current
