"""The arena: the counters of the device, in a memory file that outlives the process.

Rule: a counter is right at every instant at which the process may die. The live objects read and write the counters in
place, so nothing is serialised at a hand-off and nothing is lost by SIGKILL. The file is sparse: slots that were never
used cost no memory. A slot gets its memory when it is allocated, by a call that can fail, and not by a store.

Sources: mmap(2) MAP_SHARED; `protocol.counters` defines the layout of the counters.
"""

import contextlib
import mmap
import os
from typing import Self

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.protocol.constants import PEERS_MAX
from oxidize.protocol.counters import REPLAY_BITMAP, REPLAY_WORDS, SLOT_WORDS, TOTALS_SLOTS, TOTALS_WORDS, Counters
from oxidize.state import memory_file

# A peer's own slot, its older, its current, and its previous or next keypair, and one that is not released yet.
SLOTS_PER_PEER = 5
SLOTS_MAX = PEERS_MAX * SLOTS_PER_PEER
# Slots that are found to be free or used in one call: a restore finds out about all if a quarter of them are used, and
# the first allocation of a generation, which may be within the blackout, costs as much as any other.
SWEPT_PER_CALL = 4

HEADER_BYTES = 4096  # one page before the first word: slots stay aligned to pages and cache lines
MAGIC = int.from_bytes(b"OXIARENA", "little")
LAYOUT = 1

# Words of the header. Another release reads them: indices are only added.
_MAGIC, _LAYOUT, _SLOT_WORDS, _TOTALS_SLOTS, _REPLAY_BITMAP, _REPLAY_WORDS, _SLOT_COUNT = range(7)
_HEADER_WORDS = 7

# The words that must be equal in two releases for one to read the other's counters.
_EXPECTED = {
    "magic": (_MAGIC, MAGIC),
    "layout": (_LAYOUT, LAYOUT),
    "words per slot": (_SLOT_WORDS, SLOT_WORDS),
    "slots of totals": (_TOTALS_SLOTS, TOTALS_SLOTS),
    "first word of the replay window": (_REPLAY_BITMAP, REPLAY_BITMAP),
    "words of the replay window": (_REPLAY_WORDS, REPLAY_WORDS),
}

_WORD_BYTES = 8
_SLOT_BYTES = _WORD_BYTES * SLOT_WORDS
_ZERO_SLOT = bytes(_SLOT_BYTES)
MORE_ROOM = "stop the server and start it, which makes a larger one; that ends its sessions"
_REMEDY = "restore it with the release that made it, or start without it"


def _write(fd: int, offset: int, data: bytes) -> None:
    """Write to a file; raises OSError where a store to its mapping would raise SIGBUS for lack of memory."""
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def _file_bytes(slot_count: int) -> int:
    return HEADER_BYTES + _SLOT_BYTES * (TOTALS_SLOTS + slot_count)


