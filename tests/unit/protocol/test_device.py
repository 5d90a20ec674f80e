"""The device through its public calls: two real devices joined in memory, with each timer of the paper's section 6."""

import pytest

from oxidize.errors import StateError
from oxidize.protocol.constants import (
    INITIATION_SIZE,
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    STAGED_PACKETS_MAX,
    TYPE_DATA,
    TYPE_INITIATION,
    ZERO_KEYS_AFTER_TIME,
)
from oxidize.protocol.counters import SEND_COUNTER, DropReason, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import MACS_SIZE, message_type
from oxidize.state.records import Unknown, decode_change, encode_change
from tests.support import network
from tests.support.network import World, connected, initiations, joined, lose_everything, packet


def test_the_first_packet_starts_a_handshake_and_arrives() -> None:
    world = World()
    client, server = connected(world)
    server.send(client, b"pong", count=3)
    world.exchange()
    assert client.delivered == [packet(server.inner, client.inner, b"pong")] * 3
    assert client.total(Total.HANDSHAKES_INITIATOR) == server.total(Total.HANDSHAKES_RESPONDER) == 1
    assert client.drops() == server.drops() == {}


def test_different_preshared_keys_do_not_connect() -> None:
    world = World()
    client, server = joined(world.host(), world.host(), psk=b"a" * 32, server_psk=b"b" * 32)
    client.send(server)
    world.exchange()
    assert server.delivered == []
    assert client.dropped(DropReason.AUTHENTICATION_FAILED) == 1


def test_equal_preshared_keys_connect() -> None:
    world = World()
    client, server = joined(world.host(), world.host(), psk=b"a" * 32, server_psk=b"a" * 32)
    client.send(server)
    world.exchange()
    assert len(server.delivered) == 1


def test_the_responder_does_not_send_before_the_initiator_has_confirmed() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.carry()  # the initiation
    server.send(client)
    said = [message_type(datagram) for transmit in server.device.take_transmits() for datagram in transmit.datagrams]
    assert TYPE_DATA not in said
    assert server.peer(client).current is None
    assert server.peer(client).next is not None


def test_staged_packets_keep_their_order_and_the_oldest_are_dropped_first() -> None:
    world = World()
    client, server = world.pair()
    for number in range(STAGED_PACKETS_MAX + 5):
        client.send(server, number.to_bytes(4, "big"))
    world.exchange()
    expected = [packet(client.inner, server.inner, n.to_bytes(4, "big")) for n in range(5, STAGED_PACKETS_MAX + 5)]
    assert server.delivered == expected
    assert client.dropped(DropReason.STAGED_OVERFLOW) == 5


def test_packets_without_a_route_or_an_endpoint_are_counted() -> None:
    world = World()
    client, server = world.pair()
    client.device.send_packets([packet(client.inner, "10.9.9.9")], world.now)
    server.send(client)
    assert client.dropped(DropReason.NO_ROUTE) == 1
    assert server.dropped(DropReason.NO_ENDPOINT) == 1


def test_a_packet_from_a_source_that_is_not_allowed_is_not_delivered() -> None:
    world = World()
    client, server = connected(world)
    client.device.send_packets([packet("10.0.0.77", server.inner)], world.now)
    world.exchange()
    assert server.delivered == []
    assert server.dropped(DropReason.SOURCE_NOT_ALLOWED) == 1


def test_a_packet_with_the_source_address_of_another_peer_is_not_delivered() -> None:
    world = World()
    client, server, other = world.host(), world.host(), world.host()
    server.know(other)
    other.start()
    joined(client, server)
    client.device.send_packets([packet(other.inner, server.inner)], world.now)
    world.exchange()
    assert server.delivered == []
    assert server.dropped(DropReason.SOURCE_NOT_ALLOWED) == 1


def test_a_replayed_datagram_is_delivered_once() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    world.exchange(lambda source, destination, datagram: [datagram, datagram])
    assert len(server.delivered) == 1
    assert server.dropped(DropReason.REPLAYED_COUNTER) == 1


