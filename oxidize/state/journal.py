"""The journal: a stream of msgpack maps in a memory file that outlives the process that writes it.

Rules:
- A record is in the journal exactly when the end of its region, one aligned 64-bit word, lies behind it. The bytes are
  written first and the word is stored last, so a writer that is killed leaves a whole record or none.
- There is one writer at a time (`writer_lock`). A process that opens a journal reads it, and becomes the writer only
  after it has read everything.
- Two regions are used in turn. Compaction copies the live records into the inactive region in small steps, while new
  records are written to both; then one word makes the other region the active one. At every instant one region is
  complete, and the memory of the inactive one is given back before it is used again.
- A reader that was overtaken by a change of sides reads again: the bytes that it has read may be gone.
- The live records never fill a region, so that compaction always makes room for the records that replace or retire.
- Descriptors that came by SCM_RIGHTS share their file offset, so only pread, pwrite and mmap access the file.

`state.stream` defines the form of a record; the journal does not interpret its fields.

Sources: pwrite(2), fallocate(2).
"""

import contextlib
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.state import memory_file, writer_lock
from oxidize.state.region import Found, LiveRecords, Place, Region
from oxidize.state.stream import REMEDY, RETIRE_OWN, Record, check_envelope, consumed, encode, envelope_of, scan

T = TypeVar("T")

# --- Limits ---
REGION_BYTES_MAX = 512 << 20  # of one region; sparse: only written bytes cost memory
LIVE_FRACTION_MAX = 7 / 8  # of a region, that live records may take: the rest is room for what replaces or retires
FILE_BYTES_MAX = 1 << 40  # of another release's region: offsets stay far below 2^63
READS_MAX = 5  # of a journal whose regions change sides while it is read: a change takes longer than a read
COMPACT_BYTES_MIN = 256 << 10  # a smaller journal is not worth the copying
PUNCH_BYTES_MAX = 512 << 10  # of memory given back in one step: some 200 us
ERASED_BYTES_MAX = 4 << 20  # of a journal that is erased, in one step: 2 ms at most, for most of it is a hole
# Keys of an old index that are dropped in one step: some 200 us; 100,000 at once would stop the data path for 50 ms.
FREE_KEYS_MAX = 512

# --- The header page. Another release reads it: words are only added. ---
HEADER_BYTES = 4096
MAGIC = int.from_bytes(b"OXIJRNAL", "little")
LAYOUT = 1
_MAGIC, _LAYOUT, REGION_BYTES = range(3)
ACTIVATIONS = 3  # how often the regions changed sides; modulo 2 it is the number of the active one
END = 4  # the end of region 0, followed by that of region 1: offsets in the file
PURGED_AT = 6  # when the latest finished compaction began, nanoseconds: what was dead then has left the memory
HEADER_WORDS = 7
WORD_BYTES = 8


