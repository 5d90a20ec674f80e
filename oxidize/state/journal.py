"""The journal: a stream of msgpack maps in a memory file that outlives the process that writes it.

Rules:
- A record is in the journal exactly when the end of its region, one aligned 64-bit word, lies behind it. The bytes are
  written first and the word is stored last, so a writer that is killed leaves a whole record or none.
- There is one writer at a time. A process that opens a journal reads it, and becomes the writer only after it has read
  everything.
- Two regions are used in turn. Compaction copies the live records into the inactive region in small steps, while new
  records are written to both; then one word makes the other region the active one. At every instant one region is
  complete.
- Descriptors that came by SCM_RIGHTS share their file offset, so only pread, pwrite and mmap access the file.

`state.stream` defines the form of a record; the journal does not interpret its fields.

Sources: pwrite(2), fallocate(2), fcntl(2).
"""

import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Self

import msgpack

from oxidize.errors import SnapshotError, StateError, WriterBusyError
from oxidize.state import memory_file
from oxidize.state.stream import ENVELOPE, RECORD_BYTES_MAX, REMEDY, RETIRE_ALL, RETIRE_OWN, Record, scan

ENVELOPE_MAGIC = "oxidize-journal"

# --- Limits ---
REGION_BYTES_MAX = 256 << 20  # of one region; sparse: only written bytes cost memory
FILE_BYTES_MAX = 1 << 40  # of another release's region: offsets stay far below 2^63
COMPACT_BYTES_MIN = 256 << 10  # a smaller journal is not worth the copying
PUNCH_BYTES_MAX = 512 << 10  # of memory given back in one step: some 200 us
# Keys of an old index that are dropped in one step: some 200 us; 20,000 at once would stop the data path for 10 ms.
FREE_KEYS_MAX = 512

# --- The header page. Another release reads it: words are only added. ---
HEADER_BYTES = 4096
MAGIC = int.from_bytes(b"OXIJRNAL", "little")
LAYOUT = 1
_MAGIC, _LAYOUT, REGION_BYTES = range(3)
ACTIVATIONS = 3  # how often the regions changed sides; modulo 2 it is the number of the active one
END = 4  # the end of region 0, followed by that of region 1: offsets in the file
HEADER_WORDS = 6
WORD_BYTES = 8


