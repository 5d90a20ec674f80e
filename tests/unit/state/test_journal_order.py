"""The order of stores: a record does not exist before its bytes are written."""

import os

import pytest

from oxidize.state.journal import Journal
from oxidize.state.stream import fold
from tests.support.journals import content, opened


def keys_in(image: bytes) -> list[bytes]:
    """Return the keys of the live records that a process would restore from an image of the file."""
    reader = opened(image)
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
        images.append(content(journal))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", killed_here)
    journal.append({"type": "a", "key": b"second"})
    monkeypatch.undo()
    assert [keys_in(image) for image in images] == [[b"first"]]
    assert keys_in(content(journal)) == [b"first", b"second"]