def test_a_replayed_initiation_is_not_answered() -> None:
    world = World()
    client, server = connected(world)
    initiation = next(datagram for _, _, datagram in world.log if message_type(datagram) == TYPE_INITIATION)
    before = server.peer(client).keypairs
    world.now += 1
    server.device.receive_datagrams([initiation], client.endpoint, world.now)
    assert server.device.take_transmits() == []
    assert server.peer(client).keypairs == before
    assert server.dropped(DropReason.REPLAYED_TIMESTAMP) == 1


def test_initiations_too_close_to_each_other_are_ignored() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    first = client.device.take_transmits()[0].datagrams
    client.start()
    world.now += 0.017  # another timestamp, but within INITIATION_INTERVAL_MIN
    client.send(server)
    second = client.device.take_transmits()[0].datagrams
    server.device.receive_datagrams(first, client.endpoint, world.now)
    server.device.receive_datagrams(second, client.endpoint, world.now)
    assert server.dropped(DropReason.INITIATION_FLOOD) == 1


def test_an_unknown_peer_gets_no_answer() -> None:
    world = World()
    client, server = world.host(), world.host()
    client.know(server)
    client.start()
    server.start()
    client.send(server)
    world.exchange()
    assert server.dropped(DropReason.UNKNOWN_PEER) == 1
    assert server.total(Total.SENT_DATAGRAMS) == 0


def test_a_handshake_message_with_a_wrong_mac1_is_not_answered() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    initiation = bytearray(client.device.take_transmits()[0].datagrams[0])
    initiation[-MACS_SIZE] ^= 1
    server.receive([bytes(initiation)], client.endpoint)
    assert server.device.take_transmits() == []
    assert server.drops() == {"MAC1_INVALID": 1}


def test_replies_follow_a_peer_that_moves() -> None:
    world = World()
    client, server = connected(world)
    world.move(client, Endpoint(bytes([198, 51, 100, 7]), 4242))
    client.send(server)
    world.exchange()
    server.send(client, b"found you")
    world.exchange()
    assert client.delivered == [packet(server.inner, client.inner, b"found you")]
    assert server.total(Total.ENDPOINT_MOVES) == 1


def test_a_forged_datagram_does_not_move_a_peer() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    datagram = bytearray(client.device.take_transmits()[0].datagrams[0])
    datagram[-1] ^= 1
    server.device.receive_datagrams([bytes(datagram)], Endpoint(bytes(4), 1), world.now)
    assert server.peer(client).endpoint == client.endpoint
    assert server.dropped(DropReason.AUTHENTICATION_FAILED) == 1


# --- Timers ---


def test_an_unanswered_initiation_is_repeated_with_jitter_and_given_up() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.run(REKEY_ATTEMPT_TIME + 10, lose_everything)
    tries = initiations(world)
    assert REKEY_ATTEMPT_TIME / (REKEY_TIMEOUT + 0.334) <= tries <= REKEY_ATTEMPT_TIME / REKEY_TIMEOUT + 1
    assert client.dropped(DropReason.HANDSHAKE_TIMED_OUT) == 1
    assert client.peer(server).handshake is None
    world.run(600)
    assert initiations(world) == tries


def test_the_initiator_rekeys_when_it_sends_after_rekey_after_time() -> None:
    world = World()
    client, server = connected(world)
    world.run(REKEY_AFTER_TIME - 1)
    client.send(server)
    world.exchange()
    assert initiations(world) == 1
    world.run(2)
    client.send(server)
    world.exchange()
    assert initiations(world) == 2
    assert len(server.delivered) == 2
    assert client.total(Total.HANDSHAKES_INITIATOR) == 2


