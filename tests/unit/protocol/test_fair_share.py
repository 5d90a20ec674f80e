"""The fair share in virtual time: a queue that is read more slowly than it fills, with dice in the kernel's place."""

from collections import Counter, deque
from collections.abc import Mapping
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.protocol.counters import DropReason
from oxidize.protocol.fair_share import (
    ALERT_SECS,
    FALLING_SECS,
    IDLE_SECS,
    PACKET_OVERHEAD_BYTES,
    SESSIONS_MAX,
    SHARE_MIN,
    WAIT_SECS,
    FairShare,
    QueueState,
    level,
)
from oxidize.protocol.rows import ReceivedRows
from tests.support.network import World, connected

SIZE = 1332
ACCOUNTED = SIZE + PACKET_OVERHEAD_BYTES
ROOM = 16 << 20
BATCH = 46  # datagrams that are read for one event
TURN_SECS, READ_SECS, PROCESSED_SECS = 30e-6, 3e-6, 13e-6
CAPACITY = 55_000  # datagrams in a second that can be processed, and some more in long batches
QUIET = 1_000_000  # the index of the session of which a message comes every 10 ms
QUIET_SECS = 0.01
STRANGER = 2_000_000


class Queue:
    """A receive queue as Linux accounts it: what was read counts until it is a quarter of the room, or all was read."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.queued = 0  # bytes
        self._read = 0  # bytes that still count
        self._arrived: deque[tuple[float, int]] = deque()
        self._taken: deque[tuple[float, int]] = deque()  # by the reader, at once, when it has none

    def __len__(self) -> int:
        return len(self._arrived) + len(self._taken)

    def put(self, each: tuple[float, int]) -> bool:
        if self.queued > self.room:
            return False
        self._arrived.append(each)
        self.queued += ACCOUNTED
        return True

    def get(self) -> tuple[float, int]:
        if not self._taken:
            self._arrived, self._taken = self._taken, self._arrived
        each = self._taken.popleft()
        self._read += ACCOUNTED
        if self._read >= self.room // 4 or not self._taken:
            self.queued -= self._read
            self._read = 0
        return each


class Server:
    """A socket with its queue, and a loop that reads it; takes: whether the kernel takes a filter.

    waits: of the messages of QUIET that were processed, when each came and how long it took. lost: messages by session,
    of which `overflowed` for want of room. joined: whether GRO has joined all messages. Those of STRANGER are of no
    session.
    """

    def __init__(self, *, takes: bool = True, joined: bool = False, room: int = ROOM) -> None:
        self.random = Random(1)
        self.share = FairShare(self.random.randbytes)
        self.share.look = lambda: QueueState(self._queue.queued, room, self.dropped % (1 << 32))
        self.share.shed = self._shed
        self.share.on_begin = lambda _: self.begun.append(self.now)
        self.begun: list[float] = []
        self.filters: list[Mapping[int, float]] = []
        self.now = 1000.0
        self.dropped = (1 << 32) - 10  # the kernel's counter is about to begin again
        self.overflowed: Counter[int] = Counter()
        self.lost: Counter[int] = Counter()
        self.processed: Counter[int] = Counter()
        self.waits: list[tuple[float, float]] = []
        self._takes = takes
        self._joined = joined
        self._queue = Queue(room)
        self._next_quiet = self.now

    @property
    def passing(self) -> Mapping[int, float]:
        return self.filters[-1] if self.filters else {}

    def _shed(self, parts: Mapping[int, float]) -> bool:
        if self._takes:
            self.filters.append(parts)
        return self._takes

    def arrive(self, at: float, session: int) -> None:
        if not self._joined and self.random.random() >= self.passing.get(session, 1.0):
            self.dropped += 1
            self.lost[session] += 1
        elif not self._queue.put((at, session)):
            self.dropped += 1
            self.overflowed[session] += 1

    def run(self, rates: Mapping[int, float], secs: float, *, reads: bool = True) -> None:
        """Let so many messages of each session arrive in a second, evenly, and read meanwhile."""
        ends = self.now + secs
        due = {session: self.now + self.random.random() / rate for session, rate in rates.items()}
        order = sorted((at, session) for session, at in due.items())
        while self.now < ends:
            arrived = []
            for at, session in order:
                later = at
                while later <= self.now:
                    arrived.append((later, session))
                    later += 1 / rates[session]
                due[session] = later
            while self._next_quiet <= self.now:
                arrived.append((self._next_quiet, QUIET))
                self._next_quiet += QUIET_SECS
            order = [(at, session) for session, at in due.items()]
            for each in sorted(arrived):
                self.arrive(*each)
            if self._queue and reads:
                self._read()
            else:
                self.now += 100e-6

    def _read(self) -> None:
        batch = [self._queue.get() for _ in range(min(BATCH, len(self._queue)))]
        is_empty = not self._queue
        self.now += TURN_SECS + len(batch) * READ_SECS
        groups: dict[int, list[float]] = {}
        for at, session in batch:
            groups.setdefault(session, []).append(at)
        self.share.count(len(batch))
        for session, messages in groups.items():
            admitted = messages
            if self.share.is_counting and session != STRANGER:
                size = SIZE * len(messages)
                admitted = list(self.share.admit(session, messages, size, are_joined=self._joined))
            self.lost[session] += len(messages) - len(admitted)
            self.processed[session] += len(admitted)
            self.now += len(admitted) * PROCESSED_SECS
            if session == QUIET:
                self.waits += [(at, self.now - at) for at in admitted]
        self.share.note(self.now, is_empty=is_empty)

    def waits_since(self, at: float) -> list[float]:
        return [wait for came, wait in self.waits if came >= at]


def busy(number: int, together: float) -> dict[int, float]:
    return dict.fromkeys(range(1, number + 1), together / number)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_a_level_leaves_the_total_and_cuts_only_what_is_above_it(counts: list[int], part: float) -> None:
    total = part * sum(counts)
    limit = level(counts, total)
    left = sum(min(count, limit) for count in counts)
    assert 1.0 <= limit <= max(counts)
    assert left == pytest.approx(total) or (limit == 1.0 and left >= total)


def test_a_level_of_nothing_is_one_message() -> None:
    assert level([], 0.0) == 1.0


def test_nothing_is_dropped_or_counted_below_what_can_be_processed() -> None:
    server = Server()
    server.run(busy(20, 0.9 * CAPACITY), 1.0)
    assert server.lost.total() == 0
    assert not server.begun
    assert not server.share.is_counting


def test_a_long_queue_that_does_not_overflow_loses_nothing() -> None:
    server = Server()
    rates = busy(20, 0.5 * CAPACITY)
    server.run(rates, 0.7 * ROOM / ACCOUNTED / (0.5 * CAPACITY), reads=False)
    server.run(rates, 0.05)
    assert server.share.is_counting
    server.run(rates, 1.0)
    assert server.lost.total() == 0
    assert server.overflowed.total() == 0
    assert not server.share.is_counting, "the queue is short again"


def test_a_long_queue_that_falls_slowly_loses_nothing() -> None:
    server = Server()
    rates = busy(20, 1.06 * CAPACITY)
    server.run(rates, 0.7 * ROOM / ACCOUNTED / (1.06 * CAPACITY), reads=False)
    server.run(rates, 3 * FALLING_SECS)
    assert server.share.is_counting, "the queue is still long"
    assert server.lost.total() == 0
    assert not server.begun


def test_a_queue_that_is_nearly_full_and_does_not_overflow_is_left_alone() -> None:
    server = Server()
    rates = busy(20, 1.2 * CAPACITY)
    server.run(rates, 0.55 * ROOM / ACCOUNTED / (1.2 * CAPACITY), reads=False)
    server.run(rates, 0.2)
    assert not server.begun
    assert server.overflowed.total() == 0


def test_a_long_queue_that_does_not_fall_is_not_left_to_overflow() -> None:
    server = Server()
    rates = busy(20, 1.1 * CAPACITY)
    server.run(rates, 0.5 * ROOM / ACCOUNTED / (1.1 * CAPACITY), reads=False)
    assert not server.begun
    server.run(rates, 2 * FALLING_SECS + 0.5)
    assert server.begun
    assert server.overflowed.total() == 0
    began = server.now
    server.run(rates, 0.5)
    assert max(server.waits_since(began)) < 0.03


@pytest.mark.parametrize("load", [0.02, 0.5, 0.9])
def test_a_queue_that_overflowed_while_no_process_read_it_loses_nothing_more(load: float) -> None:
    server = Server()
    rates = busy(20, load * CAPACITY)
    server.run(busy(20, CAPACITY), 1.1 * ROOM / ACCOUNTED / CAPACITY, reads=False)
    assert server.overflowed
    server.share.begin()
    server.run(rates, 1.0)
    assert not server.begun
    assert server.lost.total() == 0


@pytest.mark.parametrize(
    ("kind", "sessions", "overload"),
    [("single", 1, 3.0), ("single", 5, 1.3), ("single", 50, 2.0), ("joined", 5, 1.5), ("no filter", 50, 1.5)],
)
def test_a_quiet_session_waits_in_a_short_queue_beside_any_overload(kind: str, sessions: int, overload: float) -> None:
    server = Server(takes=kind != "no filter", joined=kind == "joined")
    rates = busy(sessions, overload * CAPACITY)
    server.run(rates, 1.0)
    assert len(server.begun) == 1
    assert server.lost[QUIET] == 0
    before = server.processed.total()
    began = server.now
    server.run(rates, 0.5)
    waits = sorted(server.waits_since(began))
    assert len(waits) >= 0.48 / QUIET_SECS, "none is lost for want of room"
    assert waits[len(waits) // 2] < 2 * WAIT_SECS
    assert waits[-1] < 0.015
    if kind == "single" and sessions <= SESSIONS_MAX:
        assert server.processed.total() - before > 0.9 * CAPACITY * 0.5
    assert bool(server.passing) == (kind != "no filter")


@pytest.mark.parametrize("part", [0.15, 0.5, 0.95])
def test_a_flood_of_no_session_takes_nothing_from_the_sessions(part: float) -> None:
    server = Server()
    rates = {STRANGER: part * 2 * CAPACITY} | busy(5, (1 - part) * 2 * CAPACITY)
    server.run(rates, 3.0)
    assert server.overflowed
    assert server.lost.total() == 0
    assert not server.passing


def test_it_is_given_up_where_the_queue_stays_long() -> None:
    server = Server(takes=False)
    rates = busy(5, 12 * CAPACITY)  # more than can be read
    server.run(rates, 0.3)
    assert len(server.begun) == 1
    server.run(rates, 1.0)
    assert not server.share.is_dropping
    lost = server.lost.total()
    server.run(rates, 1.0)
    assert server.lost.total() == lost, "it is not tried again at once"


@pytest.mark.parametrize("room", [425_984, 2 << 20])
def test_a_quiet_session_loses_nothing_beside_an_overload_of_a_small_buffer(room: int) -> None:
    server = Server(room=room)
    server.run(busy(5, 2.0 * CAPACITY), 1.0)
    server.overflowed.clear()
    server.run(busy(5, 2.0 * CAPACITY), 1.0)
    assert server.overflowed[QUIET] == server.lost[QUIET] == 0


def test_one_that_sends_many_times_what_can_be_processed_gets_no_more_than_its_share() -> None:
    server = Server()
    rates = {1: 20 * CAPACITY} | dict.fromkeys(range(2, 12), 0.05 * CAPACITY)
    server.run(rates, 0.5)
    server.lost.clear()
    server.overflowed.clear()
    server.run(rates, 0.5)
    assert sum(server.lost[one] + server.overflowed[one] for one in range(2, 12)) == 0


def test_bursts_after_an_overload_end_what_it_has_begun() -> None:
    server = Server()
    server.run(busy(5, 2.0 * CAPACITY), 1.0)
    for _ in range(6):
        server.run(busy(5, 2.0 * CAPACITY), 0.05)
        server.run(busy(5, 0.3 * CAPACITY), 0.95)
    server.lost.clear()
    for _ in range(6):
        server.run(busy(5, 2.0 * CAPACITY), 0.05)
        server.run(busy(5, 0.3 * CAPACITY), 0.95)
    assert server.lost.total() == 0


def test_senders_that_adapt_themselves_lose_a_small_part() -> None:
    server = Server()
    rates = busy(20, 1.2 * CAPACITY)
    server.run(rates, 0.98 * ROOM / ACCOUNTED / (1.2 * CAPACITY), reads=False)
    for _ in range(100):
        if not server.begun:
            server.run(rates, 0.01)
    assert 0.7 < min(server.passing.values()) < 0.95
    server.lost.clear()
    server.run(busy(20, 0.6 * CAPACITY), 1.5)
    assert server.lost.total() < 0.2 * server.processed.total()
    assert not server.passing


def test_sessions_that_send_more_than_their_share_get_alike_and_the_others_all() -> None:
    server = Server()
    rates = {1: CAPACITY, 2: 0.5 * CAPACITY, 3: 0.5 * CAPACITY, 4: 0.05 * CAPACITY, 5: 0.02 * CAPACITY}
    server.run(rates, 0.7)
    server.processed.clear()
    server.overflowed.clear()
    server.lost.clear()
    server.run(rates, 1.0)
    assert server.overflowed.total() == 0
    assert server.lost[4] == server.lost[5] == server.lost[QUIET] == 0
    most, least = max(server.processed[n] for n in (1, 2, 3)), min(server.processed[n] for n in (1, 2, 3))
    assert most < 1.2 * least
    assert least > 0.15 * CAPACITY


def test_the_filter_goes_when_the_load_falls() -> None:
    server = Server()
    server.run(busy(10, 2.0 * CAPACITY), 0.7)
    assert server.passing
    server.run(busy(10, 0.5 * CAPACITY), 1.0)
    assert not server.passing
    assert not server.share.is_dropping
    assert server.share.expires_at == inf
    lost = server.lost.total()
    server.run(busy(10, 0.5 * CAPACITY), 1.0)
    assert server.lost.total() == lost


def test_the_filter_goes_when_nothing_comes_any_more() -> None:
    server = Server()
    server.run(busy(10, 2.0 * CAPACITY), 0.7)
    due = server.share.expires_at
    assert server.now < due <= server.now + IDLE_SECS
    server.share.expire(due - 0.001)
    assert server.passing
    server.share.expire(due)
    assert not server.passing
    assert server.share.expires_at == inf


def test_a_load_that_comes_back_soon_does_not_overflow_the_queue_again() -> None:
    server = Server()
    server.run(busy(10, 2.0 * CAPACITY), 0.7)
    server.run(busy(10, 0.5 * CAPACITY), 0.5)
    assert not server.share.is_dropping
    server.overflowed.clear()
    server.run(busy(10, 2.0 * CAPACITY), 0.5)
    assert server.overflowed.total() == 0
    server.run(busy(10, 0.5 * CAPACITY), ALERT_SECS + 1.0)
    server.run(busy(10, 2.0 * CAPACITY), 0.5)
    assert server.overflowed, "the alert has ended"


def test_what_a_flood_loses_by_its_filter_is_no_overflow() -> None:
    server = Server()
    rates = busy(20, 0.5 * CAPACITY)
    server.run(rates, 0.6 * ROOM / ACCOUNTED / (0.5 * CAPACITY), reads=False)
    server.run(rates, 0.05)
    for _ in range(20):
        server.dropped += 500
        server.run(rates, 0.001)
    assert not server.begun


def test_a_new_owner_begins_without_a_filter_and_leaves_the_socket_alone() -> None:
    server = Server()
    server.run(busy(10, 2.0 * CAPACITY), 0.7)
    filters = len(server.filters)
    server.share.begin()
    assert not server.share.is_dropping
    assert not server.share.is_counting
    assert len(server.filters) == filters, "it was detached by whose options the socket has"


def test_a_filter_has_the_busiest_sessions_and_leaves_each_a_part() -> None:
    server = Server()
    heavy = dict.fromkeys(range(1, 9), 8 * CAPACITY / 8)
    server.run(heavy | dict.fromkeys(range(100, 500), 0.5 * CAPACITY / 400), 0.6)
    for parts in server.filters:
        assert len(parts) <= SESSIONS_MAX
        assert all(SHARE_MIN <= part < 1.0 for part in parts.values())
    assert set(heavy) <= set(server.filters[0])


def test_what_the_kernel_has_dropped_is_estimated() -> None:
    server = Server()
    server.run(busy(10, 2.0 * CAPACITY), 0.7)
    server.share.about_shed = 0
    before = server.lost.total()
    server.run(busy(10, 2.0 * CAPACITY), 1.0)
    shed = server.lost.total() - before
    assert 0.7 * shed < server.share.about_shed < 1.1 * shed, "the last window is not counted yet"


def test_a_device_opens_what_is_admitted_and_counts_the_rest() -> None:
    world = World()
    client, server = connected(world)
    share = server.device.fair_share
    share.is_counting = True
    index = next(iter(server.peer(client).keypairs)).state.local_index
    share._sent, share._limit = {index: 1000.0}, 250.0
    rows, delivered = ReceivedRows(), 0
    for _ in range(10):
        client.send(server, count=40)
        rows.clear()
        for number, datagram in enumerate(client.take_transmits()[0].datagrams):
            rows.room[number][0][: len(datagram)] = datagram
            rows.sizes.append(len(datagram))
            rows.endpoints.append(client.endpoint)
        delivered += sum(map(len, server.device.receive_rows(rows, world.now)))
    assert 40 < delivered < 200
    assert delivered + server.dropped(DropReason.OVER_FAIR_SHARE) == 400
