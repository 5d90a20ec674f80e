"""Records, and how a stream of them is read from a file that another process wrote.

Rule: bytes from outside are believed only as far as they were checked. What cannot be read is a SnapshotError that
names the place; only an incomplete record at the very end is passed over, because a writer may die at any byte.

A record is a string-keyed msgpack map with a `type` and a `key`, under which it replaces the record before it. With
`retire` it instead ends that record ("own") or every record of the same key ("all"). The type "envelope" stands first
in a stream and is never retired. Every other field belongs to the schema (`state.records`).

msgpack's traps: a map may name a field twice and the last one would win; keys may be of any type; text may be no UTF-8;
a header of five bytes may announce four thousand million elements.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack

from oxidize.errors import SnapshotError

Record = dict[str, Any]

ENVELOPE = "envelope"
RETIRE_OWN = "own"
RETIRE_ALL = "all"

REMEDY = "restore it with the release that wrote it, or start without it"

# --- Limits, with room for what later releases may write ---
RECORD_BYTES_MAX = 16 << 20  # STAGED_PEER_BYTES_MAX of packets and their frames
STRING_BYTES_MAX = 4096  # names, releases and reasons
MAP_ENTRIES_MAX = 256
ARRAY_ENTRIES_MAX = 32_768  # three times the packets that a client may be told to keep
READ_BYTES = 1 << 20  # read at once


def scan(fd: int, start: int, end: int) -> Iterator[tuple[int, int, Record]]:
    """Yield offset, length and content of every complete record between two offsets of a file.

    Raises SnapshotError when the file ends before `end`, or when a record cannot be read.
    """
    unpacker = msgpack.Unpacker(
        max_buffer_size=RECORD_BYTES_MAX + READ_BYTES,
        max_str_len=STRING_BYTES_MAX,
        max_bin_len=RECORD_BYTES_MAX,
        max_array_len=ARRAY_ENTRIES_MAX,
        max_map_len=MAP_ENTRIES_MAX,
        max_ext_len=0,
        object_pairs_hook=_map_of_pairs,
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
    # ValueError covers UnicodeDecodeError and all of msgpack's own but BufferFull, which is an UnpackException.
    except (ValueError, TypeError, RecursionError, OSError, msgpack.UnpackException) as error:
        raise SnapshotError(f"journal: the record at offset {offset} cannot be read: {error}; {REMEDY}") from error


def fold(records: Iterable[Record]) -> list[Record]:
    """Return what a stream comes to: the last record under each type and key, but none that was retired."""
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
    """Make a map of what msgpack read; raises ValueError where a dictionary would hide something."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a map names a field twice")
    for name in fields:
        if type(name) is not str:
            raise ValueError(f"a map has a field name of the type {type(name).__name__}, expected str")
    return fields


def _checked(record: Any) -> Record:
    """Return what was read as a record; raises ValueError when a journal could not account for it."""
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
