"""The arena: slots in a memory file that two processes map at once."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.protocol.constants import PEERS_MAX
from oxidize.protocol.counters import SLOT_WORDS, TOTALS_WORDS, Total
from oxidize.state.arena import HEADER_BYTES, SLOTS_MAX, SLOTS_PER_PEER, SWEPT_PER_CALL, Arena


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(slot_count=8)
    yield arena
    arena.close()


def reopened(arena: Arena) -> Arena:
    return Arena.open(os.dup(arena.fd))


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def forged(data: bytes) -> int:
    fd = os.memfd_create("forged", os.MFD_CLOEXEC)
    os.pwrite(fd, data, 0)
    return fd


def test_the_totals_are_the_first_counters_after_the_header(arena: Arena) -> None:
    arena.counters[Total.RECEIVED_DATAGRAMS] = 7
    assert content(arena.fd)[HEADER_BYTES : HEADER_BYTES + 8] == (7).to_bytes(8, "little")
    assert len(arena.counters) == TOTALS_WORDS + 8 * SLOT_WORDS


def test_a_successor_sees_every_store_at_once_and_writes_nothing_by_opening(arena: Arena) -> None:
    slot = arena.allocate()
    arena.counters[slot] = 2**64 - 1
    before = content(arena.fd)
    successor = reopened(arena)
    assert content(arena.fd) == before
    assert successor.counters[slot] == 2**64 - 1
    successor.counters[slot + 1] = 5
    assert arena.counters[slot + 1] == 5
    successor.close()
    assert arena.counters[slot + 1] == 5


def test_slots_are_distinct_and_an_allocation_beyond_the_last_is_an_error(arena: Arena) -> None:
    slots = [arena.allocate() for _ in range(8)]
    assert slots == [TOTALS_WORDS + i * SLOT_WORDS for i in range(8)]
    with pytest.raises(StateError, match=r"all 8 slots .* of 1 peers: stop the server and start it"):
        arena.allocate()


def test_allocating_a_slot_zeroes_it_and_releasing_does_not(arena: Arena) -> None:
    slot = arena.allocate()
    arena.counters[slot : slot + SLOT_WORDS] = memoryview(b"\xff" * 8 * SLOT_WORDS).cast("Q")
    neighbour = arena.allocate()
    arena.counters[neighbour] = 9
    arena.release(slot)
    assert arena.counters[slot] == 2**64 - 1
    assert arena.allocate() == slot
    assert not any(arena.counters[slot : slot + SLOT_WORDS])
    assert arena.counters[neighbour] == 9


def test_a_slot_without_memory_is_an_error_and_not_the_end_of_the_process(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_memory)
        for _ in range(20):
            with pytest.raises(StorageError, match="no memory for a slot"):
                arena.allocate()
    assert len({arena.allocate() for _ in range(8)}) == 8


def test_the_totals_have_their_memory_from_the_start(arena: Arena) -> None:
    assert os.fstat(arena.fd).st_blocks * 512 >= HEADER_BYTES + 8 * TOTALS_WORDS


def test_releasing_a_slot_twice_frees_one_slot(arena: Arena) -> None:
    slots = [arena.allocate() for _ in range(8)]
    arena.release(slots[3])
    arena.release(slots[3])
    assert arena.allocate() == slots[3]
    with pytest.raises(StateError):
        arena.allocate()


def test_a_claimed_slot_keeps_its_counters_and_is_not_allocated(arena: Arena) -> None:
    slots = [arena.allocate() for _ in range(5)]
    arena.counters[slots[0]] = 1000
    successor = reopened(arena)
    for slot in (slots[0], slots[3], slots[0]):
        successor.claim(slot)
    assert successor.counters[slots[0]] == 1000
    given = {successor.allocate() for _ in range(6)}
    assert not given & {slots[0], slots[3]}
    with pytest.raises(StateError):
        successor.allocate()
    assert successor.counters[slots[0]] == 1000
    successor.close()


def test_claiming_a_free_slot_puts_it_into_use(arena: Arena) -> None:
    slot = arena.allocate()
    arena.counters[slot] = 77
    arena.release(slot)
    arena.claim(slot)
    assert slot not in {arena.allocate() for _ in range(7)}
    assert arena.counters[slot] == 77


def test_a_slot_claimed_and_released_before_any_allocation_is_allocated_once(arena: Arena) -> None:
    beyond = TOTALS_WORDS + 4 * SLOT_WORDS
    arena.claim(beyond)
    arena.release(beyond)
    assert sorted(arena.allocate() for _ in range(8)) == [TOTALS_WORDS + i * SLOT_WORDS for i in range(8)]


@pytest.mark.parametrize("slot", [0, TOTALS_WORDS - SLOT_WORDS, TOTALS_WORDS + 1, TOTALS_WORDS + 8 * SLOT_WORDS, -64])
def test_a_slot_outside_the_arena_cannot_be_claimed_or_released(arena: Arena, slot: int) -> None:
    assert not arena.holds(slot)
    with pytest.raises(StateError, match=f"slot {slot} is not in this arena"):
        arena.claim(slot)
    with pytest.raises(StateError, match=f"slot {slot} is not in this arena"):
        arena.release(slot)


def test_an_arena_of_full_size_costs_no_memory_until_it_is_used() -> None:
    arena = Arena.create()
    assert len(arena.counters) == TOTALS_WORDS + SLOTS_MAX * SLOT_WORDS
    arena.allocate()
    assert os.fstat(arena.fd).st_blocks * 512 <= 16 * 4096
    arena.close()


def test_the_file_of_an_arena_is_sealed_at_its_size_and_not_inherited(arena: Arena) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, HEADER_BYTES)
    assert fcntl.fcntl(arena.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_closing_an_arena_twice_leaves_no_descriptor_open() -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    arena = Arena.create(slot_count=1)
    arena.close()
    arena.close()
    assert len(list(descriptors.iterdir())) == before


def test_a_full_arena_names_the_peers_for_which_it_was_made_and_what_gives_more_room() -> None:
    small = Arena.create(slot_count=2 * SLOTS_PER_PEER)
    assert small.peers_max == 2
    for _ in range(2 * SLOTS_PER_PEER):
        small.allocate()
    with pytest.raises(StorageError, match=r"all 10 slots .* 5 for each of 2 peers: stop the server and start it"):
        small.allocate()
    small.close()


def test_an_arena_of_this_release_has_room_for_as_many_peers_as_can_be_configured() -> None:
    largest = Arena.create()
    assert largest.peers_max == PEERS_MAX
    largest.close()


def test_an_arena_closes_while_a_slice_of_its_counters_is_in_use() -> None:
    arena = Arena.create(slot_count=1)
    held = arena.counters[TOTALS_WORDS : TOTALS_WORDS + 2]
    arena.close()
    held[0] = 3
    assert held[0] == 3


@pytest.mark.parametrize(
    ("word", "what"),
    [
        (0, "magic"),
        (1, "layout"),
        (2, "words per slot"),
        (3, "slots of totals"),
        (4, "first word of the replay window"),
        (5, "words of the replay window"),
        (6, "bytes for 9 slots"),
    ],
)
def test_an_arena_of_another_layout_is_refused_by_name_and_its_descriptor_stays_open(
    arena: Arena, word: int, what: str
) -> None:
    data = bytearray(content(arena.fd))
    data[8 * word] += 1
    fd = forged(bytes(data))
    with pytest.raises(SnapshotError, match=f"{what}.*expected.*start without it"):
        Arena.open(fd)
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 55, 4096, 5000])
def test_a_truncated_arena_is_refused_before_it_is_mapped(arena: Arena, size: int) -> None:
    fd = forged(content(arena.fd)[:size])
    with pytest.raises(SnapshotError, match=r"bytes.*expected"):
        Arena.open(fd)
    os.close(fd)


def test_a_pipe_is_refused_as_an_arena() -> None:
    reader, writer = os.pipe()
    with pytest.raises(SnapshotError, match="cannot be read"):
        Arena.open(reader)
    os.close(reader)
    os.close(writer)


class Counted(bytearray):
    """Marks that count how often one is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("sessions", [10, 60_000])
@pytest.mark.parametrize("order", [1, -1])
def test_the_first_allocation_of_a_generation_is_independent_of_the_number_of_sessions(
    sessions: int, order: int
) -> None:
    arena = Arena.create(SLOTS_MAX)
    slots = [TOTALS_WORDS + number * SLOT_WORDS for number in range(sessions)]
    for slot in slots[::order]:
        arena.claim(slot)
    arena._used = used = Counted(arena._used)
    assert arena.allocate() == TOTALS_WORDS + sessions * SLOT_WORDS
    assert used.looks <= SWEPT_PER_CALL
    arena.close()


def test_slots_that_a_predecessor_released_are_allocated_before_the_arena_is_full() -> None:
    arena = Arena.create(slot_count=100)
    slots = [TOTALS_WORDS + number * SLOT_WORDS for number in range(100)]
    claimed = [slots[90], slots[40], slots[99], slots[3]]
    for slot in claimed:
        arena.claim(slot)
    arena.release(slots[90])
    allocated = [arena.allocate() for _ in range(97)]
    assert sorted(allocated + claimed[1:]) == slots
    with pytest.raises(StateError, match="all 100 slots"):
        arena.allocate()
    arena.close()