class _Region:
    """One of the two regions of the file, and the places of its live records."""

    __slots__ = ("base", "end", "limit", "live", "live_bytes", "number")

    def __init__(self, number: int, region_bytes: int) -> None:
        self.number = number
        self.base = HEADER_BYTES + number * region_bytes
        self.limit = self.base + region_bytes
        self.end = self.base
        # Key -> type -> (offset, length). The bytes stay in the file, so that the state is not in memory twice.
        self.live: dict[bytes, dict[str, tuple[int, int]]] = {}
        self.live_bytes = 0

    def note(self, record: Record, offset: int, length: int) -> None:
        """Account for a record of `length` bytes at `offset`."""
        kind, key, retire = record["type"], record["key"], record.get("retire")
        types = self.live.setdefault(key, {})
        if kind in types:
            self.live_bytes -= types[kind][1]
        if retire is None:
            types[kind] = (offset, length)
            self.live_bytes += length
            return
        types.pop(kind, None)
        if retire == RETIRE_ALL:
            self.live_bytes -= sum(length for _, length in types.values())
            types.clear()
        if not types:
            del self.live[key]


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
        self._active = _Region(self._words[ACTIVATIONS] & 1, region_bytes)
        self._seen: tuple[int, int] | None = None  # activations and end at the latest `sync`
        self._packer = msgpack.Packer(autoreset=True)
        self._writer = False
        self._held = False
        self._target: _Region | None = None  # of the compaction under way
        self._pending: Iterator[bytes] = iter(())  # its keys that are not copied yet
        self._punch = range(0)  # the part of the inactive region whose memory is not given back yet
        self._garbage: dict[bytes, dict[str, tuple[int, int]]] = {}  # the index of a region that is out of use

    @classmethod
    def create(cls, envelope: Record, *, reader: int, region_bytes: int = REGION_BYTES_MAX) -> Self:
        """Return a new journal, as its writer, with one record, the envelope.

        envelope: the fields other than type, key and magic; must have `format` and `min_reader`. reader: the newest
        `min_reader` that this release understands. region_bytes: of each region. Raises OSError when the kernel
        refuses, and StateError as `append` does.
        """
        fd = memory_file.create("oxidize-journal", HEADER_BYTES + 2 * region_bytes)
        try:
            header = memoryview(bytearray(HEADER_WORDS * WORD_BYTES)).cast("Q")
            header[_MAGIC], header[_LAYOUT], header[REGION_BYTES] = MAGIC, LAYOUT, region_bytes
            header[END], header[END + 1] = HEADER_BYTES, HEADER_BYTES + region_bytes
            os.pwrite(fd, header, 0)
            journal = cls(fd, region_bytes, reader=reader)
            journal._lock()
            journal._writer = True
            journal.append_envelope(envelope)
        except BaseException:
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
        return [(kind, key) for key, types in self._active.live.items() for kind in types]

    def sync(self) -> list[Record]:
        """Return the records that another process appended since the last call, in order; none for the writer.

        The first call returns the whole journal. If the regions changed sides since the last call, it returns a
        retirement for each record that vanished and then the whole journal. Raises SnapshotError when a record cannot
        be read; after that only `close` may be called.
        """
        if self._writer:
            return []
        activations = self._words[ACTIVATIONS]
        number = activations & 1
        end = self._words[END + number]
        changed_sides = self._seen is None or self._seen[0] != activations
        region = _Region(number, self._region_bytes) if changed_sides else self._active
        if not region.base < end <= region.limit:
            raise SnapshotError(
                f"journal: region {number} ends at {end}, expected {region.base + 1} to {region.limit}; {REMEDY}"
            )
        records = []
        for offset, length, record in scan(self.fd, region.end, end):
            self._check_envelope(record, first=offset == region.base)
            region.note(record, offset, length)
            region.end = offset + length  # not `end`: the next writer overwrites an incomplete last record
            records.append(record)
        if not region.live:
            raise SnapshotError(f"journal: no complete record, expected an envelope; {REMEDY}")
        vanished: list[Record] = []
        if region is not self._active:
            vanished = [
                {"type": kind, "key": key, "retire": RETIRE_OWN}
                for kind, key in self.live_keys()
                if kind not in region.live.get(key, ())
            ]
        self._active = region
        self._seen = (activations, end)
        return vanished + records

    def live_records(self) -> list[Record]:
        """Return every live record, read again, the envelope first; raises SnapshotError when one cannot be read."""
        region = self._active
        return [
            record
            for offset, length, record in scan(self.fd, region.base, region.end)
            if region.live.get(record["key"], {}).get(record["type"]) == (offset, length)
        ]

    def _check_envelope(self, record: Record, *, first: bool) -> None:
        """Refuse a stream without an envelope first, and an envelope that requires a newer reader."""
        if record["type"] != ENVELOPE:
            if first:
                raise SnapshotError(f"journal: the first record is {record['type']!r}, expected an envelope; {REMEDY}")
            return
        magic, min_reader, version = record.get("magic"), record.get("min_reader"), record.get("format")
        if magic != ENVELOPE_MAGIC or type(min_reader) is not int or type(version) is not int:
            raise SnapshotError(
                f"journal: envelope with magic {magic!r}, format {version!r}, min_reader {min_reader!r}; expected "
                f"{ENVELOPE_MAGIC!r} and two integers; {REMEDY}"
            )
        if min_reader > self._reader:
            raise SnapshotError(
                f"journal: format {version}, written by release {record.get('release')!r}, wants a reader of "
                f"{min_reader} or later; this release reads {self._reader}: use a newer release"
            )
        self.envelope = record

    # --- Writing ---

    def become_writer(self) -> None:
        """Become the writer, after everything was read. Idempotent.

        The caller guarantees that no other process writes. Raises StateError when there are records that `sync` has not
        returned, and WriterBusyError when another process holds the writer's lock.
        """
        if self._writer:
            return
        activations = self._words[ACTIVATIONS]
        end = self._words[END + (activations & 1)]
        if self._seen != (activations, end):
            raise StateError(f"the journal ends at {end}, which was not read to: call sync() before writing to it")
        self._lock()
        self._writer = True

    def stop_writing(self) -> None:
        """Stop being the writer, for another process to become it; abandons a compaction. Idempotent."""
        if self._writer:
            self._abandon_compaction()
            self._writer = False
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
            self._seen = (self._words[ACTIVATIONS], self._active.end)

    def _lock(self) -> None:
        """Lock the file against every other writer; the kernel releases the lock when this process ends.

        A POSIX lock belongs to the process, not to the open file that all generations share (fcntl(2), "Advisory record
        locking"). Closing any descriptor of the file would release it, so only `close` closes one.
        """
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WriterBusyError(
                f"another process writes the journal ({error.strerror}): it owns the state"
            ) from error

    def append(self, *records: Record) -> None:
        """Append records, all of them or none; each must have `type` (str) and `key` (bytes).

        Raises StateError, with the journal unchanged, when this process is not the writer, when a record is malformed,
        or when a limit is reached.
        """
        if not self._writer:
            raise StateError("append to a journal that another process writes: call become_writer() first")
        encoded = [self._encode(record) for record in records]
        data = encoded[0] if len(encoded) == 1 else b"".join(encoded)
        region = self._active
        end = region.end + len(data)
        if end > region.limit:
            raise StateError(
                f"the journal is full: {region.end - region.base} bytes ({region.live_bytes} of them live) and "
                f"{len(data)} more; expected at most {self._region_bytes}: let compaction run, or configure fewer peers"
            )
        self._write(region.end, data)
        self._store(END + region.number, end)
        _note_all(region, records, encoded)
        if self._target is None:
            return
        try:
            self._write(self._target.end, data)
            _note_all(self._target, records, encoded)
        except StateError:
            # The records are safe: only their copy failed, and no process has read the other region yet.
            self._abandon_compaction()

    def append_envelope(self, fields: Record) -> None:
        """Append an envelope, which replaces the last one; fields as in `create`. Raises as `append` does."""
        envelope = {"type": ENVELOPE, "key": b"", "magic": ENVELOPE_MAGIC, **fields}
        self.append(envelope)
        self.envelope = envelope

    def _encode(self, record: Record) -> bytes:
        kind, key = record.get("type"), record.get("key")
        if type(kind) is not str or type(key) is not bytes:
            raise StateError(f"a record without type (str) and key (bytes), with the fields {sorted(record)}: a bug")
        if "retire" in record and (kind == ENVELOPE or (record["retire"] == RETIRE_ALL and not key)):
            raise StateError(f"record {kind!r} would retire the envelope, which must stay: a bug")
        try:
            encoded: bytes = self._packer.pack(record)
        except (OverflowError, TypeError, ValueError) as error:
            raise StateError(f"record {kind!r} has a field that msgpack cannot carry: {error}") from error
        if len(encoded) > RECORD_BYTES_MAX:
            raise StateError(f"record {kind!r} has {len(encoded)} bytes; expected at most {RECORD_BYTES_MAX}")
        return encoded

    def _write(self, offset: int, data: bytes) -> None:
        try:
            written = os.pwrite(self.fd, data, offset)
            while written < len(data):
                written += os.pwrite(self.fd, data[written:], offset + written)
        except OSError as error:
            raise StateError(f"the journal cannot take {len(data)} bytes: {error}; free some memory") from error

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
        return self._target is not None or bool(self._punch) or bool(self._garbage)

    def hold(self) -> None:
        """Suspend compaction, from OFFER to TAKEN of a takeover, so that the journal only grows; abandons one."""
        self._abandon_compaction()
        self._held = True

    def unhold(self) -> None:
        """Resume compaction."""
        self._held = False

    def compact_step(self, keys_max: int) -> bool:
        """Copy the live records of at most `keys_max` keys, or free some memory; return whether work is left.

        Begins a compaction if none is under way. Does nothing while the journal is held or another process writes it.
        Raises StateError when the other region cannot be written; the journal is then unchanged.
        """
        if self._held or not self._writer:
            return False
        if self._punch or self._garbage:
            self._free_step()
            return self.is_compacting
        if self._target is None:
            self._target = _Region(1 - self._active.number, self._region_bytes)
            self._pending = iter(list(self._active.live))  # the envelope's key is the first
        try:
            finished = self._copy(self._target, keys_max)
        except StateError:
            self._abandon_compaction()
            raise
        if finished:
            self._change_sides(self._target)
        return True

    def _copy(self, target: _Region, keys_max: int) -> bool:
        """Copy the live records of at most `keys_max` keys to the other region; return whether none is left."""
        chunks: list[bytes] = []
        copied: list[Record] = []
        finished = True
        for count, key in enumerate(self._pending, 1):
            for kind, (offset, length) in self._active.live.get(key, {}).items():
                if kind not in target.live.get(key, ()):  # else a newer one was appended there already
                    chunks.append(os.pread(self.fd, length, offset))
                    copied.append({"type": kind, "key": key})
            if count == keys_max:
                finished = False
                break
        if chunks:
            self._write(target.end, b"".join(chunks))
            _note_all(target, copied, chunks)
        return finished

    def _change_sides(self, target: _Region) -> None:
        """Make the other region the active one, by one word that is stored after everything else."""
        self._store(END + target.number, target.end)
        self._store(ACTIVATIONS, self._words[ACTIVATIONS] + 1)
        old = self._active
        self._active, self._target = target, None
        self._garbage = old.live
        # Whole pages only: the bytes around them may belong to the header or to the other region.
        page = mmap.ALLOCATIONGRANULARITY
        self._punch = range(-(-old.base // page) * page, min(-(-old.end // page), old.limit // page) * page)

    def _free_step(self) -> None:
        """Give some of the inactive region's memory back to the kernel, and drop some keys of its index."""
        for _ in range(min(FREE_KEYS_MAX, len(self._garbage))):
            self._garbage.popitem()
        if not self._punch:
            return
        length = min(PUNCH_BYTES_MAX, len(self._punch))
        try:
            memory_file.punch_hole(self.fd, self._punch.start, length)
        except OSError:  # not supported by every kernel: the next compaction overwrites the memory
            self._punch = range(0)
        else:
            self._punch = self._punch[length:]

    def _abandon_compaction(self) -> None:
        if self._target is not None:
            self._garbage, self._target = self._target.live, None
        self._pending = iter(())
        self._punch = range(0)


def _note_all(region: _Region, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
    """Account for records that were written in sequence at the end of a region."""
    for record, data in zip(records, encoded, strict=True):
        region.note(record, region.end, len(data))
        region.end += len(data)
