"""Compaction of the journal: in short steps, in time, whatever takeovers and the kernel do, and without any loss."""

import errno
import logging
import os
from collections.abc import Iterator

import pytest

from oxidize.errors import StorageError
from oxidize.protocol.changes import (
    Change,
    KeypairState,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
)
from oxidize.protocol.constants import REKEY_AFTER_TIME
from oxidize.protocol.counters import Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.runtime.compactor import (
    CHECK_SECS,
    FAILURE_PAUSE_SECS,
    PURGE_SECS,
    QUIET_SECS,
    STEP_PAUSE_SECS,
    JournalCompactor,
)
from oxidize.state import journal as journal_module
from oxidize.state.arena import Arena
from oxidize.state.journal import Journal
from oxidize.state.records import FORMAT
from oxidize.state.session_state import SessionState
from tests.support.network import Host, World

BOOT_ID, PUBLIC_KEY = "boot", b"P" * 32
ENVELOPE = {"format": 1, "min_reader": 1, "release": "0.2.0", "generation": 1, "boot_id": BOOT_ID}
OLD_KEY, NEW_KEY = b"OLD-SECRET-KEY" + bytes(18), b"new-secret-key" + bytes(18)
PEERS = [bytes([number]) * 32 for number in range(100)]


def made(region_bytes: int = 4 << 20) -> SessionState:
    fields = {**ENVELOPE, "public_key": PUBLIC_KEY}
    return SessionState(Journal.create(fields, reader=FORMAT, region_bytes=region_bytes), Arena.create(1000))


@pytest.fixture
def state() -> Iterator[SessionState]:
    state = made()
    yield state
    state.close()


def successor_of(state: SessionState) -> SessionState:
    fds = state.fds
    return SessionState.open(
        os.dup(fds["journal"]), os.dup(fds["arena"]), boot_id=BOOT_ID, public_key=PUBLIC_KEY, now=1e6
    )


def keypairs(peer: bytes, key: bytes, number: int) -> PeerKeypairs:
    return PeerKeypairs(peer, None, KeypairState(number + 1, 5, key, key, 1.0, True, 256 + 64 * number), None, 0.0)


def keys_in_memory(state: SessionState, key: bytes) -> int:
    return os.pread(state.journal.fd, os.fstat(state.journal.fd).st_size, 0).count(key)


class Clock:
    """Virtual time, and the compactor of one generation after the other."""

    def __init__(self, state: SessionState, now: float = 1000.0) -> None:
        self.now = now
        self.begin(state)

    def begin(self, state: SessionState) -> None:
        self.compactor = JournalCompactor(state, lambda: self.now)

    def run(self, secs: float) -> int:
        """Let time pass; return how often the compactor was called."""
        ends_at, calls = self.now + secs, 0
        while self.compactor.next_deadline() <= ends_at:
            self.now = max(self.now, self.compactor.next_deadline())
            self.compactor.handle_timeout(self.now)
            calls += 1
        self.now = ends_at
        return calls


def record_keys(state: SessionState) -> None:
    """Record a key of every peer, and replace most of them."""
    for number, peer in enumerate(PEERS):
        state.record(keypairs(peer, OLD_KEY, number))
    for number, peer in enumerate(PEERS[:90]):
        state.record(keypairs(peer, NEW_KEY, number))


# --- Steps ---


def test_steps_of_a_compaction_follow_each_other_and_checks_are_rare(state: SessionState) -> None:
    clock = Clock(state)
    assert clock.compactor.next_deadline() == clock.now + CHECK_SECS
    record_keys(state)
    clock.run(CHECK_SECS)
    assert clock.compactor.next_deadline() == pytest.approx(clock.now + STEP_PAUSE_SECS)
    assert clock.run(PURGE_SECS / 2) < PURGE_SECS / 2 / CHECK_SECS + 100
    assert clock.compactor.next_deadline() <= clock.now + CHECK_SECS


