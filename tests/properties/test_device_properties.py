"""Whatever comes off the wire that is not genuine raises nothing, changes no session, and is counted once.

Genuine messages of all four types are captured in a world, some delivered and some not, and then broken in every way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.protocol.admission import COOKIE_REPLIES_BURST, COOKIE_REPLIES_RESERVED
from oxidize.protocol.constants import (
    BATCH_PACKETS_MAX,
    MAC_SIZE,
    TYPE_COOKIE_REPLY,
    TYPE_DATA,
    TYPE_INITIATION,
    TYPE_RESPONSE,
)
from oxidize.protocol.counters import TOTALS_WORDS, DropReason, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import message_type
from oxidize.protocol.rate_limiter import Budget
from tests.support.network import Host, World, joined, packet

EXAMPLES = 300  # batches, of half BATCH_PACKETS_MAX at least
DATAGRAMS_MIN = 10_000

LENGTHS = st.integers(1, BATCH_PACKETS_MAX)

# What a datagram that was not dropped is counted as.
ACCEPTED = [
    Total.RECEIVED_PACKETS,
    Total.RECEIVED_KEEPALIVES,
    Total.INITIATIONS_RECEIVED,
    Total.HANDSHAKES_INITIATOR,
    Total.COOKIE_REPLIES_RECEIVED,
]


@dataclass(frozen=True)
class Captured:
    """A genuine message, to whom it is, from where, and whether it has arrived already."""

    host: Host
    source: Endpoint
    datagram: bytes
    arrived: bool


@cache
def capture() -> tuple[World, list[Captured]]:
    """Return a world in which handshakes are in flight, sessions live and packets wait, and what was said in it."""
    world = World()
    server, client, late, loaded, refused = hosts = [world.host(under_load_handshakes=1 << 30) for _ in range(5)]
    loaded.options["under_load_handshakes"] = 0
    for host in (client, late, loaded):
        host.know(server)
        server.know(host, reachable=False)
    refused.know(loaded)
    loaded.know(refused)
    for host in hosts:
        host.start()
        # Thousands of broken messages in one instant would be load by themselves.
        host.device._handshaker.admission._failures = Budget(1 << 30, 1 << 30)
    client.send(server)
    world.exchange()
    server.send(client)
    world.exchange()
    captured = [Captured(world.hosts[target], source, datagram, True) for source, target, datagram in world.log]
    world.now += 130

    def say(host: Host) -> None:
        for transmit in host.device.take_transmits():
            for datagram in transmit.datagrams:
                captured.append(Captured(world.hosts[transmit.endpoint], host.endpoint, datagram, False))

    client.send(server)  # data, and an initiation for a rekey
    say(client)
    late.send(server)
    server.device.receive_datagrams(late.device.take_transmits()[0].datagrams, late.endpoint, world.now)
    say(server)  # a response
    refused.send(loaded)
    loaded.device.receive_datagrams(refused.device.take_transmits()[0].datagrams, refused.endpoint, world.now)
    say(loaded)  # a cookie reply
    kinds = {message_type(each.datagram) for each in captured if not each.arrived}
    assert kinds == {TYPE_INITIATION, TYPE_RESPONSE, TYPE_COOKIE_REPLY, TYPE_DATA}
    return world, captured


def state(host: Host) -> list[object]:
    """Return all that sessions consist of."""
    found: list[object] = [len(host.journal), bytes(host.slots.counters[TOTALS_WORDS:]), host.device.next_deadline()]
    for peer in host.device.peers.values():
        found += [peer.keypairs_change(), peer.endpoint, peer.last_timestamp, peer.initiation_received_at, peer.slot]
        found += [list(peer.staged), peer.handshake, peer.handshake_wanted_at, peer.initiation_sent_at]
        found += [peer.cookie_jar.cookie, peer.cookie_jar.last_mac1]
    return [*found, host.device._handshaker.cookie_checker.secret, list(host.device._table.transmits)]


def count(host: Host) -> tuple[int, int]:
    """Return how many datagrams were received, and how many of them are accounted for."""
    dropped = sum(host.dropped(reason) for reason in DropReason)
    return host.total(Total.RECEIVED_DATAGRAMS), dropped + sum(host.total(total) for total in ACCEPTED)


def is_genuine(broken: bytes, captured: Captured) -> bool:
    """Tell whether a message that has not arrived yet would rightly be taken: mac2 is read under load alone."""
    kind = message_type(captured.datagram)
    end = -MAC_SIZE if kind in (TYPE_INITIATION, TYPE_RESPONSE) else None
    return len(broken) == len(captured.datagram) and broken[:end] == captured.datagram[:end]


def break_message(draw: Random, datagram: bytes) -> bytes:
    broken = bytearray(datagram)
    way = draw.randrange(7)
    if way == 0:  # flipped bits
        for _ in range(draw.randint(1, 8)):
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
    elif way == 1:
        del broken[draw.randrange(len(broken)) :]
    elif way == 2:
        broken += draw.randbytes(draw.choice([1, 16, 2_000, 65_507 - len(broken)]))
    elif way == 3:  # another type, or bits that must be zero
        broken[draw.randrange(4)] = draw.randrange(256)
    elif way == 4:  # another counter, or ephemeral key
        broken[8:16] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)])
    elif way == 5:
        start = draw.randrange(len(broken))
        broken[start:] = draw.randbytes(len(broken) - start)
    return bytes(broken)  # or as it is: a replay


def test_broken_messages_raise_nothing_change_no_session_and_are_counted_once() -> None:
    _, captured = capture()
    hosts = {each.host for each in captured}
    before = sum(host.total(Total.RECEIVED_DATAGRAMS) for host in hosts)
    send_broken_messages()
    assert sum(host.total(Total.RECEIVED_DATAGRAMS) for host in hosts) - before >= DATAGRAMS_MIN
    dropped = {reason for reason in DropReason for host in hosts if host.dropped(reason)}
    assert dropped == {
        DropReason.MALFORMED,
        DropReason.MAC1_INVALID,
        DropReason.UNKNOWN_INDEX,
        DropReason.AUTHENTICATION_FAILED,
        DropReason.REPLAYED_COUNTER,
        DropReason.REPLAYED_TIMESTAMP,
        DropReason.KEYPAIR_EXPIRED,
    }


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 1 << 32), size=st.integers(BATCH_PACKETS_MAX // 2, BATCH_PACKETS_MAX))
def send_broken_messages(seed: int, size: int) -> None:
    draw = Random(seed)
    world, captured = capture()
    template = draw.choice(captured)
    host = template.host
    batch: list[bytes | memoryview] = []
    while len(batch) < size:
        # What has arrived may come again; what has not must be broken.
        genuine = draw.choice([each for each in captured if each.host is host])
        broken = break_message(draw, genuine.datagram)
        if genuine.arrived or not is_genuine(broken, genuine):
            batch.append(draw.choice([bytes, memoryview])(broken))
    source = draw.choice([template.source, host.endpoint, Endpoint(draw.randbytes(16), draw.randrange(1 << 16))])
    check_nothing_happens(world, host, batch, source)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    batch=st.lists(
        st.binary(max_size=200)
        | st.builds(lambda kind, rest: bytes([kind, 0, 0, 0]) + rest, st.integers(1, 4), st.binary(max_size=200)),
        max_size=BATCH_PACKETS_MAX,
    ),
    data=st.data(),
)
def test_random_datagrams_raise_nothing_change_no_session_and_are_counted_once(
    batch: list[bytes], data: st.DataObject
) -> None:
    world, captured = capture()
    target = data.draw(st.sampled_from(captured))
    check_nothing_happens(world, target.host, batch, target.source)


def check_nothing_happens(world: World, host: Host, batch: Sequence[bytes | memoryview], source: Endpoint) -> None:
    before, (received, accounted) = state(host), count(host)
    drops = [host.dropped(reason) for reason in DropReason]
    assert host.device.receive_datagrams(batch, source, world.now) == []
    assert state(host) == before
    assert count(host) == (received + len(batch), accounted + len(batch))
    dropped = sum(host.dropped(reason) - old for reason, old in zip(DropReason, drops, strict=True))
    assert dropped == len(batch)


def runs() -> st.SearchStrategy[list[int]]:
    return st.builds(lambda first, length: list(range(first, min(300, first + length))), st.integers(0, 299), LENGTHS)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_genuine_messages_in_any_order_and_number_are_counted_once(data: st.DataObject) -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.exchange()
    world.now += 130
    client.send(server, count=5)
    server.send(client, count=5)
    said = [(client, transmit.datagrams) for transmit in server.device.take_transmits()]
    said += [(server, transmit.datagrams) for transmit in client.device.take_transmits()]
    said += [(world.hosts[target], [datagram]) for _, target, datagram in world.log]
    for host, datagrams in data.draw(st.lists(st.sampled_from(said), max_size=12)):
        source = server.endpoint if host is client else client.endpoint
        chosen = data.draw(st.lists(st.sampled_from(datagrams), max_size=12))
        host.device.receive_datagrams(chosen, source, world.now)
        received, accounted = count(host)
        assert received == accounted


@settings(max_examples=100, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 299), max_size=BATCH_PACKETS_MAX) | runs(), max_size=8))
def test_each_packet_is_delivered_when_it_comes_first_however_the_batches_fall(batches: list[list[int]]) -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.exchange()
    packets = [packet(client.inner, server.inner, number.to_bytes(2, "big")) for number in range(300)]
    for first in range(0, 300, BATCH_PACKETS_MAX):
        client.device.send_packets(packets[first : first + BATCH_PACKETS_MAX], world.now)
    said = [datagram for transmit in client.device.take_transmits() for datagram in transmit.datagrams]
    seen: set[int] = set()
    for batch in batches:
        expected = [number for number in dict.fromkeys(batch) if number not in seen]
        seen.update(batch)
        delivered = server.device.receive_datagrams([said[number] for number in batch], client.endpoint, world.now)
        assert delivered == [packets[number] for number in expected]


@settings(max_examples=150, deadline=None)
@given(
    packets=st.lists(
        st.binary(max_size=100)
        | st.builds(
            lambda destination, size: packet("10.0.0.1", destination, bytes(size)),
            st.sampled_from(["10.0.0.2", "10.0.0.3", "10.0.0.9"]),
            st.sampled_from([0, 1, 1_400, 65_535 - 20]),
        )
        | st.integers(0, 65_535).map(bytes),
        max_size=BATCH_PACKETS_MAX,
    )
)
def test_whatever_is_to_be_sent_raises_nothing_and_is_counted_once(packets: list[bytes]) -> None:
    world = World()
    client, server, distant = (world.host() for _ in range(3))
    for other in (server, distant):
        client.know(other)
        other.know(client)
    for host in (client, server, distant):
        host.start()
    client.send(server)
    world.exchange()
    sealed = client.total(Total.SENT_PACKETS)
    client.device.send_packets(packets, world.now)
    waiting = sum(len(peer.staged) for peer in client.device.peers.values())
    dropped = sum(client.dropped(reason) for reason in DropReason)
    assert client.total(Total.SENT_PACKETS) - sealed + waiting + dropped == len(packets)
    world.exchange()
    assert client.total(Total.SENT_PACKETS) - sealed + dropped == len(packets)


def test_a_loaded_device_asks_for_cookies_and_keeps_its_sessions() -> None:
    world = World()
    client, server = joined(world.host(), world.host(under_load_handshakes=0))
    client.send(server)
    world.run(11)
    assert len(server.delivered) == 1
    initiation = next(datagram for _, _, datagram in world.log if message_type(datagram) == TYPE_INITIATION)
    before = state(server)
    for port in range(1_000):
        server.device.receive_datagrams([initiation], Endpoint(bytes(16), port), world.now)
        answered = sum(len(each) for transmit in server.device.take_transmits() for each in transmit.datagrams)
        # At one instant a stranger gets what the budget has at once.
        assert answered == (64 if port < COOKIE_REPLIES_BURST - COOKIE_REPLIES_RESERVED else 0)
    assert state(server) == before
    assert len(server.device._handshaker.admission.limiter) <= 1
