"""The order of stores: a record does not exist before its bytes are written."""

import os
from collections.abc import Iterator

import pytest

from oxidize.state.journal import Journal
from oxidize.state.stream import fold

ENVELOPE = {"format": 1, "min_reader": 1, "release": "0.1.0"}


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal.create(ENVELOPE, reader=1, region_bytes=1 << 16)
    yield journal
    journal.close()


def keys_in(image: bytes) -> list[bytes]:
    """Return the keys of the live records that a process would restore from an image of the file."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.pwrite(fd, image, 0)
    reader = Journal.open(fd, reader=1)
    try:
        return [record["key"] for record in fold(reader.sync()) if record["key"]]
    finally:
        reader.close()


def test_a_writer_that_is_killed_before_its_bytes_are_written_leaves_no_record(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append({"type": "a", "key": b"first"})
    images: list[bytes] = []
    write = os.pwrite

    def killed_here(fd: int, data: bytes, offset: int) -> int:
        images.append(os.pread(fd, os.fstat(fd).st_size, 0))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", killed_here)
    journal.append({"type": "a", "key": b"second"})
    monkeypatch.undo()
    assert [keys_in(image) for image in images] == [[b"first"]]
    assert keys_in(os.pread(journal.fd, os.fstat(journal.fd).st_size, 0)) == [b"first", b"second"]