def test_packets_on_their_way_during_a_rekey_arrive_on_both_sides() -> None:
    world = World()
    client, server = connected(world)
    client.send(server, b"late")
    server.send(client, b"late")
    to_server, to_client = (host.device.take_transmits()[0].datagrams for host in (client, server))
    world.now += REKEY_AFTER_TIME + 1
    client.send(server, b"rekey")
    world.exchange()
    assert client.total(Total.HANDSHAKES_INITIATOR) == server.total(Total.HANDSHAKES_RESPONDER) == 2
    server.receive(to_server, client.endpoint)
    client.receive(to_client, server.endpoint)
    assert server.delivered[-1] == packet(client.inner, server.inner, b"late")
    assert client.delivered[-1] == packet(server.inner, client.inner, b"late")


def test_the_responder_leaves_rekeying_to_the_initiator() -> None:
    world = World()
    client, server = connected(world)
    world.run(REKEY_AFTER_TIME + 1)
    server.send(client)
    server_says = [message_type(d) for t in server.device.take_transmits() for d in t.datagrams]
    assert TYPE_INITIATION not in server_says


def test_the_initiator_rekeys_on_receiving_when_the_keypair_is_about_to_die() -> None:
    world = World()
    client, server = connected(world)
    world.run(REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT + 1)
    assert initiations(world) == 1
    server.send(client)
    world.exchange()
    assert initiations(world) == 2


def test_nothing_is_sealed_or_opened_after_reject_after_time() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    late = client.device.take_transmits()[0].datagrams
    world.now += REJECT_AFTER_TIME
    assert server.device.receive_datagrams(late, client.endpoint, world.now) == []
    assert server.dropped(DropReason.KEYPAIR_EXPIRED) == 1
    client.send(server)
    kinds = [message_type(d) for t in client.device.take_transmits() for d in t.datagrams]
    assert kinds == [TYPE_INITIATION]


def test_a_received_packet_is_answered_within_keepalive_timeout() -> None:
    world = World()
    client, server = connected(world)
    sent = server.total(Total.SENT_KEEPALIVES)
    world.run(KEEPALIVE_TIMEOUT - 0.1)
    assert server.total(Total.SENT_KEEPALIVES) == sent
    world.run(0.2)
    assert server.total(Total.SENT_KEEPALIVES) == sent + 1
    assert client.total(Total.RECEIVED_KEEPALIVES) == 1


def test_an_answer_replaces_the_keepalive() -> None:
    world = World()
    client, server = connected(world)
    world.run(5)
    server.send(client)
    world.exchange()
    world.run(KEEPALIVE_TIMEOUT - 0.1)
    assert server.total(Total.SENT_KEEPALIVES) == 0


def test_silence_after_sending_starts_a_new_handshake() -> None:
    world = World()
    client, server = connected(world)
    client.send(server)
    world.exchange(lose_everything)
    world.run(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT - 0.1, lose_everything)
    assert initiations(world) == 1
    world.run(0.5)
    assert initiations(world) == 2
    assert client.total(Total.HANDSHAKES_INITIATOR) == 2


def test_persistent_keepalives_come_at_their_interval_and_bring_up_the_tunnel() -> None:
    world = World()
    client, server = world.pair(keepalive=25.0)
    world.run(0.1)
    assert client.total(Total.HANDSHAKES_INITIATOR) == 1
    world.run(100)
    assert client.total(Total.SENT_KEEPALIVES) == 1 + 4
    assert server.total(Total.RECEIVED_KEEPALIVES) == 1 + 4


def test_persistent_keepalives_never_give_up() -> None:
    world = World()
    client, _ = world.pair(keepalive=25.0)
    world.run(300, lose_everything)
    world.run(REKEY_TIMEOUT + 26)
    assert client.total(Total.HANDSHAKES_INITIATOR) == 1


def test_keys_are_forgotten_after_zero_keys_after_time() -> None:
    world = World()
    client, server = connected(world)
    world.run(ZERO_KEYS_AFTER_TIME + 1, lose_everything)
    assert client.peer(server).keypairs == ()
    assert server.peer(client).keypairs == ()
    assert client.device.next_deadline() is None


