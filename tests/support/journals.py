"""Journals and images of journals, for tests of what a journal holds."""

import os
from typing import Any

from oxidize.state.journal import Journal
from oxidize.state.stream import fold

REGION_BYTES = 1 << 16
ENVELOPE = {"format": 1, "min_reader": 1, "release": "0.1.0"}
ACTIVATIONS = 3
END = 4


def made(region_bytes: int = REGION_BYTES) -> Journal:
    return Journal.create(ENVELOPE, reader=1, region_bytes=region_bytes)


def record(kind: str, key: bytes, value: object = None, **more: object) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value, **more}


def content(journal: Journal) -> bytes:
    return os.pread(journal.fd, os.fstat(journal.fd).st_size, 0)


def word(data: bytes, index: int) -> int:
    return int.from_bytes(data[8 * index : 8 * index + 8], "little")


def with_word(data: bytes, index: int, value: int) -> bytes:
    return data[: 8 * index] + value.to_bytes(8, "little") + data[8 * index + 8 :]


def opened(data: bytes, reader: int = 1) -> Journal:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.pwrite(fd, data, 0)
    try:
        return Journal.open(fd, reader=reader)
    except BaseException:  # cleans up, and raises it again
        os.close(fd)
        raise


def values(records: list[dict[str, Any]]) -> dict[tuple[str, bytes], Any]:
    return {(r["type"], r["key"]): r.get("value") for r in fold(records) if r["type"] != "envelope"}


def compact(journal: Journal, keys_max: int = 1) -> None:
    while journal.compact_step(keys_max):
        pass
