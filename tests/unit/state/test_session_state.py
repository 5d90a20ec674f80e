"""Session state: a generation restores what its predecessor recorded, in the same boot, clock and identity only."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.protocol.changes import (
    Change,
    CookieSecret,
    KeypairState,
    PeerCookie,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerStagedMore,
    PeerTimestamp,
)
from oxidize.protocol.constants import PEERS_MAX, STAGED_BYTES_MAX
from oxidize.protocol.counters import SEND_COUNTER, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.state import journal as journal_module
from oxidize.state.journal import HEADER_BYTES, LIVE_FRACTION_MAX, REGION_BYTES_MAX
from oxidize.state.records import encode_change
from oxidize.state.session_state import CLOCK_AHEAD_SECS_MAX, TAKEOVERS_MAX, SessionState
from oxidize.state.stream import STRING_BYTES_MAX, encode

BOOT_ID = "6f1f2c1e-0000-4000-8000-0123456789ab"
PUBLIC_KEY = b"P" * 32
ALICE, BOB = b"A" * 32, b"B" * 32
NOW = 1000.0
U32_MAX = (1 << 32) - 1


@pytest.fixture
def state() -> Iterator[SessionState]:
    state = SessionState.create("0.1.0", 1, BOOT_ID, PUBLIC_KEY)
    yield state
    state.close()


def successor_of(
    state: SessionState, boot_id: str = BOOT_ID, public_key: bytes = PUBLIC_KEY, now: float = NOW
) -> SessionState:
    journal_fd, arena_fd = os.dup(state.fds["journal"]), os.dup(state.fds["arena"])
    return SessionState.open(journal_fd, arena_fd, boot_id=boot_id, public_key=public_key, now=now)


def keypair(slot: int, index: int = 1, created_at: float = NOW) -> KeypairState:
    return KeypairState(index, 2, b"s" * 32, b"r" * 32, created_at, True, slot)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- Restoring ---


def test_a_successor_knows_the_last_change_of_each_key_and_every_counter(state: SessionState) -> None:
    peer_slot, slot = state.arena.allocate(), state.arena.allocate()
    last: list[Change] = [
        PeerSeen(ALICE, peer_slot),
        PeerKeypairs(ALICE, None, keypair(slot, 2), None, 1.7e9),
        PeerEndpoint(ALICE, Endpoint(b"\x7f\0\0\1", 5)),
        CookieSecret(b"z" * 32, 3.0),
    ]
    state.record(PeerKeypairs(ALICE, None, keypair(slot, 1), None, 1.6e9))
    for change in last:
        state.record(change)
    state.arena.counters[slot + SEND_COUNTER] = 99
    successor = successor_of(state)
    assert set(successor.changes()) == set(state.changes()) == set(last)
    assert successor.arena.counters[slot + SEND_COUNTER] == 99
    assert (successor.generation, successor.release, successor.sessions) == (1, "0.1.0", 1)
    assert successor.end == state.end
    successor.close()


def test_changes_begin_with_the_peers_in_any_order_of_recording(state: SessionState) -> None:
    slots = [state.arena.allocate() for _ in range(2)]
    state.record(PeerCookie(ALICE, b"c" * 16, 1.0))
    state.record(PeerEndpoint(BOB, Endpoint(b"\x7f\0\0\1", 5)))
    state.record(PeerSeen(BOB, slots[0]))
    state.record(PeerSeen(ALICE, slots[1]))
    successor = successor_of(state)
    for changes in (state.changes(), successor.changes()):
        assert {type(change) for change in changes[:2]} == {PeerSeen}
        assert len(changes) == 4
    successor.close()


def test_changes_include_records_after_opening(state: SessionState) -> None:
    slot = state.arena.allocate()
    state.record(PeerSeen(ALICE, slot))
    state.stop_writing()
    successor = successor_of(state)
    assert successor.changes() == successor.changes() == [PeerSeen(ALICE, slot)]
    successor.become_writer()
    successor.record(PeerCookie(ALICE, b"c" * 16, 1.0))
    assert successor.changes() == [PeerSeen(ALICE, slot), PeerCookie(ALICE, b"c" * 16, 1.0)]
    successor.record(PeerRemoved(ALICE))
    assert successor.changes() == []
    successor.close()


def test_a_removed_peer_and_a_finished_handshake_leave_nothing_behind(state: SessionState) -> None:
    empty = state.journal.live_bytes
    state.record(PeerSeen(ALICE, state.arena.allocate()))
    state.record(PeerHandshake(ALICE, 9, b"e" * 32, b"c" * 32, b"h" * 32, b"m" * 16, 1.0, 1.0, 6.0))
    seen_and_handshake = state.journal.live_bytes
    state.record(PeerHandshake(ALICE, 0, b"", b"", b"", b"", 0.0, 0.0, 0.0))
    assert empty < state.journal.live_bytes < seen_and_handshake
    assert [type(change) for change in state.changes()] == [PeerSeen]
    state.record(PeerRemoved(ALICE))
    assert state.journal.live_bytes == empty


def test_a_peer_without_keypairs_keeps_its_last_handshake(state: SessionState) -> None:
    change = PeerKeypairs(ALICE, None, None, None, 1.7e9)
    state.record(PeerKeypairs(ALICE, None, keypair(state.arena.allocate()), None, 1.7e9))
    assert state.sessions == 1
    state.record(change)
    assert state.sessions == 0
    assert state.changes() == [change]


# --- A takeover, step by step ---


def test_the_tail_of_the_journal_reaches_the_successor_in_order(state: SessionState) -> None:
    slots = [state.arena.allocate() for _ in range(2)]
    state.record(PeerSeen(ALICE, slots[0]))
    state.hold()
    successor = successor_of(state)
    assert successor.sync() == []
    tail: list[Change] = [
        PeerKeypairs(ALICE, None, keypair(slots[1]), None, 1.0),
        PeerRemoved(ALICE),
        PeerSeen(BOB, slots[0]),
        PeerStaged(BOB, (b"packet",)),
    ]
    for change in tail[:3]:
        state.record(change)
    assert successor.sync() == tail[:3]
    state.record(tail[3])
    state.stop_writing()
    with pytest.raises(StateError):
        successor.become_writer()
    assert successor.sync() == tail[3:]
    assert successor.end == state.end
    assert set(successor.changes()) == set(tail[2:])
    successor.become_writer()
    successor.begin_generation("0.2.0", 2)
    with pytest.raises(StateError):
        state.record(tail[0])
    successor.close()


def test_later_packets_stay_behind_the_earlier_ones_although_a_compaction_copies_them_first(
    state: SessionState,
) -> None:
    earlier, later = PeerStaged(ALICE, (b"one",), 7), PeerStagedMore(ALICE, (b"two",), 7)
    state.record(earlier)
    assert state.journal.compact_step(1), "the earlier ones are not copied yet"
    state.record(later)
    before = successor_of(state)
    assert before.changes() == [earlier, later]
    while state.journal.compact_step(1):
        pass
    after = successor_of(state)
    assert after.changes() == [earlier, later]
    assert before.sync() == [earlier, later]
    before.close()
    after.close()


def test_staged_packets_stay_in_the_journal_until_their_owner_retires_them(state: SessionState) -> None:
    """Becoming the writer does not retire them: an owner that dies before it sent them leaves them to the next one."""
    staged = PeerStaged(ALICE, (b"one", b"two"))
    state.record(staged)
    state.stop_writing()
    successor = successor_of(state)
    successor.become_writer()
    assert successor.changes() == [staged]
    successor.record(PeerStaged(ALICE, ()))
    assert successor.changes() == []
    assert state.sync() == [PeerStaged(ALICE, ())]
    successor.close()


def test_a_purge_removes_even_a_few_dead_keys(state: SessionState) -> None:
    state.record(PeerKeypairs(ALICE, None, keypair(state.arena.allocate()), None, 1.0))
    state.record(PeerKeypairs(ALICE, None, None, None, 1.0))
    secret = keypair(0).send_key
    before = os.pread(state.journal.fd, state.journal.size, HEADER_BYTES)
    assert secret in before
    assert not state.maintain()
    assert state.maintain(purge=True)
    while state.maintain():
        pass
    assert secret not in os.pread(state.journal.fd, len(before), HEADER_BYTES)
    assert not state.maintain(purge=True), "live records alone need no compaction"


def test_a_thawing_predecessor_reads_the_changes_of_its_dead_successor(state: SessionState) -> None:
    slots = [state.arena.allocate() for _ in range(3)]
    state.record(PeerSeen(ALICE, slots[0]))
    state.record(PeerKeypairs(ALICE, None, keypair(slots[1]), None, 1.0))
    state.hold()
    state.stop_writing()
    successor = successor_of(state)
    successor.become_writer()
    successor.begin_generation("0.2.0", 2)
    for slot in slots:
        successor.arena.claim(slot)
    new_slot = successor.arena.allocate()
    successor.arena.counters[new_slot + SEND_COUNTER] = 7
    rotated = PeerKeypairs(ALICE, keypair(slots[1]), keypair(new_slot, 5), None, 2.0)
    successor.record(rotated)
    successor.record_takeover({"generation": 2})
    successor.close()

    assert state.sync() == [rotated]
    state.become_writer()
    state.unhold()
    assert state.arena.counters[new_slot + SEND_COUNTER] == 7
    assert (state.generation, state.release) == (2, "0.2.0")
    assert state.takeovers() == [{"generation": 2}]
    with pytest.raises(StateError, match="generation 2 after 2"):
        state.begin_generation("0.1.0", 2)
    state.begin_generation("0.1.0", 3)


def test_a_rollback_never_lowers_min_reader(state: SessionState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxidize.state.session_state.MIN_READER", 4)
    state.begin_generation("4.0.0", 2)
    assert state.journal.envelope["min_reader"] == 1
    state.raise_min_reader()
    assert (state.generation, state.release) == (2, "4.0.0")
    monkeypatch.setattr("oxidize.state.session_state.MIN_READER", 1)
    state.begin_generation("0.1.0", 3)
    state.raise_min_reader()
    assert state.journal.envelope["min_reader"] == 4


def test_a_successor_that_requires_newer_readers_and_dies_leaves_a_state_that_its_predecessor_reads(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.stop_writing()
    successor = successor_of(state)
    with monkeypatch.context() as patch:
        patch.setattr("oxidize.state.session_state.MIN_READER", 2)
        successor.become_writer()
        successor.begin_generation("2.0.0", 2)
        successor.record(PeerSeen(ALICE, successor.arena.allocate()))
        successor.stop_writing()  # it dies before the predecessor has ended
        assert state.sync() == successor.changes()
        successor.become_writer()
        successor.raise_min_reader()  # the predecessor has ended
        successor.stop_writing()
    with pytest.raises(SnapshotError, match="wants a reader of 2"):
        state.sync()
    successor.close()


def test_a_failed_takeover_with_a_long_reason_is_recorded_cut_and_read(state: SessionState) -> None:
    for reason in ("\u00fc" * 5000, "x" * (64 << 10), "lone \ud800"):
        state.record_takeover({"result": "failure", "reason": reason})
    successor = successor_of(state)
    assert successor.takeovers() == state.takeovers()
    assert [len(entry["reason"].encode()) for entry in successor.takeovers()] == [4096, 4096, 6]
    assert state.arena.counters[Total.CHANGES_NOT_RECORDED] == 0
    successor.close()


@pytest.mark.parametrize(
    "record",
    [
        {"key": b"\xff" * 8, "entry": {}},
        {"key": b"\xff" * 40, "entry": {}},
        {"key": b"", "entry": {"reason": 1}},
        {"key": b"\0" * 8, "entry": "text"},
        {"key": b"\0" * 8},
        {"key": b"\0" * 8, "retire": "own"},
    ],
)
def test_history_that_cannot_be_understood_costs_no_session(state: SessionState, record: dict[str, object]) -> None:
    seen = PeerSeen(ALICE, state.arena.allocate())
    state.record(seen)
    state.journal.append({"type": "takeover", **record})
    successor = successor_of(state)
    assert successor.changes() == [seen]
    state.stop_writing()
    successor.become_writer()
    successor.record_takeover({"generation": 2})
    assert successor.takeovers()[-1] == {"generation": 2}
    successor.close()


def test_history_that_cannot_be_recorded_is_counted_and_raises_nothing(state: SessionState) -> None:
    state.record_takeover({"generation": 1})
    state.record_takeover({"bad": object()})
    state.record_takeover({"bad": 1 << 64})
    assert state.takeovers() == [{"generation": 1}]
    assert state.arena.counters[Total.CHANGES_NOT_RECORDED] == 2


def test_a_generation_begins_although_the_journal_cannot_take_its_envelope(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    state.begin_generation("0.2.0", 2)
    assert state.generation == 1
    assert state.arena.counters[Total.CHANGES_NOT_RECORDED] == 1
    with pytest.raises(StorageError):
        state.record(PeerSeen(ALICE, state.arena.allocate()))
    assert state.changes() == []


def test_the_records_of_as_many_peers_as_can_be_configured_fit_twice_with_all_that_is_staged() -> None:
    """Twice: those of the configuration before are removed only once the predecessor has ended."""
    late, key = 1e9 + 0.1, b"\xff" * 32
    newest = KeypairState(U32_MAX, U32_MAX, key, key, late, True, 1 << 40)
    endpoint = Endpoint(b"\xff" * 16, 65535, U32_MAX, b"\xff" * 16, U32_MAX)
    of_one_peer: list[Change] = [
        PeerSeen(key, 1 << 40),
        PeerKeypairs(key, newest, newest, newest, late),
        PeerEndpoint(key, endpoint),
        PeerTimestamp(key, b"t" * 12, late),
        PeerHandshake(key, U32_MAX, key, key, key, b"m" * 16, late, late, late),
        PeerCookie(key, b"c" * 16, late),
    ]
    peer_bytes = sum(len(encode(encode_change(change))) for change in of_one_peer)
    packets = [b"\x45" * 20] * 128  # the smallest IP packets: most of the record is not the packets
    staged_bytes = (
        len(encode(encode_change(PeerStaged(key, tuple(packets))))) / sum(map(len, packets)) * STAGED_BYTES_MAX
    )
    history_bytes = TAKEOVERS_MAX * (STRING_BYTES_MAX + 1000)
    assert 2 * PEERS_MAX * peer_bytes + staged_bytes + history_bytes < LIVE_FRACTION_MAX * REGION_BYTES_MAX


# --- Refused states ---


@pytest.mark.parametrize(
    ("boot_id", "public_key", "now", "message"),
    [
        ("another", PUBLIC_KEY, NOW, "written in boot '6f1f.*expected this boot, 'another'.*start without it"),
        (BOOT_ID, b"Q" * 32, NOW, "another private key.*start without it"),
        (
            BOOT_ID,
            PUBLIC_KEY,
            NOW - CLOCK_AHEAD_SECS_MAX - 1,
            "1000 s, expected no later than now, 939 s.*start without it",
        ),
    ],
    ids=["boot", "identity", "clock"],
)
def test_state_of_another_boot_identity_or_clock_is_refused_and_closed(
    state: SessionState, boot_id: str, public_key: bytes, now: float, message: str
) -> None:
    state.record(PeerKeypairs(ALICE, None, keypair(state.arena.allocate()), None, 1.0))
    before = open_descriptors()
    with pytest.raises(SnapshotError, match=message):
        successor_of(state, boot_id, public_key, now)
    assert open_descriptors() == before


@pytest.mark.parametrize("slot", [0, 257, 1 << 40])
def test_a_slot_outside_the_arena_is_refused(state: SessionState, slot: int) -> None:
    state.record(PeerSeen(ALICE, slot))
    with pytest.raises(SnapshotError, match=f"record 'peer' names slot {slot}"):
        successor_of(state)


def test_an_envelope_without_a_generation_is_refused(state: SessionState) -> None:
    state.journal.append_envelope({"format": 1, "min_reader": 1})
    with pytest.raises(SnapshotError, match="names no generation"):
        successor_of(state)


def test_descriptors_of_other_files_are_refused_and_closed(state: SessionState) -> None:
    before = open_descriptors()
    for journal_fd, arena_fd in (
        (state.fds["arena"], state.fds["arena"]),
        (state.fds["journal"], state.fds["journal"]),
    ):
        with pytest.raises(SnapshotError, match="magic"):
            SessionState.open(os.dup(journal_fd), os.dup(arena_fd), boot_id=BOOT_ID, public_key=PUBLIC_KEY, now=NOW)
    with pytest.raises(SnapshotError, match="cannot be read"):
        SessionState.open(-1, -1, boot_id=BOOT_ID, public_key=PUBLIC_KEY, now=NOW)
    assert open_descriptors() == before


# --- History, compaction, descriptors ---


def test_the_last_takeovers_are_kept_across_generations(state: SessionState) -> None:
    entries = [{"generation": i // 2, "result": "failed" if i % 2 else "succeeded"} for i in range(TAKEOVERS_MAX + 5)]
    for entry in entries:
        state.record_takeover(entry)
    assert state.takeovers() == entries[-TAKEOVERS_MAX:]
    state.stop_writing()
    successor = successor_of(state)
    assert successor.takeovers() == entries[-TAKEOVERS_MAX:]
    successor.become_writer()
    successor.record_takeover({"generation": 99})
    assert successor.takeovers() == [*entries[-TAKEOVERS_MAX + 1 :], {"generation": 99}]
    assert successor.unknown_types == 0
    successor.close()


def test_maintenance_compacts_only_a_mostly_dead_journal_that_is_not_held(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES_MIN", 20_000)
    slots = [state.arena.allocate() for _ in range(20)]
    peers = [bytes([i]) * 32 for i in range(20)]
    for peer, slot in zip(peers, slots, strict=True):
        state.record(PeerSeen(peer, slot))
    assert not state.maintain()
    for i in range(400):
        state.record(PeerEndpoint(peers[i % 20], Endpoint(b"\x7f\0\0\1", i)))
    expected = set(state.changes())
    size = state.journal.size
    state.hold()
    steps = 1
    while state.maintain(4):
        steps += 1
    assert steps >= 5
    assert state.journal.size == size
    state.unhold()
    assert state.journal.size < size / 5
    assert set(state.changes()) == expected
    successor = successor_of(state)
    assert set(successor.changes()) == expected
    successor.close()


def test_closing_a_state_leaves_no_descriptor_open() -> None:
    before = open_descriptors()
    state = SessionState.create("0.1.0", 1, BOOT_ID, PUBLIC_KEY)
    assert set(state.fds) == {"journal", "arena"}
    successor = successor_of(state)
    for each in (state, successor, state):
        each.close()
    assert open_descriptors() == before