def test_a_send_counter_near_its_end_causes_a_rekey_and_then_stops() -> None:
    world = World()
    client, server = connected(world)
    current = client.peer(server).current
    assert current is not None
    index = current.state.slot + SEND_COUNTER
    world.now += REKEY_TIMEOUT
    client.slots.counters[index] = REKEY_AFTER_MESSAGES
    client.send(server)
    kinds = [message_type(d) for t in client.device.take_transmits() for d in t.datagrams]
    assert TYPE_INITIATION in kinds
    client.slots.counters[index] = REJECT_AFTER_MESSAGES
    client.send(server)
    assert client.device.take_transmits() == []


# --- Under load ---


def test_under_load_a_device_requires_and_accepts_cookies() -> None:
    world = World()
    client, server = joined(world.host(), world.host(under_load_handshakes=0))
    client.send(server)
    world.exchange()
    assert server.dropped(DropReason.COOKIE_REQUIRED) == 1
    assert server.total(Total.INITIATIONS_RECEIVED) == 0
    assert client.total(Total.COOKIE_REPLIES_RECEIVED) == 1
    world.run(REKEY_TIMEOUT + 1)
    assert server.delivered == [packet(client.inner, server.inner)]


def test_under_load_the_rate_of_a_source_with_a_good_cookie_is_limited() -> None:
    world = World()
    client, server = joined(world.host(), world.host(under_load_handshakes=0))
    client.send(server)
    world.exchange()
    world.run(REKEY_TIMEOUT + 1)
    assert server.total(Total.INITIATIONS_RECEIVED) == 1
    cookie, received_at = client.peer(server).cookie_jar.cookie, client.peer(server).cookie_jar.received_at
    for _ in range(40):
        client.start()
        client.peer(server).cookie_jar.cookie, client.peer(server).cookie_jar.received_at = cookie, received_at
        world.now += 0.03
        client.send(server)
        world.exchange()
    assert server.dropped(DropReason.RATE_LIMITED) >= 8  # 40 in 1.2 s; 5 and 20 a second may pass


def test_a_draining_device_refuses_new_handshakes_and_keeps_sessions() -> None:
    world = World()
    client, server = connected(world)
    server.device.accepting = False
    client.send(server)
    world.exchange()
    assert len(server.delivered) == 1
    world.run(REKEY_AFTER_TIME)
    client.send(server)
    world.exchange()
    assert server.dropped(DropReason.DRAINING) >= 1
    assert len(server.delivered) == 2


# --- Bounds ---


def test_more_peers_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxidize.protocol.membership.PEERS_MAX", 1)
    world = World()
    client, *others = (world.host() for _ in range(3))
    for other in others:
        client.know(other)
    with pytest.raises(StateError, match="at most 1 peers"):
        client.start()


def test_padding_hides_the_length_but_never_exceeds_the_mtu() -> None:
    world = World()
    client, server = connected(world)
    for size in (1, 15, 16, 17, 1400 - 20, 1420 - 20):
        client.send(server, bytes(size))
    sizes = [len(d) for t in client.device.take_transmits() for d in t.datagrams]
    assert sizes == [32 + length for length in (32, 48, 48, 48, 1408, 1420)]
    assert INITIATION_SIZE == 148


@pytest.mark.parametrize("clock", [-1.0, -1e300, float("nan"), float("inf"), float("-inf"), 1e18])
def test_a_wall_clock_that_is_wrong_ends_no_process_and_poisons_no_record(
    clock: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "EPOCH", clock)
    world = World()
    client, server = connected(world)
    for _ in range(3):
        world.run(130)
        client.send(server)
        world.exchange()
    assert len(server.delivered) == 3
    for host in (client, server):
        for change in host.journal:
            record = encode_change(change)
            assert decode_change(record, Unknown()) == change