def test_a_compaction_with_the_steps_of_the_server_keeps_every_record(state: SessionState) -> None:
    record_keys(state)
    before = set(state.changes())
    activations, _ = state.journal.position
    Clock(state).run(10.0)
    assert state.journal.position[0] == activations + 1
    assert set(state.changes()) == before
    successor = successor_of(state)
    assert set(successor.changes()) == before
    successor.close()


class StoredHost(Host):
    """A host of the network in memory, whose state is in the files of a server."""

    def make_slots(self) -> Arena:  # type: ignore[override]  # an arena has the methods that a device calls
        self.state = made()
        self.slots.counters = self.state.arena.counters
        return self.state.arena

    def record(self, change: Change) -> None:
        self.state.record(change)
        super().record(change)


def test_a_serving_device_is_compacted_between_its_batches_and_can_be_restored_at_every_step() -> None:
    world = World()
    server = world.add(StoredHost(world, 1))
    clients = [world.add(Host(world, number)) for number in range(2, 42)]
    for client in clients:
        client.know(server)
        server.know(client, reachable=False)
        client.start()
    server.start()
    state, clock, steps = server.state, Clock(server.state, world.now), 0
    for _ in range(8):
        world.run(REKEY_AFTER_TIME / 2)
        for client in clients:
            clock.now = max(clock.now, world.now)
            clock.compactor.handle_timeout(clock.now)
            steps += state.journal.is_compacting
            client.send(server)
            world.exchange()
            server.send(client)
            world.exchange()
        assert_restores(state, server)
    assert state.journal.position[0] >= 2
    assert steps >= 5, "traffic and compaction take turns"
    assert all(len(client.delivered) == 8 for client in clients)
    state.close()


def assert_restores(state: SessionState, host: Host) -> None:
    successor = successor_of(state)
    live = [c for c in host.folded() if not isinstance(c, PeerHandshake) or c.local_index]
    assert set(successor.changes()) == set(state.changes()) == set(live)
    successor.close()


# --- Dead keys ---


def test_a_dead_key_leaves_the_memory_within_purge_secs(state: SessionState) -> None:
    clock = Clock(state)
    for number in range(5):
        state.record(keypairs(PEERS[0], OLD_KEY, number))
        state.record(keypairs(PEERS[0], NEW_KEY, number))
        assert keys_in_memory(state, OLD_KEY) > 0
        clock.run(PURGE_SECS + 2 * CHECK_SECS)
        assert keys_in_memory(state, OLD_KEY) == 0
    assert state.journal.position[0] == 5, "and not more often"


@pytest.mark.parametrize("interrupt", ["offer", "failed takeover", "takeover", "crash"])
@pytest.mark.parametrize("steps", [1, 3, 7, 8, 9, 12])
def test_dead_keys_leave_the_memory_although_takeovers_and_crashes_interrupt(
    state: SessionState, monkeypatch: pytest.MonkeyPatch, interrupt: str, steps: int
) -> None:
    monkeypatch.setattr(journal_module, "PUNCH_BYTES_MAX", 4096)
    record_keys(state)
    state.record(keypairs(PEERS[0], OLD_KEY, 0))
    for number, peer in enumerate(PEERS):
        state.record(keypairs(peer, NEW_KEY, number))
    clock = Clock(state)
    for _ in range(steps):
        clock.run(max(0.0, clock.compactor.next_deadline() - clock.now))
    state.hold()
    if interrupt == "offer":
        state.unhold()
    elif interrupt == "failed takeover":
        state.stop_writing()
        state.sync()
        state.become_writer()
        state.unhold()
    else:
        if interrupt == "takeover":
            state.stop_writing()
        else:
            state.journal._writer = False  # killed: it does nothing more
        state = successor_of(state)
        state.become_writer()
        state.begin_generation("0.2.0", 2)
        clock.begin(state)
    clock.run(PURGE_SECS + 10.0)
    state.record(keypairs(PEERS[0], NEW_KEY, 0))
    clock.run(PURGE_SECS + 10.0)
    assert keys_in_memory(state, OLD_KEY) == 0
    assert keys_in_memory(state, NEW_KEY) == 2 * len(PEERS)


