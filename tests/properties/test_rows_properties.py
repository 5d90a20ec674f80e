"""The fast path does what the slow one does: datagram by datagram, counter by counter, timer by timer.

Two worlds are the same, up to every random number. In one a host receives batches in rows, in the other one datagram
after the other, in the order in which the first has processed them: what it left to the slow path comes behind. Both
send the same packets, the first of them in rows.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.protocol import crypto, noise, timers
from oxidize.protocol.constants import BATCH_PACKETS_MAX, DATA_OVERHEAD, NEVER
from oxidize.protocol.counters import SEND_COUNTER
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.inner_packets import Frame
from oxidize.protocol.messages import data_receiver
from oxidize.protocol.peer import Peer
from oxidize.protocol.row_sender import SealedBatch
from oxidize.protocol.rows import ROW_BYTES, ReceivedRows
from oxidize.protocol.session_table import Transmit
from oxidize.protocol.super_packets import VNET_HEADER_SIZE, SuperPacket
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import Host, World, ipv6_packet, packet
from tests.support.segments import Segment, comparable, cut

EXAMPLES = 120
REMEMBERED_KEYS = 1024
CLIENTS = 3
ELSEWHERE = Endpoint(bytes([198, 51, 100, 7]), 7)

# What a datagram of a batch is.
KINDS = (
    *("data",) * 6,
    *("segment",) * 3,
    "keepalive",
    "again",
    "forged",
    "cut",
    "junk",
    "stray",
    "stray from elsewhere",
    "initiation",
    "of another",
    "of no peer",
    *("ipv6",) * 2,
    "ipv6 of another",
    "ipv6 too long",
    "malformed",
    "options",
)
PAUSES = (0.0, 0.0, 0.001, 0.5, 1.5, 11.0, 60.0, 121.0, 166.0, 181.0)

Datagram = tuple[bytes, Endpoint]
Sent = tuple[list[SealedBatch], Sequence[bytes | memoryview]]
Step = tuple[str, int, int]  # kind, client, payload size or place
Round = tuple[list[Step], bool, float, int, list[tuple[int, int]], int]
BATCHES = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.sampled_from(KINDS), st.integers(0, CLIENTS - 1), st.integers(0, 1400)),
            min_size=1,
            max_size=BATCH_PACKETS_MAX,
        ),
        st.booleans(),  # whether all come from one client and are as long
        st.sampled_from(PAUSES),
        st.integers(0, CLIENTS),  # the client whose address changes before
        st.lists(  # what the host under test sends before: to which client, and how many bytes
            st.tuples(st.integers(0, CLIENTS), st.integers(0, 2100)), max_size=BATCH_PACKETS_MAX
        ),
        st.integers(0, BATCH_PACKETS_MAX),  # how often the first of these is repeated before the others
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(autouse=True, scope="module")
def _remembered_secrets() -> Iterator[None]:
    """Compute the keys and shared secrets once with which every world begins, as all have the same seed."""
    with pytest.MonkeyPatch.context() as patch:
        load_private_key = lru_cache(REMEMBERED_KEYS)(crypto.load_private_key)
        for module in (crypto, noise):
            patch.setattr(module, "load_private_key", load_private_key)
        patch.setattr(noise, "shared_secret", lru_cache(REMEMBERED_KEYS)(crypto.shared_secret))
        yield


@dataclass
class Stand:
    """A world with a host under test, and those that send to it."""

    world: World
    host: Host
    senders: list[Host]
    said: list[Datagram]
    segments: int = 0


def make(*, is_client: bool) -> Stand:
    """Return a world in which the host under test has a session with each of the senders."""
    world = World(seed=7)
    host = world.host(under_load_handshakes=1 << 30)
    senders = [world.host() for _ in range(1 if is_client else CLIENTS)]
    for sender in senders:
        sender.know(host, reachable=not is_client)
        host.know(sender, reachable=is_client, link=DEFAULT_POLICY if is_client else None)
    for each in (host, *senders):
        each.start()
    host.device.begin_links(world.now)
    for sender in senders:
        (host if is_client else sender).send(sender if is_client else host)
    world.exchange()
    return Stand(world, host, senders, [])


def datagrams_of(stand: Stand, step: Step) -> list[bytes]:
    """Return what a step sends; none where the sender has no session."""
    kind, number, size = step
    sender = stand.senders[number % len(stand.senders)]
    now, to = stand.world.now, stand.host.inner
    if kind in {"junk", "stray", "stray from elsewhere"}:
        return [bytes([size & 0xFF, 0, 0, 0]) * (size % 40) if kind == "junk" else b"\4\0\0\0" + bytes(28 + size % 64)]
    if kind == "again":
        return [stand.said[size % len(stand.said)][0]] if stand.said else []
    if kind == "initiation":
        sender.device._handshaker.initiate(sender.peer(stand.host), now)
    elif kind == "keepalive":
        sender.device._send_keepalive(sender.peer(stand.host), now)
    else:
        another = stand.senders[(number + 1) % len(stand.senders)]
        payload = packet(sender.inner, to, bytes(size))
        payload6 = ipv6_packet(sender.inner6, stand.host.inner6, bytes(size))
        stand.segments += kind == "segment"
        wrong = {
            # In the order of one flow where all are as long.
            "segment": Segment(
                sender.inner, to, sequence=stand.segments * size, payload=bytes(size or 1), ident=stand.segments
            ).packet(),
            "of another": packet(another.inner, to, bytes(size)),
            "of no peer": packet("10.0.0.99", to, bytes(size)),
            "ipv6": payload6,
            "ipv6 of another": ipv6_packet(another.inner6, stand.host.inner6, bytes(size)),
            "ipv6 too long": payload6[: max(1, len(payload6) - 1 - size % 60)],
            "malformed": payload[: size % 30],
            "options": b"\x46" + payload[1:],
        }
        peer = sender.peer(stand.host)
        if peer.current is None or peer.current.is_expired(now) or not (inner := wrong.get(kind, payload)):
            return []
        sender.device._seal(peer, peer.current, stand.host.endpoint, [inner], now)
    datagrams = [datagram for transmit in sender.take_transmits() for datagram in transmit.datagrams]
    if kind == "forged":
        return [datagram[:-1] + bytes([datagram[-1] ^ 1]) for datagram in datagrams]
    return [datagram[: size % len(datagram)] for datagram in datagrams] if kind == "cut" else datagrams


def batch_of(stand: Stand, steps: list[Step]) -> list[Datagram]:
    """Return the datagrams of a batch with their sources; they are remembered."""
    batch = []
    for step in steps:
        source = stand.senders[step[1] % len(stand.senders)].endpoint
        source = ELSEWHERE if step[0] == "stray from elsewhere" else source
        batch += [(datagram, source) for datagram in datagrams_of(stand, step)]
    batch = batch[:BATCH_PACKETS_MAX]
    stand.said += batch
    return batch


def fill(rows: ReceivedRows, batch: list[Datagram]) -> None:
    """Fill rows as a receive does: with datagrams that GRO would join, or with single ones."""
    rows.clear()
    sizes, sources = [len(datagram) for datagram, _ in batch], {endpoint for _, endpoint in batch}
    first, last = sizes[0], sizes[-1]
    if len(sources) == 1 and set(sizes[:-1]) <= {first} and 0 < last <= first and DATA_OVERHEAD <= first <= ROW_BYTES:
        data = b"".join(datagram for datagram, _ in batch)
        rows.memory[: len(data)] = data
        rows.fill_joined(len(data), first, *sources)
        return
    for datagram, endpoint in batch:
        rows.room[len(rows.sizes)][0][: len(datagram)] = datagram
        rows.sizes.append(len(datagram))
        rows.endpoints.append(endpoint)


def packets_of(frame: Frame, header_size: int) -> list[bytes]:
    """Return the packets that the kernel makes of a frame."""
    if isinstance(frame, SuperPacket):
        return cut(b"".join(frame.buffers))
    assert bytes(frame[:header_size]) == bytes(header_size)
    return [bytes(frame[header_size:])]


def receive_in_rows(stand: Stand, batch: list[Datagram], rows: ReceivedRows) -> tuple[list[bytes], list[Datagram]]:
    """Return the packets that a batch delivers, and the batch in the order in which it was processed."""
    fill(rows, batch)
    device = stand.host.device
    of_sessions = [row for row, (datagram, _) in enumerate(batch) if device._table.indices.get(index_of(datagram))]
    left: list[int] = []
    receive = device._receiver.receive

    def note_left(rows: ReceivedRows, now: float) -> tuple[list[Peer | None], list[int]]:
        nonlocal left
        owners, left = receive(rows, now)
        return owners, left

    device._receiver.receive = note_left  # type: ignore[method-assign]  # of this one object, for this one call
    joins = rows.header_size == VNET_HEADER_SIZE
    frames = chain.from_iterable(device.receive_rows(rows, stand.world.now, join_segments=joins))
    packets = [packet for frame in frames for packet in packets_of(frame, rows.header_size)]
    del device._receiver.receive
    first = [row for row in of_sessions if row not in left]
    last = [row for row in range(len(batch)) if row not in first + left]
    return packets, [batch[row] for row in first + left + last]


def index_of(datagram: bytes) -> int:
    return data_receiver(datagram) or 0


def receive_singly(stand: Stand, batch: list[Datagram]) -> list[bytes]:
    device, now = stand.host.device, stand.world.now
    return [packet for datagram, endpoint in batch for packet in device.receive_datagrams([datagram], endpoint, now)]


def packet_to(stand: Stand, number: int, size: int) -> bytes:
    """Return a packet to a client, or to an address that no peer has."""
    inner = stand.senders[number % len(stand.senders)].inner if number < CLIENTS else "10.9.9.9"
    return packet(stand.host.inner, inner, bytes(size))


def send_in_rows(stand: Stand, packets: list[bytes]) -> list[bytes]:
    """Send packets; return them in the order in which they were processed."""
    device = stand.host.device
    send = device._sender.send
    left: Sequence[bytes | memoryview] = []

    def note_left(packets: Sequence[bytes | memoryview], now: float) -> Sent:
        nonlocal left
        batches, left = send(packets, now)
        return batches, left

    device._sender.send = note_left  # type: ignore[method-assign]  # of this one object, for this one call
    batches = device.send_rows(packets, stand.world.now)
    del device._sender.send
    assert all(batch.joined is None or batch.joined == b"".join(batch.datagrams) for batch in batches)
    stand.host.flushed += [Transmit(batch.endpoint, list(map(bytes, batch.datagrams))) for batch in batches]
    first = [packet for packet in packets if not any(packet is each for each in left)]
    return first + list(map(bytes, left))


def by_endpoint(host: Host) -> dict[Endpoint, list[bytes]]:
    """Return what a host is about to send."""
    found: dict[Endpoint, list[bytes]] = defaultdict(list)
    for transmit in host.flushed + host.device._table.transmits:
        found[transmit.endpoint] += transmit.datagrams
    return found


def by_source(packets: list[bytes]) -> dict[bytes, list[bytes]]:
    found = defaultdict(list)
    for each in packets:
        found[each[12:16]].append(comparable(each))
    return found


def assert_no_timer_is_late(host: Host) -> None:
    for peer in host.device.peers.values():
        due = timers.deadline(peer, host.slots.counters)
        assert due == NEVER or peer.deadlines[-1] <= due


def assert_equal(fast: Stand, slow: Stand) -> None:
    assert fast.host.slots.counters.tolist() == slow.host.slots.counters.tolist()
    assert [peer.endpoint for peer in fast.host.device.peers.values()] == [
        peer.endpoint for peer in slow.host.device.peers.values()
    ]
    assert sorted(map(repr, fast.host.journal)) == sorted(map(repr, slow.host.journal))


def compare(batches: list[Round], *, is_client: bool) -> None:
    fast, slow = make(is_client=is_client), make(is_client=is_client)
    rows = ReceivedRows(0 if is_client else VNET_HEADER_SIZE)
    for drawn, alike, pause, moving, answers, again in batches:
        steps = [(kind, *drawn[0][1:]) for kind, _, _ in drawn] if alike else drawn
        for stand in (fast, slow):
            stand.world.run(pause)
            if moving < len(stand.senders):
                sender = stand.senders[moving]
                stand.world.move(sender, sender.endpoint._replace(port=sender.endpoint.port + 1))
        packets = [
            packet_to(fast, number, size) for number, size in (answers[:1] * again + answers)[:BATCH_PACKETS_MAX]
        ]
        slow.host.device.send_packets(send_in_rows(fast, packets), slow.world.now)
        assert by_endpoint(fast.host) == by_endpoint(slow.host)
        assert_equal(fast, slow)
        assert_no_timer_is_late(fast.host)
        for stand in (fast, slow):
            stand.world.exchange()
        batch = batch_of(fast, steps)
        assert batch == batch_of(slow, steps)
        if not batch:
            continue
        delivered, processed = receive_in_rows(fast, batch, rows)
        assert by_source(delivered) == by_source(receive_singly(slow, processed))
        assert_equal(fast, slow)
        assert_no_timer_is_late(fast.host)
        for stand in (fast, slow):
            stand.world.exchange()
        assert_equal(fast, slow)


@settings(max_examples=EXAMPLES)
@given(BATCHES)
def test_a_server_receives_in_rows_what_it_receives_singly(batches: list[Round]) -> None:
    compare(batches, is_client=False)


@settings(max_examples=EXAMPLES)
@given(BATCHES)
def test_a_client_with_a_link_receives_in_rows_what_it_receives_singly(
    batches: list[Round],
) -> None:
    compare(batches, is_client=True)


def test_a_session_whose_send_counter_has_run_out_still_receives() -> None:
    fast, slow = make(is_client=False), make(is_client=False)
    for stand in (fast, slow):
        current = stand.host.peer(stand.senders[0]).current
        assert current is not None
        stand.host.slots.counters[current.slot + SEND_COUNTER] = (1 << 64) - 1
    batch = batch_of(fast, [("data", 0, 10)])
    assert batch == batch_of(slow, [("data", 0, 10)])
    packets, _ = receive_in_rows(fast, batch, ReceivedRows())
    assert packets == receive_singly(slow, batch) != []
    assert_equal(fast, slow)


@pytest.mark.parametrize("count", [1, 8], ids=["one", "a run"])
def test_what_comes_again_is_delivered_once(count: int) -> None:
    fast, slow = make(is_client=False), make(is_client=False)
    batch = batch_of(fast, [("data", 0, 10)] * count)
    assert batch == batch_of(slow, [("data", 0, 10)] * count)
    rows = ReceivedRows()
    for delivered in (count, 0):
        packets, processed = receive_in_rows(fast, batch, rows)
        assert packets == receive_singly(slow, processed)
        assert len(packets) == delivered
        assert_equal(fast, slow)


def test_the_first_message_of_a_new_session_confirms_it() -> None:
    fast, slow = make(is_client=False), make(is_client=False)
    for stand in (fast, slow):
        host, sender = stand.host, stand.senders[0]
        stand.world.run(30.0)  # the next initiation has to wait for seconds
        sender.device._handshaker.initiate(sender.peer(host), stand.world.now)
        for source, receiver in ((sender, host), (host, sender)):
            for transmit in source.take_transmits():
                receiver.receive(transmit.datagrams, source.endpoint)
        sender.take_transmits()  # the keepalive that would confirm it is lost
        assert host.peer(sender).next is not None
    batch = batch_of(fast, [("data", 0, 10)])
    assert batch == batch_of(slow, [("data", 0, 10)])
    packets, processed = receive_in_rows(fast, batch, ReceivedRows())
    assert packets == receive_singly(slow, processed) != []
    assert fast.host.peer(fast.senders[0]).next is None
    assert_equal(fast, slow)