class Arena:
    """Slots of counters in a sealed memory file (`protocol.counters.Slots`).

    Made by `create` or `open`. `counters` begins with the totals; a slot is named by the index of its first counter.
    `fd` is the descriptor that a successor receives. Every operation is O(1), `open` and `create` included.
    """

    def __init__(self, fd: int, slot_count: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _file_bytes(slot_count))
        self.counters: Counters = memoryview(self._map)[HEADER_BYTES:].cast("Q")
        self._limit = SLOT_WORDS * (TOTALS_SLOTS + slot_count)
        # Slots from `_fresh` on are free. Those below `_swept` are in `_free` or marked in `_used`; those between the
        # two may have been released by a predecessor, and are free unless they are marked.
        self._fresh = self._swept = TOTALS_WORDS
        self._free: dict[int, None] = {}
        self._used = bytearray(TOTALS_SLOTS + slot_count)  # by the number of the slot, 1 for one in use

    @classmethod
    def create(cls, slot_count: int = SLOTS_MAX) -> Self:
        """Return a new arena of `slot_count` slots, all zeros; raises OSError when the kernel refuses."""
        fd = memory_file.create("oxidize-arena", _file_bytes(slot_count))
        try:
            header = memoryview(bytearray(_WORD_BYTES * _HEADER_WORDS)).cast("Q")
            for word, value in _EXPECTED.values():
                header[word] = value
            header[_SLOT_COUNT] = slot_count
            os.pwrite(fd, header, 0)
            _write(fd, HEADER_BYTES, bytes(_SLOT_BYTES * TOTALS_SLOTS))
            return cls(fd, slot_count)
        except BaseException:  # cleans up, and raises it again
            os.close(fd)
            raise

    @classmethod
    def open(cls, fd: int) -> Self:
        """Map a predecessor's arena without writing to it; every slot is free until it is claimed.

        The arena owns `fd` from here on. Raises SnapshotError, and leaves `fd` to the caller, when the file is not an
        arena or has another layout.
        """
        try:
            header = memoryview(os.pread(fd, _WORD_BYTES * _HEADER_WORDS, 0))
            size = os.fstat(fd).st_size
        except OSError as error:
            raise SnapshotError(f"arena: file descriptor {fd} cannot be read: {error}; {_REMEDY}") from error
        if len(header) < _WORD_BYTES * _HEADER_WORDS:
            raise SnapshotError(f"arena: the file has {size} bytes, expected a header of {HEADER_BYTES}; {_REMEDY}")
        words = header.cast("Q")
        for name, (word, expected) in _EXPECTED.items():
            if words[word] != expected:
                raise SnapshotError(f"arena: {name} is {words[word]:#x}, expected {expected:#x}; {_REMEDY}")
        slot_count = words[_SLOT_COUNT]
        # Access to a mapping beyond the end of its file raises SIGBUS, which no signal handler could undo.
        if size != _file_bytes(slot_count):
            raise SnapshotError(
                f"arena: {size} bytes for {slot_count} slots, expected {_file_bytes(slot_count)}; {_REMEDY}"
            )
        try:
            return cls(fd, slot_count)
        except OSError as error:
            raise SnapshotError(f"arena: file descriptor {fd} cannot be mapped: {error}; {_REMEDY}") from error

    def holds(self, slot: int) -> bool:
        """Return whether `slot` is the index of the first counter of one of this arena's slots."""
        return TOTALS_WORDS <= slot < self._limit and slot % SLOT_WORDS == 0

    @property
    def peers_max(self) -> int:
        """The number of peers for which there are slots: fewer than PEERS_MAX where an older release made the file."""
        return (self._limit - TOTALS_WORDS) // SLOT_WORDS // SLOTS_PER_PEER

    def allocate(self) -> int:
        """Return a free slot, zeroed by this call; raises StorageError when none is left, or no memory for one."""
        self._sweep()
        while not self._free and self._fresh >= self._limit and self._swept < self._fresh:
            self._sweep()
        if self._free:
            slot, _ = self._free.popitem()
        elif self._fresh < self._limit:
            slot = self._fresh
            self._fresh += SLOT_WORDS
        else:
            remedy = "configure fewer peers" if self.peers_max >= PEERS_MAX else MORE_ROOM
            raise StorageError(
                f"all {sum(self._used)} slots of the arena are in use; expected at most {SLOTS_PER_PEER} for each "
                f"of {self.peers_max} peers: {remedy}"
            )
        try:
            _write(self.fd, HEADER_BYTES + slot * _WORD_BYTES, _ZERO_SLOT)
        except OSError as error:
            self._free[slot] = None
            raise StorageError(f"the arena has no memory for a slot: {error}; free some memory") from error
        self._used[slot // SLOT_WORDS] = 1
        return slot

    def _sweep(self) -> None:
        """Find out about some more of the slots that a predecessor may have released."""
        end = min(self._swept + SWEPT_PER_CALL * SLOT_WORDS, self._fresh)
        for slot in range(self._swept, end, SLOT_WORDS):
            if not self._used[slot // SLOT_WORDS]:
                self._free[slot] = None
        self._swept = end

    def claim(self, slot: int) -> None:
        """Mark a slot that a predecessor allocated as used, leaving its counters as they are; idempotent.

        Raises StateError when the arena has no such slot.
        """
        self._check(slot)
        self._free.pop(slot, None)
        self._used[slot // SLOT_WORDS] = 1
        self._fresh = max(self._fresh, slot + SLOT_WORDS)
        self._sweep()

    def release(self, slot: int) -> None:
        """Free a slot, leaving its counters as they are; idempotent.

        Raises StateError when the arena has no such slot.
        """
        self._check(slot)
        if self._used[slot // SLOT_WORDS]:
            self._used[slot // SLOT_WORDS] = 0
            if slot < self._swept:
                self._free[slot] = None

    def _check(self, slot: int) -> None:
        if not self.holds(slot):
            raise StateError(
                f"slot {slot} is not in this arena; expected a multiple of {SLOT_WORDS} from {TOTALS_WORDS} to "
                f"{self._limit - SLOT_WORDS}: this is a bug"
            )

    def close(self) -> None:
        """Release the counters and the descriptor; the file lives while another process holds it. Idempotent."""
        if self.fd < 0:
            return
        self.counters.release()
        with contextlib.suppress(BufferError):  # a slice of the counters is still in use: the mapping ends with it
            self._map.close()
        os.close(self.fd)
        self.fd = -1
