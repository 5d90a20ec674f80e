"""Copies of a state while its owner writes it: complete, of one moment, and without work for the owner."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from oxidize.errors import SnapshotError
from oxidize.protocol.changes import PeerSeen
from oxidize.protocol.counters import SEND_COUNTER
from oxidize.state import copies
from oxidize.state.copies import copy_arena, copy_journal
from oxidize.state.journal import HEADER_BYTES
from oxidize.state.session_state import SessionState
from tests.support.open_fds import open_fds
from tests.support.sparse_files import content
from tests.unit.state.test_writer_lock import BOOT, CHILD, KEY

ALICE, BOB = b"A" * 32, b"B" * 32


@pytest.fixture
def state() -> Iterator[SessionState]:
    state = SessionState.create("0.1.0", 1, BOOT, KEY)
    state.record(PeerSeen(ALICE, state.arena.allocate()))
    yield state
    state.close()


def restored(journal: int, arena: int) -> SessionState:
    return SessionState.open(journal, arena, boot_id=BOOT, public_key=KEY, now=1.0)


def copied(state: SessionState, position: tuple[int, int] | None = None) -> SessionState:
    fds = state.read_only_fds()
    journal = copy_journal(fds["journal"], *(position or state.journal.position))
    assert journal is not None
    return restored(journal, copy_arena(fds["arena"]))


def compact(state: SessionState) -> None:
    state.record_takeover({"number": 1})
    activations, _ = state.journal.position
    while state.journal.compact_step(100):
        pass
    assert state.journal.position[0] == activations + 1


# --- Read-only descriptors ---


def test_read_only_descriptors_can_be_read_and_not_written(state: SessionState) -> None:
    for name, fd in state.read_only_fds().items():
        assert os.pread(fd, 4096, 0) == os.pread(state.fds[name], 4096, 0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.truncate(fd, 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            assert mapped[:8] == os.pread(fd, 8, 0)
        assert not os.get_inheritable(fd)


def test_read_only_descriptors_have_file_offsets_of_their_own(state: SessionState) -> None:
    for name, fd in state.read_only_fds().items():
        os.lseek(fd, 7, os.SEEK_SET)
        assert os.lseek(state.fds[name], 0, os.SEEK_CUR) == 0


def test_read_only_descriptors_stay_the_same_until_the_state_is_closed(state: SessionState) -> None:
    fds = state.read_only_fds()
    assert state.read_only_fds() == fds
    state.close()
    for fd in fds.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_the_writer_keeps_its_lock_when_another_process_closes_its_descriptors(state: SessionState) -> None:
    for _ in range(2):
        fds = tuple(state.read_only_fds().values())
        subprocess.run([sys.executable, "-c", "pass"], pass_fds=fds, check=True)
        with start_second_writer(state) as child:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "busy"


def start_second_writer(state: SessionState) -> "subprocess.Popen[str]":
    fds = tuple(state.fds.values())
    command = [sys.executable, "-c", CHILD, *map(str, fds)]
    return subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE, text=True)


# --- Copies ---


def test_a_copy_equals_the_state_and_shares_no_memory_with_it(state: SessionState) -> None:
    slot = state.arena.allocate()
    state.arena.counters[slot + SEND_COUNTER] = 4242
    before = {name: content(fd) for name, fd in state.fds.items()}
    copy = copied(state)
    assert copy.changes() == state.changes()
    assert copy.arena.counters[slot + SEND_COUNTER] == 4242
    copy.become_writer()
    copy.record(PeerSeen(BOB, copy.arena.allocate()))
    copy.arena.counters[slot + SEND_COUNTER] = 1
    assert {name: content(fd) for name, fd in state.fds.items()} == before
    copy.close()


def test_a_copy_is_the_state_at_the_given_position(state: SessionState) -> None:
    position = state.journal.position
    state.record(PeerSeen(BOB, state.arena.allocate()))
    copy = copied(state, position)
    assert [change.peer for change in copy.changes() if isinstance(change, PeerSeen)] == [ALICE]
    copy.close()


def test_a_copy_is_as_sparse_as_its_source(state: SessionState) -> None:
    journal = copy_journal(state.read_only_fds()["journal"], *state.journal.position)
    assert journal is not None
    for source, copy in ((state.fds["journal"], journal), (state.fds["arena"], copy_arena(state.fds["arena"]))):
        assert os.fstat(copy).st_size == os.fstat(source).st_size
        assert os.fstat(copy).st_blocks <= os.fstat(source).st_blocks
        os.close(copy)


def test_a_copy_is_made_of_either_region(state: SessionState) -> None:
    for _ in range(3):
        compact(state)
        copy = copied(state)
        assert copy.changes() == state.changes()
        copy.close()


def test_a_long_journal_is_copied_in_pieces(state: SessionState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "COPY_BYTES", 7)
    copy = copied(state)
    assert copy.changes() == state.changes()
    copy.close()


def test_a_position_before_a_compaction_cannot_be_copied(state: SessionState) -> None:
    position = state.journal.position
    compact(state)
    assert copy_journal(state.read_only_fds()["journal"], *position) is None
    compact(state)  # the same region is active again, with other bytes
    assert copy_journal(state.read_only_fds()["journal"], *position) is None


def test_a_journal_that_is_compacted_during_the_copy_is_not_returned(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_fds()
    fd = state.read_only_fds()["journal"]
    real = copies._copy_range

    def copy_and_compact(*arguments: int) -> None:
        real(*arguments)
        compact(state)

    monkeypatch.setattr(copies, "_copy_range", copy_and_compact)
    assert copy_journal(fd, *state.journal.position) is None
    assert len(open_fds()) == len(before) + 2  # the read-only descriptors that the state keeps


def test_a_source_that_is_too_short_or_unreadable_is_refused_and_no_copy_stays_open(state: SessionState) -> None:
    fd = state.read_only_fds()["journal"]
    activations, _ = state.journal.position
    empty = os.memfd_create("empty")
    before = open_fds()
    with pytest.raises(SnapshotError, match="expected a header"):
        copy_journal(empty, 0, 100)
    os.pwrite(empty, os.pread(fd, HEADER_BYTES, 0), 0)
    with pytest.raises(SnapshotError, match="the file ends at 4096, expected 8192 bytes"):
        copy_journal(empty, activations, 8192)
    with pytest.raises(SnapshotError, match="the position ends at"):
        copy_journal(fd, activations, 1 << 40)
    read_end, write_end = os.pipe()
    with pytest.raises(SnapshotError, match="journal: it cannot be copied"):
        copy_journal(read_end, 0, 100)
    with pytest.raises(SnapshotError, match="arena: it cannot be copied"):
        copy_arena(1 << 20)
    for each in (read_end, write_end):
        os.close(each)
    assert open_fds() == before
    os.close(empty)
