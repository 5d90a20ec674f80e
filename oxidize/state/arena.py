"""The counter arena: every 64-bit word of the device, in a memory file that outlives the process.

Rule: what a counter says is true at every instant at which the process may die. The live objects read and write the
counters in place, so nothing is serialised at a hand-off and nothing is lost by SIGKILL. The file is sparse: slots that
were never used cost no memory.

Sources: mmap(2) MAP_SHARED; the layout of the counters is `protocol.counters`.
"""

import contextlib
import mmap
import os
from typing import Self

from oxidize.errors import SnapshotError, StateError
from oxidize.protocol.constants import PEERS_MAX
from oxidize.protocol.counters import REPLAY_BITMAP, REPLAY_WORDS, SLOT_WORDS, TOTALS_SLOTS, TOTALS_WORDS, Counters
from oxidize.state import memory_file

# A peer's own slot, its previous, current and next keypair, and one that is still to be released.
SLOTS_PER_PEER = 5
SLOTS_MAX = PEERS_MAX * SLOTS_PER_PEER

HEADER_BYTES = 4096  # one page before the first word: slots stay aligned to pages and cache lines
MAGIC = int.from_bytes(b"OXIARENA", "little")
LAYOUT = 1

# Words of the header. Another release reads them: numbers are only ever added.
_MAGIC, _LAYOUT, _SLOT_WORDS, _TOTALS_SLOTS, _REPLAY_BITMAP, _REPLAY_WORDS, _SLOT_COUNT = range(7)
_HEADER_WORDS = 7

# What must be the same in both releases for one to read the other's counters.
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
_ZERO_SLOT = memoryview(bytes(_SLOT_BYTES)).cast("Q")
_REMEDY = "restore it with the release that made it, or start without it"


def _file_bytes(slot_count: int) -> int:
    return HEADER_BYTES + _SLOT_BYTES * (TOTALS_SLOTS + slot_count)


class Arena:
    """Slots of counters in a sealed memory file (`protocol.counters.Slots`).

    Made by `create` or `open`. `counters` begins with the totals; slots are named by the index of their first word.
    `fd` is what a successor receives. Every operation is O(1), opening and creating included.
    """

    def __init__(self, fd: int, slot_count: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _file_bytes(slot_count))
        self.counters: Counters = memoryview(self._map)[HEADER_BYTES:].cast("Q")
        self._limit = SLOT_WORDS * (TOTALS_SLOTS + slot_count)
        # Slots from here on are free unless they are in `_used`; those below are free only if they are in `_free`.
        self._fresh = TOTALS_WORDS
        self._free: dict[int, None] = {}
        self._used: set[int] = set()

    @classmethod
    def create(cls, slot_count: int = SLOTS_MAX) -> Self:
        """Make an arena of zeros for `slot_count` slots; raises OSError when the kernel refuses."""
        fd = memory_file.create("oxidize-arena", _file_bytes(slot_count))
        try:
            header = memoryview(bytearray(_WORD_BYTES * _HEADER_WORDS)).cast("Q")
            for word, value in _EXPECTED.values():
                header[word] = value
            header[_SLOT_COUNT] = slot_count
            os.pwrite(fd, header, 0)
            return cls(fd, slot_count)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, fd: int) -> Self:
        """Map an arena that a predecessor made, writing nothing; every slot is free until it is claimed.

        The arena owns `fd` from here on. Raises SnapshotError, and leaves `fd` to the caller, when the file is no arena
        or one of another layout.
        """
        try:
            header = memoryview(os.pread(fd, _WORD_BYTES * _HEADER_WORDS, 0))
            size = os.fstat(fd).st_size
        except OSError as error:
            raise SnapshotError(f"arena: file descriptor {fd} cannot be read: {error}; {_REMEDY}") from error
        if len(header) < _WORD_BYTES * _HEADER_WORDS:
            raise SnapshotError(f"arena: the file has {size} bytes, expected a header of {HEADER_BYTES}; {_REMEDY}")
        counters = header.cast("Q")
        for what, (word, expected) in _EXPECTED.items():
            if counters[word] != expected:
                raise SnapshotError(f"arena: {what} is {counters[word]:#x}, expected {expected:#x}; {_REMEDY}")
        slot_count = counters[_SLOT_COUNT]
        # Touching a mapping beyond the end of its file is SIGBUS, which no handler of ours could undo.
        if size != _file_bytes(slot_count):
            raise SnapshotError(
                f"arena: {size} bytes for {slot_count} slots, expected {_file_bytes(slot_count)}; {_REMEDY}"
            )
        try:
            return cls(fd, slot_count)
        except OSError as error:
            raise SnapshotError(f"arena: file descriptor {fd} cannot be mapped: {error}; {_REMEDY}") from error

    @property
    def slots_used(self) -> int:
        """The number of slots in use."""
        return len(self._used)

    def holds(self, slot: int) -> bool:
        """Tell whether `slot` is the first word of one of this arena's slots."""
        return TOTALS_WORDS <= slot < self._limit and slot % SLOT_WORDS == 0

    def allocate(self) -> int:
        """Return a free slot, zeroed by this call; raises StateError when none is left."""
        if self._free:
            slot, _ = self._free.popitem()
        else:
            while self._fresh in self._used:
                self._fresh += SLOT_WORDS
            slot = self._fresh
            if slot >= self._limit:
                raise StateError(
                    f"all {len(self._used)} slots of the arena are in use; expected at most {SLOTS_PER_PEER} for each "
                    f"of {PEERS_MAX} peers: configure fewer peers for this server"
                )
            self._fresh += SLOT_WORDS
        self._used.add(slot)
        self.counters[slot : slot + SLOT_WORDS] = _ZERO_SLOT
        return slot

    def claim(self, slot: int) -> None:
        """Mark a slot that a predecessor allocated as used, its counters as they are; idempotent.

        Raises StateError when the arena has no such slot.
        """
        self._check(slot)
        self._free.pop(slot, None)
        self._used.add(slot)

    def release(self, slot: int) -> None:
        """Make a slot free, its counters as they are; idempotent. Raises StateError when the arena has no such slot."""
        self._check(slot)
        if slot in self._used:
            self._used.remove(slot)
            if slot < self._fresh:
                self._free[slot] = None

    def _check(self, slot: int) -> None:
        if not self.holds(slot):
            raise StateError(
                f"slot {slot} is none of this arena; expected a multiple of {SLOT_WORDS} from {TOTALS_WORDS} to "
                f"{self._limit - SLOT_WORDS}: this is a bug"
            )

    def close(self) -> None:
        """Give up the counters and the file descriptor; the file lives on while anyone else holds it. Idempotent."""
        if self.fd < 0:
            return
        self.counters.release()
        with contextlib.suppress(BufferError):  # somebody still holds a slice of the counters: the mapping ends with it
            self._map.close()
        os.close(self.fd)
        self.fd = -1