def test_dead_keys_of_a_copy_that_failed_leave_the_memory(state: SessionState, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, peer in enumerate(PEERS):
        state.record(keypairs(peer, OLD_KEY, number))
    state.record_takeover({"number": 1})
    while keys_in_memory(state, OLD_KEY) < 3 * len(PEERS):  # every key twice in a record, a part of them copied
        state.journal.compact_step(16)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_memory)
        with pytest.raises(StorageError):
            state.journal.compact_step(16)
    for peer in PEERS:
        state.record(PeerRemoved(peer))
    Clock(state).run(10.0)
    assert keys_in_memory(state, OLD_KEY) == 0


def no_memory(*_: object) -> int:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_generations_that_live_shorter_than_purge_secs_purge_in_time_all_the_same(state: SessionState) -> None:
    record_keys(state)
    clock = Clock(state)
    clock.run(10.0)
    for number, peer in enumerate(PEERS):
        state.record(keypairs(peer, NEW_KEY, number))
    purged = state.journal.position[0]
    for generation in range(2, 30):
        clock.run(PURGE_SECS / 10)
        state.stop_writing()
        state = successor_of(state)
        state.become_writer()
        state.begin_generation("0.2.0", generation)
        clock.begin(state)
    assert keys_in_memory(state, OLD_KEY) == 0
    assert state.journal.position[0] <= purged + 4, "a takeover alone causes no compaction"


# --- Takeovers that fail, one after the other ---


@pytest.mark.parametrize("period_secs", [0.3, 1.0, 1.5])
def test_takeovers_that_fail_one_after_the_other_do_not_keep_a_journal_from_compaction(
    state: SessionState, period_secs: float
) -> None:
    clock = Clock(state)
    slots = [state.arena.allocate() for _ in PEERS]
    for peer, slot in zip(PEERS, slots, strict=True):
        state.record(PeerSeen(peer, slot))
    sizes = []
    for attempt in range(400):
        for number in range(100):
            state.record(PeerEndpoint(PEERS[number], Endpoint(b"\x7f\0\0\1", attempt)))
        state.hold()
        clock.run(period_secs * 0.9)
        state.unhold()
        clock.run(period_secs * 0.1)
        sizes.append(state.journal.size)
    assert state.journal.position[0] > 5
    assert max(sizes) < 4 * journal_module.COMPACT_BYTES_MIN


# --- Failures of the kernel ---


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC, errno.EIO])
def test_a_compaction_without_memory_is_logged_once_and_tried_again_later(
    state: SessionState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    record_keys(state)
    clock = Clock(state)
    caplog.set_level(logging.ERROR)

    def pwrite(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        calls = clock.run(3 * QUIET_SECS)
    assert calls < 2 * 3 * QUIET_SECS / FAILURE_PAUSE_SECS + 10
    assert [record.message for record in caplog.records] == ["the journal is not compacted"]
    assert state.journal.position[0] == 0
    clock.run(2 * FAILURE_PAUSE_SECS)
    assert state.journal.position[0] == 1
    assert keys_in_memory(state, OLD_KEY) == 20


def test_changes_that_are_not_recorded_are_counted_and_logged_once(
    state: SessionState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(state)
    caplog.set_level(logging.ERROR)

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        for number in range(50):
            state.record_takeover({"number": number})
            clock.run(1.0)
    assert [record.message for record in caplog.records] == ["changes are not recorded"]
    assert state.arena.counters[Total.CHANGES_NOT_RECORDED] == 50
    assert state.takeovers() == []


def test_a_new_journal_is_not_purged_at_the_start() -> None:
    """Nothing in it is old, and all clients come back in these seconds."""
    state = SessionState.create("0.2.0", 1, BOOT_ID, PUBLIC_KEY, 1000.0)
    for _ in range(2):
        state.record(keypairs(PEERS[0], OLD_KEY, 0))
    clock = Clock(state)
    clock.run(PURGE_SECS - 1.0)
    assert state.journal.position[0] == 0
    clock.run(10.0)
    assert state.journal.position[0] == 1
    state.close()
