"""The state after a change of the private key: all but the sessions, and the one before untouched until its end."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import StateError
from oxidize.protocol.changes import (
    Change,
    KeypairState,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerTimestamp,
)
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.protocol.counters import RECEIVED_BYTES, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.state.key_change import KeyChangedState
from oxidize.state.session_state import SessionState

BOOT_ID = "6f1f2c1e-0000-4000-8000-0123456789ab"
OLD, NEW = b"P" * 32, b"N" * 32
ALICE, BOB, CAROL = b"A" * 32, b"B" * 32, b"C" * 32
SEND_KEY, RECEIVE_KEY, EPHEMERAL = b"secret-of-sending-............32", b"secret-of-receiving-..........32", b"e" * 32
NOW = 1000.0
ENDPOINT = Endpoint(bytes([192, 0, 2, 7]), 51820)


class Pair:
    """A predecessor with a session, and its successor with another key."""

    def __init__(self) -> None:
        self.before = SessionState.create("0.2.0", 4, BOOT_ID, OLD)
        self.slots = {peer: self.before.arena.allocate() for peer in (ALICE, BOB)}
        for peer, slot in self.slots.items():
            self.before.record(PeerSeen(peer, slot))
        self.before.record(PeerEndpoint(ALICE, ENDPOINT))
        self.before.record(PeerTimestamp(ALICE, b"t" * 12, NOW - 9))
        self.first_slot = self.begin_session(ALICE, NOW - 1)
        self.begin_session(BOB, NOW - REJECT_AFTER_TIME)  # it has ended
        self.before.record(PeerHandshake(BOB, 7, EPHEMERAL, b"c" * 32, b"h" * 32, b"m" * 16, NOW, NOW, NOW + 5))
        self.before.record_takeover({"result": "success"})
        self.before.arena.counters[Total.RECEIVED_DATAGRAMS] = 17
        self.before.arena.counters[self.slots[ALICE] + RECEIVED_BYTES] = 400
        fds = [os.dup(self.before.fds[name]) for name in ("journal", "arena")]
        opened = SessionState.open(fds[0], fds[1], boot_id=BOOT_ID, public_key=None, now=NOW)
        self.after = KeyChangedState.of(opened, NEW, NOW)
        for slot in self.slots.values():
            self.after.arena.claim(slot)  # as the device does

    def begin_session(self, peer: bytes, created_at: float) -> int:
        slot = self.before.arena.allocate()
        keypair = KeypairState(slot, 2, SEND_KEY, RECEIVE_KEY, created_at, True, slot)
        self.before.record(PeerKeypairs(peer, None, keypair, None, 1.0))
        return slot

    def hand_over(self) -> None:
        self.before.stop_writing()
        self.after.sync()
        self.after.become_writer()
        self.after.begin_generation("0.2.0", 5)


@pytest.fixture
def pair() -> Iterator[Pair]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    pair = Pair()
    yield pair
    pair.after.close()
    pair.before.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def held(state: SessionState) -> bytes:
    """Return what a journal has in its memory."""
    fd = state.fds["journal"]
    found = b""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # the rest is a hole
            return found
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found += os.pread(fd, end - start, start)


def kinds(changes: list[Change]) -> set[tuple[type, bytes]]:
    return {(type(change), getattr(change, "peer", b"")) for change in changes}


KEPT = {(PeerSeen, ALICE), (PeerSeen, BOB), (PeerEndpoint, ALICE), (PeerTimestamp, ALICE)}


def test_all_but_the_sessions_and_handshakes_is_kept_and_recorded_under_the_new_key(pair: Pair) -> None:
    assert kinds(pair.after.changes()) == KEPT
    assert kinds(pair.after.changes()) == KEPT, "read again, from its own journal"
    assert (pair.after.public_key, pair.after.ended, pair.after.sessions) == (NEW, 1, 0)
    assert pair.after.takeovers() == [{"result": "success"}]
    assert pair.after.arena.counters[Total.RECEIVED_DATAGRAMS] == 17
    assert pair.after.arena.counters[pair.slots[ALICE] + RECEIVED_BYTES] == 400
    for secret in (SEND_KEY, RECEIVE_KEY, EPHEMERAL):
        assert secret in held(pair.before)
        assert secret not in held(pair.after)


def test_a_third_generation_reads_it_as_any_other_state(pair: Pair) -> None:
    pair.hand_over()
    fds = [os.dup(pair.after.fds[name]) for name in ("journal", "arena")]
    third = SessionState.open(fds[0], fds[1], boot_id=BOOT_ID, public_key=NEW, now=NOW)
    assert kinds(third.changes()) == KEPT
    assert third.generation == 5
    third.close()


def test_what_the_predecessor_records_until_it_freezes_is_taken_over_but_its_sessions(pair: Pair) -> None:
    moved = Endpoint(bytes([192, 0, 2, 8]), 51820)
    pair.before.record(PeerEndpoint(BOB, moved))
    pair.before.record(PeerStaged(BOB, (b"packet",)))
    pair.begin_session(BOB, NOW)
    assert pair.after.sync() == [PeerEndpoint(BOB, moved), PeerStaged(BOB, (b"packet",))]
    assert pair.after.sync() == []
    assert pair.after.end == pair.before.end, "COMMIT is compared with this"
    pair.hand_over()
    assert kinds(pair.after.changes()) == KEPT | {(PeerEndpoint, BOB), (PeerStaged, BOB)}


def test_it_owns_only_what_it_has_read_to_the_end(pair: Pair) -> None:
    pair.before.record(PeerEndpoint(BOB, ENDPOINT))
    pair.before.stop_writing()
    with pytest.raises(StateError, match="not read to"):
        pair.after.become_writer()


def test_a_predecessor_continues_with_its_sessions_where_the_successor_ends(pair: Pair) -> None:
    pair.hand_over()
    pair.after.record(PeerEndpoint(ALICE, Endpoint(bytes([192, 0, 2, 9]), 1)))
    allocated = {pair.after.arena.allocate() for _ in range(20)}
    assert pair.first_slot not in allocated, "its counters stay those of the predecessor's session"
    assert not allocated & set(pair.slots.values())
    pair.after.close()  # the process has died
    assert pair.before.sync() == []
    pair.before.become_writer()
    assert PeerKeypairs in {kind for kind, _ in kinds(pair.before.changes())}
    assert (pair.before.public_key, pair.before.generation) == (OLD, 4)


def test_the_keys_before_are_erased_and_their_slots_used_again(pair: Pair) -> None:
    pair.hand_over()
    slices = pair.after.forget_before()
    assert pair.after.end != pair.before.end, "from here on it is a state like any other"
    assert pair.after.sync() == []
    for _ in slices:
        pass
    for secret in (SEND_KEY, RECEIVE_KEY, EPHEMERAL):
        assert secret not in held(pair.before)
    allocated = {pair.after.arena.allocate() for _ in range(20)}
    assert pair.first_slot in allocated
    assert not allocated & set(pair.slots.values())


def test_a_slot_that_the_predecessor_uses_again_for_a_peer_is_not_released_as_that_of_a_session(pair: Pair) -> None:
    pair.before.record(PeerKeypairs(ALICE, None, None, None, 1.0))
    pair.before.record(PeerSeen(CAROL, pair.first_slot))
    (seen,) = pair.after.sync()
    assert isinstance(seen, PeerSeen)
    pair.after.arena.claim(seen.slot)  # as the device does
    pair.before.record(PeerRemoved(BOB))
    pair.hand_over()
    for _ in pair.after.forget_before():
        pass
    assert pair.first_slot not in {pair.after.arena.allocate() for _ in range(20)}