class Journal:
    """A journal in a sealed memory file of two regions.

    Made by `create`, as the writer, or by `open`, as a reader until `become_writer`. `fd` is the descriptor that a
    successor receives; `envelope` is the newest envelope that was read or written. Offsets are bytes in the file.
    """

    def __init__(self, fd: int, region_bytes: int, *, reader: int) -> None:
        self.fd = fd
        self.envelope: Record = {}
        self._reader = reader
        self._region_bytes = region_bytes
        self._map = mmap.mmap(fd, HEADER_BYTES)
        self._words = memoryview(self._map)[: HEADER_WORDS * WORD_BYTES].cast("Q")
        self._active = Region(self._words[ACTIVATIONS] & 1, HEADER_BYTES, region_bytes)
        self._seen: tuple[int, int] | None = None  # activations and end at the latest `sync`
        self._writer = False
        self._held = False
        self._target: Region | None = None  # of the compaction under way
        self._pending: list[bytes] = []  # its keys that are not copied yet, the next one last
        self._is_copied = False  # the compaction under way has copied them all
        self._began_at = 0.0
        self._punch = range(0)  # the part of the inactive region whose memory is not given back yet
        self._used = [0, 0]  # where the memory of each region ends: offsets in the file
        self._garbage = LiveRecords()  # the index of a region that is out of use
        self._needless: list[bytes] = []  # keys that a compaction which was abandoned has not copied

    @classmethod
    def create(cls, envelope: Record, *, reader: int, region_bytes: int = REGION_BYTES_MAX, now: float = 0.0) -> Self:
        """Return a new journal, as its writer, with one record, the envelope.

        envelope: the fields other than type, key and magic; must have `format` and `min_reader`. reader: the newest
        `min_reader` that this release understands. region_bytes: of each region. now: the time, for `purged_at`:
        nothing here is older. Raises OSError when the kernel refuses, and StateError as `append` does.
        """
        fd = memory_file.create("oxidize-journal", HEADER_BYTES + 2 * region_bytes)
        try:
            header = memoryview(bytearray(HEADER_WORDS * WORD_BYTES)).cast("Q")
            header[_MAGIC], header[_LAYOUT], header[REGION_BYTES] = MAGIC, LAYOUT, region_bytes
            header[END], header[END + 1] = HEADER_BYTES, HEADER_BYTES + region_bytes
            header[PURGED_AT] = int(now * 1e9)
            os.pwrite(fd, header, 0)
            journal = cls(fd, region_bytes, reader=reader)
            writer_lock.take(fd)
            journal._writer = True
            journal.append_envelope(envelope)
        except BaseException:  # cleans up, and raises it again
            os.close(fd)
            raise
        return journal

    @classmethod
    def open(cls, fd: int, *, reader: int) -> Self:
        """Map a predecessor's journal without writing to it; the first `sync` reads it.

        reader: the newest `min_reader` that this release understands. The journal owns `fd` from here on. Raises
        SnapshotError, and leaves `fd` to the caller, when the file is not a journal or has another layout.
        """
        try:
            size = os.fstat(fd).st_size
            header = memoryview(os.pread(fd, HEADER_WORDS * WORD_BYTES, 0))
            # Access to a mapping beyond the end of its file raises SIGBUS.
            if size < HEADER_BYTES:
                raise SnapshotError(f"journal: the file has {size} bytes, expected at least {HEADER_BYTES}; {REMEDY}")
            words = header.cast("Q")
            if words[_MAGIC] != MAGIC or words[_LAYOUT] != LAYOUT:
                raise SnapshotError(
                    f"journal: magic {words[_MAGIC]:#x}, layout {words[_LAYOUT]}; expected {MAGIC:#x}, {LAYOUT}; "
                    f"{REMEDY}"
                )
            if words[REGION_BYTES] > FILE_BYTES_MAX:
                raise SnapshotError(
                    f"journal: regions of {words[REGION_BYTES]} bytes, expected at most {FILE_BYTES_MAX}; {REMEDY}"
                )
            return cls(fd, words[REGION_BYTES], reader=reader)
        except OSError as error:
            raise SnapshotError(f"journal: file descriptor {fd} cannot be read: {error}; {REMEDY}") from error

    def close(self) -> None:
        """Release the mapping and the descriptor; the file lives while another process holds it. Idempotent."""
        if self.fd < 0:
            return
        self._writer = False
        self._words.release()
        self._map.close()
        os.close(self.fd)
        self.fd = -1

    def erase(self) -> Iterator[None]:
        """Give the memory of all records back in slices, because they hold keys; no process may still need them."""
        end = HEADER_BYTES + 2 * self._region_bytes
        for start in range(HEADER_BYTES, end, ERASED_BYTES_MAX):
            with contextlib.suppress(OSError):  # not supported by every kernel: freed with the last descriptor
                memory_file.punch_hole(self.fd, start, min(ERASED_BYTES_MAX, end - start))
            yield

    # --- Reading ---

    @property
    def end(self) -> int:
        """Offset of the end of the last record that this process has read or written."""
        return self._active.end

    @property
    def position(self) -> tuple[int, int]:
        """The number of activations, and `end`: together they identify the journal as it is now (`copies`)."""
        return self._words[ACTIVATIONS], self._active.end

    @property
    def size(self) -> int:
        """Bytes of all records in the active region, live and dead."""
        return self._active.end - self._active.base

    @property
    def live_bytes(self) -> int:
        """Bytes of the records that no later record has replaced or retired."""
        return self._active.live_bytes

    def live_keys(self) -> list[tuple[str, bytes]]:
        """Return type and key of every live record."""
        return [(kind, key) for key in self._active.live for kind, _ in self._active.live.items(key)]

    def sync(self) -> list[Record]:
        """Return the records that another process appended since the last call, in order; none for the writer.

        The first call returns the whole journal. If the regions changed sides since the last call, it returns a
        retirement for each record that vanished and then the whole journal. Raises SnapshotError when a record cannot
        be read; after that only `close` may be called.
        """
        if self._writer:
            return []
        found: list[Found[Record]] = []
        vanished = self._read_new(lambda record: record, found)
        return vanished + [each.content for each in consumed(found)]

    def read_live(self, content_of: Callable[[Record], T]) -> list[Found[T]]:
        """Return every live record, with `content_of` it, for a reader whose first call this is; raises as `sync`.

        content_of: called for dead records, too. Where it returns less than a record, less is in memory at a time.
        """
        found: list[Found[T]] = []
        self._read_new(content_of, found)
        region = self._active
        if region.live_bytes == region.end - region.base:
            return found
        return [each for each in found if region.live.find(each.key, each.kind) == (each.offset, each.length)]

    def _read_new(self, content_of: Callable[[Record], T], found: list[Found[T]]) -> list[Record]:
        """Add the new records to `found`; return retirements as `sync` does."""
        for _ in range(READS_MAX):
            activations = self._words[ACTIVATIONS]
            found.clear()
            try:
                region, end, envelope = self._read(activations, content_of, found)
            except SnapshotError:
                if self._words[ACTIVATIONS] == activations:
                    raise
                continue
            # Asked last: while the sides are the same, no byte before the end has changed.
            if self._words[ACTIVATIONS] == activations:
                self._seen, self.envelope = (activations, end), envelope
                return self._accept(region, found)
        raise SnapshotError(f"journal: compacted {READS_MAX} times while it was read, expected once at most: try again")

    def _read(
        self, activations: int, content_of: Callable[[Record], T], found: list[Found[T]]
    ) -> tuple[Region, int, Record]:
        """Add each record that is new in the active region to `found`; return the region, its end and its envelope.

        Nothing is noted yet: what an overtaken attempt has read is void, its retirements too.
        """
        number = activations & 1
        end = self._words[END + number]
        changed_sides = self._seen is None or self._seen[0] != activations
        region = Region(number, HEADER_BYTES, self._region_bytes) if changed_sides else self._active
        if not region.base < end <= region.limit:
            raise SnapshotError(
                f"journal: region {number} ends at {end}, expected {region.base + 1} to {region.limit}; {REMEDY}"
            )
        envelope = self.envelope
        keys: dict[bytes, bytes] = {}  # each of them once: the records of a peer have the same
        for offset, length, record in scan(self.fd, region.end, end):
            if check_envelope(record, first=offset == region.base, reader=self._reader):
                envelope = record
            kind, key = sys.intern(record["type"]), keys.setdefault(record["key"], record["key"])
            record["key"] = key
            found.append(Found(offset, length, kind, key, record.get("retire"), content_of(record)))
        if not found and not len(region.live):
            raise SnapshotError(f"journal: no complete record, expected an envelope; {REMEDY}")
        return region, end, envelope

    def _accept(self, region: Region, found: list[Found[T]]) -> list[Record]:
        """Note what was read; return retirements as `sync` does."""
        for each in found:
            region.note_found(each)
        before = self.live_keys() if region is not self._active else []
        self._active = region
        vanished = ((kind, key) for kind, key in before if region.live.find(key, kind) is None)
        return [{"type": kind, "key": key, "retire": RETIRE_OWN} for kind, key in vanished]

    def live_records(self) -> list[Record]:
        """Return every live record, read again, the envelope first; raises SnapshotError when one cannot be read."""
        region = self._active
        return [
            record
            for offset, length, record in scan(self.fd, region.base, region.end)
            if region.live.find(record["key"], record["type"]) == (offset, length)
        ]

    # --- Writing ---

    @property
    def is_writer(self) -> bool:
        """Whether this process is the writer."""
        return self._writer

    def become_writer(self) -> None:
        """Become the writer, after everything was read. Idempotent.

        Raises WriterBusyError when another process holds the writer's lock, StorageError when the kernel has no lock,
        and StateError when there are records that `sync` has not returned.
        """
        if self._writer:
            return
        writer_lock.take(self.fd)  # first: nothing is appended from here on
        activations = self._words[ACTIVATIONS]
        end = self._words[END + (activations & 1)]
        if self._seen != (activations, end):
            writer_lock.release(self.fd)
            raise StateError(f"the journal ends at {end}, which was not read to: call sync() before writing to it")
        self._writer = True
        self._began_at = self.purged_at
        # Another process may have written anywhere, and left the inactive region as it was when it died.
        self._used = [HEADER_BYTES + self._region_bytes, HEADER_BYTES + 2 * self._region_bytes]
        self._give_back(1 - self._active.number)

    def stop_writing(self) -> None:
        """Stop being the writer, for another process to become it; abandons a compaction. Idempotent."""
        if self._writer:
            self._abandon_compaction()
            self._writer = False
            self._seen = (self._words[ACTIVATIONS], self._active.end)
            writer_lock.release(self.fd)  # last: if it fails, this process can become the writer again

    def append(self, *records: Record) -> None:
        """Append records, all of them or none; each must have `type` (str) and `key` (bytes).

        A journal that is full of dead records is compacted at once. Raises StorageError, with the journal unchanged,
        when the live records leave no room or the kernel refuses the memory, and StateError when this process is not
        the writer or a record is malformed.
        """
        if not self._writer:
            raise StateError("append to a journal that another process writes: call become_writer() first")
        encoded = [encode(record) for record in records]
        data = encoded[0] if len(encoded) == 1 else b"".join(encoded)
        region = self._active
        live_max = int(self._region_bytes * LIVE_FRACTION_MAX)
        if region.live_bytes + len(data) > live_max:
            growth = region.growth(records, encoded)
            if growth > 0 and region.live_bytes + growth > live_max:
                raise self._full(len(data))
        if region.end + len(data) > region.limit:
            self._compact_at_once()
            region = self._active
            if region.end + len(data) > region.limit:
                raise self._full(len(data))
        end = region.end + len(data)
        self._write(region.end, data)
        self._store(END + region.number, end)
        region.note_all(records, encoded)
        if self._target is None:
            return
        try:
            if self._target.end + len(data) > self._target.limit:
                raise self._full(len(data))
            self._write(self._target.end, data)
            self._target.note_all(records, encoded)
        except StorageError:
            # The records are safe: only their copy failed, and no process has read the other region yet.
            self._abandon_compaction()

    def _full(self, more: int) -> StorageError:
        region = self._active
        return StorageError(
            f"the journal is full: {region.end - region.base} bytes ({region.live_bytes} of them live) and {more} "
            f"more; expected at most {self._region_bytes}, {int(self._region_bytes * LIVE_FRACTION_MAX)} of them live: "
            "configure fewer peers"
        )

    def append_envelope(self, fields: Record) -> None:
        """Append an envelope, which replaces the last one; fields as in `create`. Raises as `append` does."""
        envelope = envelope_of(fields)
        self.append(envelope)
        self.envelope = envelope

    def _write(self, offset: int, data: bytes) -> None:
        number = 0 if offset < HEADER_BYTES + self._region_bytes else 1
        self._used[number] = max(self._used[number], offset + len(data))
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self.fd, data[written:], offset + written)
        except OSError as error:
            raise StorageError(f"the journal cannot take {len(data)} bytes: {error}; free some memory") from error

    def _store(self, word: int, value: int) -> None:
        """Store a word of the header atomically: an aligned copy of 8 bytes, which no reader sees in part."""
        self._words[word] = value

    # --- Compaction ---

    @property
    def needs_compaction(self) -> bool:
        """Whether more than half of a journal of at least COMPACT_BYTES_MIN is dead."""
        return self.size >= COMPACT_BYTES_MIN and self.size > 2 * self.live_bytes

    @property
    def is_compacting(self) -> bool:
        """Whether a compaction, or the freeing of memory after one, is under way."""
        return self._target is not None or bool(self._punch or self._needless or len(self._garbage))

    @property
    def purged_at(self) -> float:
        """The time from which no dead record is older, seconds: another generation's clock may have set it."""
        return self._words[PURGED_AT] / 1e9

    def hold(self) -> None:
        """Let the regions not change sides while a successor reads, from OFFER to COMMIT or to the offer's end.

        Otherwise it would read everything again after COMMIT, in the blackout. A compaction under way copies on.
        """
        self._held = True

    def unhold(self) -> None:
        """Let the regions change sides again; at once where a compaction has waited only for that."""
        self._held = False
        if self._is_copied:
            self._change_sides()

    def compact_step(self, keys_max: int, now: float = 0.0) -> bool:
        """Copy the live records of at most `keys_max` keys, or free some memory; return whether work is left.

        Begins a compaction if none is under way. now: the time, for `purged_at`. Does nothing while another process
        writes the journal, and returns False while the rest has to wait for `unhold`. Raises StorageError when the
        other region cannot be written; the journal is then unchanged.
        """
        if not self._writer:
            return False
        if self._punch or self._needless or len(self._garbage):
            self._free_step()
            return self.is_compacting
        self._copy(keys_max, now)
        if self._is_copied and not self._held:
            self._change_sides()
        return not self._is_copied

    def _compact_at_once(self) -> None:
        """Compact without a pause, also while a successor reads, which reads again; raises StorageError."""
        self._abandon_compaction()  # its copy may be full of dead records, too
        self._punch = range(0)
        while not self._is_copied:
            self._copy(len(self._active.live) + 1, self.purged_at)
        self._change_sides()

    def _copy(self, keys_max: int, now: float) -> None:
        """Copy the live records of at most `keys_max` keys to the other region; raises StorageError."""
        if self._target is None:
            self._target = Region(1 - self._active.number, HEADER_BYTES, self._region_bytes)
            self._pending = list(self._active.live)[::-1]  # the envelope's key is the first
            self._began_at = now
        target = self._target
        copied: list[Record] = []
        places: list[Place] = []
        for _ in range(min(keys_max, len(self._pending))):
            key = self._pending.pop()
            for kind, place in self._active.live.items(key):
                if target.live.find(key, kind) is None:  # else a newer one was appended there already
                    copied.append({"type": kind, "key": key})
                    places.append(place)
        try:
            chunks = [os.pread(self.fd, length, offset) for offset, length in places]
            data = b"".join(chunks)
            if target.end + len(data) > target.limit:
                raise self._full(len(data))
            self._write(target.end, data)
        except (OSError, StorageError) as error:
            self._abandon_compaction()
            raise StorageError(f"compaction: {error}") from error
        target.note_all(copied, chunks)
        self._is_copied = not self._pending

    def _change_sides(self) -> None:
        """Make the other region the active one, by one word that is stored after everything else."""
        old, target = self._active, self._target
        if target is None:
            raise StateError("a change of sides without a compaction; this is a bug")
        self._store(END + target.number, target.end)
        self._store(ACTIVATIONS, self._words[ACTIVATIONS] + 1)
        self._active, self._target, self._is_copied = target, None, False
        self._garbage = old.live
        self._give_back(old.number)

    def _give_back(self, number: int) -> None:
        """Begin to give the memory of a region back, as far as it may have been used."""
        base = HEADER_BYTES + number * self._region_bytes
        # Whole pages only: the bytes around them may belong to the header or to the other region.
        page = mmap.ALLOCATIONGRANULARITY
        end = min(-(-self._used[number] // page), (base + self._region_bytes) // page) * page
        self._punch = range(-(-base // page) * page, end)
        if not self._punch:
            self._used[number] = base

    def _free_step(self) -> None:
        """Give some of the inactive region's memory back to the kernel, and drop some keys of its index."""
        self._garbage.drop(FREE_KEYS_MAX)
        del self._needless[-FREE_KEYS_MAX:]
        if not self._punch:
            return
        length = min(PUNCH_BYTES_MAX, len(self._punch))
        number = 1 - self._active.number
        try:
            memory_file.punch_hole(self.fd, self._punch.start, length)
        except OSError:  # not supported by every kernel: tried again after the next compaction, which overwrites some
            self._punch = range(0)
        else:
            self._punch = self._punch[length:]
            if not self._punch:
                self._used[number] = HEADER_BYTES + number * self._region_bytes
        if not self._punch:
            self._store(PURGED_AT, int(self._began_at * 1e9))

    def _abandon_compaction(self) -> None:
        if self._target is not None:
            self._garbage = self._target.live
            self._give_back(self._target.number)
            self._target = None
            self._began_at = self.purged_at
        if self._pending:  # not freed at once: that takes milliseconds, and a hand-off waits for it
            self._pending, self._needless = [], self._pending
        self._is_copied = False
