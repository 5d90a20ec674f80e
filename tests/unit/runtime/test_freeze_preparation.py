"""The work of a hand-off is independent of sessions, packets that wait and endpoints that moved, counted and not timed.

The state is the real one: two processes' worth of `SessionState` on one journal and one arena.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest

from oxidize.errors import StateError
from oxidize.protocol.changes import Change, PeerStaged, PeerStagedMore
from oxidize.protocol.counters import DropReason
from oxidize.protocol.crypto import public_key
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.noise import TransportKeys
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.unrecorded import FREEZE_BYTES_MAX, FREEZE_MOVES_MAX, FREEZE_PACKETS_MAX, SLICE_RECORDS_MAX
from oxidize.runtime import freeze_preparation
from oxidize.runtime.freeze_preparation import (
    LOOK_SECS,
    POSTPONE_SECS_MAX,
    SETTLE_SECS,
    SLICE_PAUSE_SECS,
    FreezePreparation,
)
from oxidize.state.session_state import SessionState
from tests.support.network import packet

PRIVATE_KEY = bytes(31) + b"\1"
KEY = bytes(32)
RECORD_BYTES_MAX = 200  # of a record without its packets
BOOT_ID = "boot"
HANDOFF_RECORDS_MAX = FREEZE_PACKETS_MAX + FREEZE_MOVES_MAX


def inner(number: int) -> str:
    return f"10.{1 + number // 250}.{number % 250}.1"


class Words:
    """Counters that count how often they are read and written."""

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.touched = 0

    def __getitem__(self, index: int) -> int:
        self.touched += 1
        return int(self.words[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.touched += 1
        self.words[index] = value

    def release(self) -> None:
        self.words.release()


@dataclass
class Process:
    state: SessionState
    device: Device
    words: Words
    records: list[Change] = field(default_factory=list)


class Stand:
    """A predecessor with peers that do not answer, its successor, and a clock that only the test moves."""

    def __init__(self, peers: int, undo: ExitStack) -> None:
        self.now = 1000.0
        self.settings = [
            PeerSettings(
                number.to_bytes(32, "big"),
                allowed_ips=(ip_network(f"{inner(number)}/32"),),
                endpoint=Endpoint(bytes([127, 0, 0, 1]), 1 + number),
            )
            for number in range(3, peers + 3)
        ]
        self._undo = undo
        self.old = self.process(SessionState.create("1", 1, BOOT_ID, public_key(PRIVATE_KEY)))
        for peer in self.old.device.peers.values():
            self.begin_session(peer)
        self.preparation = FreezePreparation(self.old.device.unrecorded, lambda: self.now)
        self.new: Process

    def process(self, state: SessionState) -> Process:
        self._undo.callback(state.close)
        words = Words(state.arena.counters)
        state.arena.counters = words  # type: ignore[assignment]  # it has all that is used of a memoryview

        def record(change: Change) -> None:
            state.record(change)
            process.records.append(change)

        device = Device(PRIVATE_KEY, self.settings, state.arena, os.urandom, lambda: 1.7e9, record)
        process = Process(state, device, words)
        return process

    def begin_session(self, peer: Peer) -> None:
        """Answer a handshake that the peer never confirms: it has a session, in which nothing may be sent yet."""
        table = self.old.device._table
        table.allocate_slot(peer)
        index = table.indices.new(None, table.random_bytes)
        keypair = table.create_keypair(peer, TransportKeys(KEY, KEY), (index, 1), False, self.now)
        table.rotate(peer, lambda: peer.rotate_as_responder(keypair))
        peer.initiation_sent_at = self.now  # else 5,000 handshakes of this side take most of the time

    def stage(self, each: int, peers: int | None = None, payload: bytes = b"waits") -> None:
        for settings in self.settings[:peers]:
            address = str(settings.allowed_ips[0].network_address)
            self.old.device.send_packets([packet("10.0.0.1", address, payload)] * each, self.now)
        self.old.device.take_transmits()

    def move(self, port: int) -> None:
        for peer in self.old.device.peers.values():
            self.old.device._table.move_endpoint(peer, Endpoint(bytes([192, 0, 2, 1]), port), self.now)

    def offer(self) -> None:
        self.old.state.hold()
        fds = self.old.state.fds
        state = SessionState.open(
            os.dup(fds["journal"]),
            os.dup(fds["arena"]),
            boot_id=BOOT_ID,
            public_key=public_key(PRIVATE_KEY),
            now=self.now,
        )
        self.new = self.process(state)
        self.new.device.restore(state.changes(), self.now)
        self.new.device.prepare()
        self.preparation.begin()

    def read_along(self) -> int:
        return self.new.device.restore(self.new.state.sync(), self.now).applied

    def run(self, secs: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        ends_at = self.now + secs
        while self.now < ends_at:
            self.now += SLICE_PAUSE_SECS
            meanwhile()
            due = self.preparation.next_deadline()
            if due is not None and due <= self.now:
                self.preparation.handle_timeout(self.now)

    def postpone(self, meanwhile: Callable[[], None] = lambda: None, *, reads_more: bool = True) -> float:
        """Wait from READY on until the freeze is allowed; return the seconds."""
        began = self.now
        while not self.preparation.may_freeze(reads_more=reads_more):
            self.run(2 * SLICE_PAUSE_SECS, meanwhile)
            self.read_along()
        return self.now - began

    def hand_over(self) -> tuple[int, int, int, int]:
        """Return records and bytes of the freeze, changes applied after COMMIT, and words touched in both."""
        old, new = self.old, self.new
        end, records, words = old.state.end, len(old.records), self.touched
        self.preparation.stop()
        old.device.freeze()
        old.state.stop_writing()
        applied = self.read_along()
        new.state.become_writer()
        new.state.hold()
        new.state.begin_generation("2", 2)
        new.device.own()
        return len(old.records) - records, old.state.end - end, applied, self.touched - words

    @property
    def touched(self) -> int:
        return sum(process.words.touched for process in (self.old, self.new))

    def waiting(self, device: Device) -> dict[bytes, list[bytes]]:
        return {key: list(peer.staged) for key, peer in device.peers.items()}


Stands = Callable[[int], Stand]


@pytest.fixture
def stands() -> Iterator[Stands]:
    with ExitStack() as undo:
        yield lambda peers: Stand(peers, undo)


def handed_over(stand: Stand) -> tuple[int, int, int, int]:
    """Hand over a server where packets wait for every peer, every peer roamed, and some packets come at the end."""
    stand.stage(2)
    stand.offer()
    stand.run(0.5)
    for port in (40_000, 40_001):  # the second one is held back
        stand.move(port)
    stand.stage(1, payload=b"after OFFER")
    postponed = stand.postpone()
    assert postponed < POSTPONE_SECS_MAX
    stand.stage(1, peers=5, payload=b"after the last slice")
    before = stand.waiting(stand.old.device)
    cost = stand.hand_over()
    assert stand.waiting(stand.new.device) == before
    assert {peer.endpoint for peer in stand.new.device.peers.values()} == {Endpoint(bytes([192, 0, 2, 1]), 40_001)}
    assert stand.old.device._table.moved == set()
    return cost


def test_the_blackout_is_independent_of_sessions_of_packets_that_wait_and_of_endpoints_that_moved(
    stands: Stands,
) -> None:
    few, many = stands(10), stands(5000)
    bounds = (HANDOFF_RECORDS_MAX, FREEZE_BYTES_MAX + HANDOFF_RECORDS_MAX * RECORD_BYTES_MAX, HANDOFF_RECORDS_MAX)
    assert many.old.device.live_sessions(many.now) == 5000
    for stand in (few, many):
        *cost, words = handed_over(stand)
        assert all(count <= bound for count, bound in zip(cost, bounds, strict=True)), cost
        assert words <= HANDOFF_RECORDS_MAX * 20
        assert cost[0] >= 5  # the last packets at least


def test_a_server_where_nothing_waits_freezes_at_once(stands: Stands) -> None:
    stand = stands(10)
    stand.offer()
    assert stand.postpone() == 0.0
    records, size, applied, _ = stand.hand_over()
    assert (records, size, applied) == (0, 0, 0)


def test_a_process_with_nothing_to_record_is_seldom_woken_while_its_successor_prepares(stands: Stands) -> None:
    stand = stands(10)
    stand.offer()
    ends_at, looks = stand.now + 1.0, 0
    while (due := stand.preparation.next_deadline()) is not None and due < ends_at:
        stand.now = max(stand.now, due)
        stand.preparation.handle_timeout(stand.now)
        looks += 1
    assert looks <= 1.0 / LOOK_SECS + 1


def test_the_freeze_waits_until_the_successor_has_read_what_was_recorded(stands: Stands) -> None:
    stand = stands(500)
    stand.offer()
    stand.stage(1)
    assert stand.postpone() >= SETTLE_SECS
    records, _, applied, _ = stand.hand_over()
    assert applied == records


def test_packets_that_keep_coming_while_others_are_recorded_do_not_postpone_the_freeze_for_long(
    stands: Stands,
) -> None:
    stand = stands(200)
    stand.stage(100)
    stand.offer()
    numbers = iter(range(1_000_000))

    def flow() -> None:  # 5,000 packets in a second, to all in turn
        for _ in range(5):
            number = next(numbers)
            address = str(stand.settings[number % 200].allowed_ips[0].network_address)
            stand.old.device.send_packets([packet("10.0.0.1", address, number.to_bytes(4, "big"))], stand.now)

    assert stand.postpone(flow) < 1.0
    before = stand.waiting(stand.old.device)
    records, *_ = stand.hand_over()
    assert 0 < records <= FREEZE_PACKETS_MAX
    assert stand.waiting(stand.new.device) == before
    assert stand.old.device._counters[128 + DropReason.STAGED_OVERFLOW] == 0


def test_packets_that_come_faster_than_they_are_recorded_are_dropped_at_the_deadline(
    stands: Stands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze_preparation, "POSTPONE_SECS_MAX", 0.1)
    stand = stands(300)
    stand.stage(1)
    stand.offer()
    elapsed = stand.postpone(lambda: stand.stage(1))
    assert 0.1 <= elapsed < 0.11
    stand.preparation.stop()
    before = stand.waiting(stand.old.device)
    records, *_ = stand.hand_over()
    assert records <= FREEZE_PACKETS_MAX
    assert stand.waiting(stand.new.device) == before
    assert stand.old.device._counters[128 + DropReason.STAGED_OVERFLOW] > 0


def test_a_freeze_that_nothing_has_prepared_records_little_as_well(stands: Stands) -> None:
    stand = stands(300)
    stand.stage(3)
    stand.move(4000)
    stand.offer()
    stand.preparation.stop()
    records, *_ = stand.hand_over()
    assert 0 < records <= HANDOFF_RECORDS_MAX


def test_a_withdrawn_offer_leaves_no_packet_in_the_records_and_the_next_one_records_them_again(
    stands: Stands,
) -> None:
    stand = stands(150)
    stand.stage(3)
    stand.offer()
    stand.run(0.5)
    assert len(stand.old.device._staging.recorded) > 1
    stand.preparation.cancel()
    stand.old.state.unhold()
    stand.run(0.5)
    assert stand.preparation.next_deadline() is None
    assert not any(isinstance(change, PeerStaged | PeerStagedMore) for change in stand.old.state.changes())
    before = stand.waiting(stand.old.device)
    stand.offer()
    stand.postpone()
    stand.hand_over()
    assert stand.waiting(stand.new.device) == before


def test_a_successor_of_an_older_release_gets_every_packet_in_the_record_that_it_knows(stands: Stands) -> None:
    stand = stands(20)
    stand.stage(10)
    stand.offer()
    stand.run(0.1)
    stand.stage(1)
    stand.run(0.1)
    stand.stage(1, peers=3)
    stand.postpone(reads_more=False)
    stand.hand_over()
    old = [change for change in stand.new.state.changes() if not isinstance(change, PeerStagedMore)]
    staged = {change.peer: list(change.packets) for change in old if isinstance(change, PeerStaged)}
    assert staged == stand.waiting(stand.old.device)


def test_a_session_that_begins_after_the_packets_were_recorded_takes_them_out_of_the_records(
    stands: Stands,
) -> None:
    stand = stands(3)
    stand.stage(4)
    stand.offer()
    stand.run(0.1)
    peer: Peer = next(iter(stand.old.device.peers.values()))
    assert len(stand.old.device._staging.take(peer)) == 4  # as when they are sent
    stand.read_along()
    assert not stand.new.device.peers[peer.public_key].staged


def test_records_that_are_full_end_the_preparation_and_not_the_service(
    stands: Stands, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = stands(3)
    stand.stage(100)
    stand.offer()

    def full(change: Change) -> None:
        raise StateError("the journal is full")

    monkeypatch.setattr(stand.old.device._table, "record", full)
    stand.run(0.01)
    assert stand.preparation.next_deadline() is None


def test_no_more_is_recorded_for_one_offer_than_may_be_staged(stands: Stands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_preparation, "RECORDED_BYTES_MAX", 20_000)
    stand = stands(100)
    stand.stage(1)
    stand.offer()
    begins_at = stand.old.state.end
    stand.run(0.1, lambda: stand.stage(2))
    assert stand.old.state.end - begins_at < 20_000 + SLICE_RECORDS_MAX * RECORD_BYTES_MAX
