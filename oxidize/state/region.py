"""One of the two regions of a journal's file, and the places of its live records.

The rule: the index holds places, no bytes, so that the process does not have the state in memory twice; and it holds
them in one tuple for each key, for a server has many keys.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from oxidize.state.stream import ENVELOPE, RETIRE_ALL, Record

T = TypeVar("T")

_LENGTH_BITS = 32  # RECORD_BYTES_MAX is far below

_Places = tuple[str | int, ...]  # the types of a key's live records, each followed by its place as one number


class Place(NamedTuple):
    """Where a record is, an offset in the file and a length, bytes."""

    offset: int
    length: int


class Found(NamedTuple, Generic[T]):
    """A record that was read: its place, type, key and `retire`, and what its reader keeps of it."""

    offset: int
    length: int
    kind: str
    key: bytes
    retire: str | None
    content: T


class LiveRecords:
    """The places of the records that no later one has replaced or retired, by key and type."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: dict[bytes, _Places] = {}

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._places)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys, in the order of their first records."""
        return iter(self._places)

    def find(self, key: bytes, kind: str) -> Place | None:
        """Return the place of a record, or None."""
        places = self._places.get(key, ())
        return _decoded(places[places.index(kind) + 1]) if kind in places else None

    def items(self, key: bytes) -> Iterator[tuple[str, Place]]:
        """Iterate over the types and places of a key's records."""
        places = self._places.get(key, ())
        return ((str(kind), _decoded(place)) for kind, place in zip(places[::2], places[1::2], strict=True))

    def put(self, key: bytes, kind: str, offset: int, length: int) -> int:
        """Note where a record is; return the bytes of the one that it replaces."""
        place = offset << _LENGTH_BITS | length
        places = self._places.get(key)
        if places is None:
            self._places[key] = (sys.intern(kind), place)
            return 0
        if kind not in places:
            self._places[key] = (*places, sys.intern(kind), place)
            return 0
        at = places.index(kind) + 1
        self._places[key] = (*places[:at], place, *places[at + 1 :])
        return _decoded(places[at]).length

    def remove(self, key: bytes, kinds: Iterable[str]) -> int:
        """Forget records of a key, those that there are; return their bytes."""
        places = self._places.get(key, ())
        removed = 0
        for kind in kinds:
            if kind in places:
                at = places.index(kind)
                removed += _decoded(places[at + 1]).length
                places = (*places[:at], *places[at + 2 :])
        if places:
            self._places[key] = places
        else:
            self._places.pop(key, None)
        return removed

    def drop(self, keys_max: int) -> None:
        """Remove some obsolete keys, at a bounded cost."""
        for _ in range(min(keys_max, len(self._places))):
            self._places.popitem()


def _decoded(place: str | int) -> Place:
    number = int(place)
    return Place(number >> _LENGTH_BITS, number & (1 << _LENGTH_BITS) - 1)


class Region:
    """A region: its number, 0 or 1, and offsets in the file, in bytes.

    base, limit: where it begins and ends. end: the end of its last record. live: the places of its live records.
    live_bytes: the sum of their lengths.
    """

    __slots__ = ("base", "end", "limit", "live", "live_bytes", "number")

    def __init__(self, number: int, header_bytes: int, region_bytes: int) -> None:
        self.number = number
        self.base = header_bytes + number * region_bytes
        self.limit = self.base + region_bytes
        self.end = self.base
        self.live = LiveRecords()
        self.live_bytes = 0

    def note(self, record: Record, offset: int, length: int) -> None:
        """Account for a record of `length` bytes at `offset`."""
        self._note(record["type"], record["key"], record.get("retire"), offset, length)

    def note_found(self, found: Found[Any]) -> None:
        """Account for a record that was read at the end of the region."""
        self._note(found.kind, found.key, found.retire, found.offset, found.length)
        self.end = found.offset + found.length  # an incomplete one behind it is overwritten by the next writer

    def _note(self, kind: str, key: bytes, retire: str | None, offset: int, length: int) -> None:
        if retire is None:
            self.live_bytes += length - self.live.put(key, kind, offset, length)
        elif retire == RETIRE_ALL:
            self.live_bytes -= self.live.remove(key, [each for each, _ in self.live.items(key)])
        else:
            self.live_bytes -= self.live.remove(key, [kind])

    def note_all(self, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
        """Account for records that were written in sequence at the end of the region."""
        for record, data in zip(records, encoded, strict=True):
            self.note(record, self.end, len(data))
            self.end += len(data)

    def growth(self, records: Sequence[Record], encoded: Sequence[bytes]) -> int:
        """Return by how many bytes records would add to the live ones at most; an envelope counts as nothing."""
        added = 0
        for record, data in zip(records, encoded, strict=True):
            if record.get("retire") is None and record["type"] != ENVELOPE:
                replaced = self.live.find(record["key"], record["type"])
                added += len(data) - (replaced.length if replaced is not None else 0)
        return added
