"""Records, and reading a stream of them from a file that another process wrote.

Rules:
- Bytes from outside are trusted only as far as they were checked. Bytes that cannot be read raise a SnapshotError that
  gives the offset; only an incomplete record at the very end is skipped, because a writer may die at any byte.
- What `encode` accepts, `scan` reads, in this release and in every earlier one: it reads its bytes back.

A record is a string-keyed msgpack map with a `type` and a `key`; it replaces the earlier record with the same two. With
`retire` it instead ends that record ("own") or every record of the same key ("all"). The type "envelope" is first in a
stream and is never retired. Every other field belongs to the schema (`state.records`).

msgpack's traps: a map may name a field twice and the last one would win; keys may be of any type; text may not be
UTF-8; a header of five bytes may announce four thousand million elements.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgpack

from oxidize.errors import SnapshotError, StateError

Record = dict[str, Any]
_Item = TypeVar("_Item")

ENVELOPE = "envelope"
ENVELOPE_MAGIC = "oxidize-journal"
RETIRE_OWN = "own"
RETIRE_ALL = "all"

REMEDY = "restore it with the release that wrote it, or start without it"

# --- Limits, with room for the records of later releases ---
RECORD_BYTES_MAX = 16 << 20  # STAGED_PEER_BYTES_MAX of packets and their frames
# Names, releases and reasons, in bytes of UTF-8. Release 0.1.0 has written longer reasons, so a longer string is read,
# up to RECORD_BYTES_MAX; but no release before 0.2.0 reads one, so none is written.
STRING_BYTES_MAX = 4096
MAP_ENTRIES_MAX = 256
ARRAY_ENTRIES_MAX = 32_768  # three times the packets that a client may be configured to keep
READ_BYTES = 1 << 20  # read at once


def scan(fd: int, start: int, end: int) -> Iterator[tuple[int, int, Record]]:
    """Yield offset, length and content of every complete record between two offsets of a file, in bytes.

    Raises SnapshotError when the file ends before `end`, or when a record cannot be read.
    """
    unpacker = msgpack.Unpacker(
        max_buffer_size=RECORD_BYTES_MAX + READ_BYTES,
        max_str_len=RECORD_BYTES_MAX,
        **_LIMITS,
    )
    offset = read_to = start
    try:
        while read_to < end:
            chunk = os.pread(fd, min(READ_BYTES, end - read_to), read_to)
            if not chunk:
                raise SnapshotError(f"journal: the file ends at {read_to}, expected records to {end}; {REMEDY}")
            read_to += len(chunk)
            unpacker.feed(chunk)
            for record in unpacker:
                length = start + unpacker.tell() - offset
                yield offset, length, _checked(record)
                offset += length
    # ValueError covers UnicodeDecodeError and all errors of msgpack but BufferFull, which is an UnpackException.
    except (ValueError, TypeError, RecursionError, OSError, msgpack.UnpackException) as error:
        raise SnapshotError(f"journal: the record at offset {offset} cannot be read: {error}; {REMEDY}") from error


def envelope_of(fields: Record) -> Record:
    """Return the envelope with these fields."""
    return {"type": ENVELOPE, "key": b"", "magic": ENVELOPE_MAGIC, **fields}


def check_envelope(record: Record, *, first: bool, reader: int) -> bool:
    """Return whether a record is an envelope; raises SnapshotError if it is not, but the first of a stream.

    Also raises it for an envelope that requires a newer reader than `reader`.
    """
    if record["type"] != ENVELOPE:
        if first:
            raise SnapshotError(f"journal: the first record is {record['type']!r}, expected an envelope; {REMEDY}")
        return False
    magic, min_reader, version = record.get("magic"), record.get("min_reader"), record.get("format")
    if magic != ENVELOPE_MAGIC or type(min_reader) is not int or type(version) is not int:
        raise SnapshotError(
            f"journal: envelope with magic {magic!r}, format {version!r}, min_reader {min_reader!r}; expected "
            f"{ENVELOPE_MAGIC!r} and two integers; {REMEDY}"
        )
    if min_reader > reader:
        raise SnapshotError(
            f"journal: format {version}, written by release {record.get('release')!r}, wants a reader of "
            f"{min_reader} or later; this release reads {reader}: use a newer release"
        )
    return True


def encode(record: Record) -> bytes:
    """Return a record as bytes that `scan` reads, in every release; raises StateError for any other record."""
    kind = record.get("type")
    try:
        encoded: bytes = msgpack.packb(record)
        # Read back, so that no limit of the reader can be forgotten here.
        _checked(msgpack.unpackb(encoded, max_str_len=STRING_BYTES_MAX, **_LIMITS))
    except (OverflowError, TypeError, ValueError, RecursionError, msgpack.UnpackException) as error:
        fields = ", ".join(map(repr, record))
        raise StateError(f"record {kind!r:.80}, with the fields {fields:.400}, could not be read: {error}") from error
    if len(encoded) > RECORD_BYTES_MAX:
        raise StateError(f"record {kind!r} has {len(encoded)} bytes; expected at most {RECORD_BYTES_MAX}")
    return encoded


def cut(text: str) -> str:
    """Return a text for people so that a record takes it: STRING_BYTES_MAX bytes at most, no character divided."""
    return text.encode(errors="replace")[:STRING_BYTES_MAX].decode(errors="ignore")


def consumed(items: list[_Item]) -> Iterator[_Item]:
    """Yield the items of a list in their order, and take each out of it: of a large state nothing is kept twice."""
    items.reverse()
    while items:
        yield items.pop()


def with_first(kind: str, items: list[tuple[str, _Item]]) -> Iterator[tuple[str, _Item]]:
    """Yield items with their types in their order, but those of one type before all others, and empty the list."""
    others = []
    for item in consumed(items):
        if item[0] == kind:
            yield item
        else:
            others.append(item)
    yield from consumed(others)


def with_last(kind: str, items: list[tuple[str, _Item]]) -> Iterator[tuple[str, _Item]]:
    """Yield items with their types in their order, but those of one type behind all others, and empty the list."""
    last = []
    for item in consumed(items):
        if item[0] == kind:
            last.append(item)
        else:
            yield item
    yield from consumed(last)


def fold(records: Iterable[Record]) -> list[Record]:
    """Return the live records of a stream: the last one of each type and key, without the retired ones."""
    live: dict[bytes, dict[str, Record]] = {}
    for record in records:
        kind, key, retire = record["type"], record["key"], record.get("retire")
        if retire is None:
            live.setdefault(key, {})[kind] = record
        elif retire == RETIRE_ALL:
            live.pop(key, None)
        elif key in live:
            live[key].pop(kind, None)
    return [record for types in live.values() for record in types.values()]


def _map_of_pairs(pairs: list[tuple[Any, Any]]) -> Record:
    """Return the pairs of a msgpack map as a dictionary; raises ValueError if that would lose or retype one."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a map names a field twice")
    try:
        "".join(fields)  # at a third of the cost of a loop: this is called for every map of a state
    except TypeError:
        kinds = {type(name).__name__ for name in fields if type(name) is not str}
        raise ValueError(f"a map has a field name of the type {', '.join(sorted(kinds))}, expected str") from None
    return fields


# Of msgpack's, common to writing and reading.
_LIMITS: dict[str, Any] = {
    "max_bin_len": RECORD_BYTES_MAX,
    "max_array_len": ARRAY_ENTRIES_MAX,
    "max_map_len": MAP_ENTRIES_MAX,
    "max_ext_len": 0,
    "object_pairs_hook": _map_of_pairs,
}


def _checked(record: Any) -> Record:
    """Return a decoded object as a record; raises ValueError if a journal cannot account for it."""
    if type(record) is not dict:
        raise ValueError(f"it is of the type {type(record).__name__}, expected a map")
    kind, key, retire = record.get("type"), record.get("key"), record.get("retire")
    if type(kind) is not str or type(key) is not bytes:
        raise ValueError("it has no type (str) and key (bytes)")
    if retire not in (None, RETIRE_OWN, RETIRE_ALL):
        raise ValueError(f"{kind!r} retires {retire!r}, expected {RETIRE_OWN!r} or {RETIRE_ALL!r}")
    if (kind == ENVELOPE and (retire or key)) or (retire == RETIRE_ALL and not key):
        raise ValueError(f"{kind!r} retires the envelope, or is an envelope with a key")
    return record
