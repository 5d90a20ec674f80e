"""One of the two regions of a journal's file, and the places of its live records.

The rule: the index holds offsets and lengths, no bytes, so that the process does not have the state in memory twice.
"""

from collections.abc import Sequence

from oxidize.state.stream import ENVELOPE, RETIRE_ALL, Record


class Region:
    """A region: its number, 0 or 1, and offsets in the file, in bytes.

    base, limit: where it begins and ends. end: the end of its last record. live: key -> type -> (offset, length) of the
    records that no later one has replaced or retired. live_bytes: the sum of their lengths.
    """

    __slots__ = ("base", "end", "limit", "live", "live_bytes", "number")

    def __init__(self, number: int, header_bytes: int, region_bytes: int) -> None:
        self.number = number
        self.base = header_bytes + number * region_bytes
        self.limit = self.base + region_bytes
        self.end = self.base
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
                _, replaced = self.live.get(record["key"], {}).get(record["type"], (0, 0))
                added += len(data) - replaced
        return added
