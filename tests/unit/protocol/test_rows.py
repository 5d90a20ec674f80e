"""The packets of one batch stand in rows as they were read, whatever their sizes."""

from collections.abc import Sequence

import pytest

from oxidize.protocol.rows import ROW_BYTES, SEGMENT_SIZES_CACHED_MAX, PacketRows

BATCHES = [
    [1],
    [1420] * 64,
    [1420] * 10 + [7],
    [7] + [1420] * 10,
    [60, 61, 62, 60],
    [ROW_BYTES],
    [ROW_BYTES + 1],
    [65_535],
    [40, 41, 65_535],
    [1420, 1420, 9_000],
]


def read(rows: PacketRows, header_size: int, packets: Sequence[bytes]) -> list[memoryview]:
    """Return packets as they stand in the rows after they were read."""
    for packet, (row, beyond) in zip(packets, rows.room, strict=False):
        frame = b"h" * header_size + packet
        row[: len(frame)] = frame[:ROW_BYTES]
        beyond[: len(frame[ROW_BYTES:])] = frame[ROW_BYTES:]
    return rows.packets([header_size + len(packet) for packet in packets])


@pytest.mark.parametrize("header_size", [0, 10])
def test_packets_are_read_as_they_came(header_size: int) -> None:
    rows = PacketRows(header_size)
    for number, sizes in enumerate(BATCHES * 2):
        packets = [bytes([(number + row) % 256]) * (size - header_size) for row, size in enumerate(sizes)]
        packets = packets if min(sizes) >= header_size else [b"short"]
        assert read(rows, header_size, packets) == packets


def test_views_of_few_sizes_are_kept() -> None:
    rows = PacketRows(0)
    for size in range(1, 3 * SEGMENT_SIZES_CACHED_MAX):
        packets = [bytes([size])[:1] * size] * 3
        assert read(rows, 0, packets) == packets
        assert len(rows._views) <= SEGMENT_SIZES_CACHED_MAX
