"""What a journal refuses: more than it holds, malformed records, and images that it cannot read."""

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.state.journal import HEADER_BYTES, LIVE_FRACTION_MAX, REGION_BYTES_MAX, Journal
from oxidize.state.stream import RECORD_BYTES_MAX
from tests.support.journals import (
    ACTIVATIONS,
    END,
    ENVELOPE,
    REGION_BYTES,
    compact,
    content,
    opened,
    record,
    values,
    with_word,
    word,
)

# --- Limits ---


def test_a_journal_full_of_dead_records_is_compacted_by_the_append_that_needs_the_room(journal: Journal) -> None:
    for count in range(1000):
        journal.append(record("a", b"1", count, padding=bytes(1000)))
        assert values(journal.live_records()) == {("a", b"1"): count}
    assert word(content(journal), ACTIVATIONS) > 10
    reader = opened(content(journal))
    assert values(reader.sync()) == {("a", b"1"): 999}
    reader.close()


@pytest.mark.parametrize("steps", [0, 1, 7, 50])
def test_a_compaction_under_way_is_replaced_by_an_append_that_needs_the_room(journal: Journal, steps: int) -> None:
    for i in range(15):
        journal.append(record("a", b"%d" % i, i, padding=bytes(500)))
    compact(journal)
    journal.hold()
    for _ in range(steps):
        journal.compact_step(1)
    for count in range(500):
        journal.append(record("a", b"0", count, padding=bytes(500)))
    expected = {("a", b"%d" % i): i for i in range(1, 15)} | {("a", b"0"): 499}
    assert values(journal.live_records()) == expected
    journal.unhold()
    compact(journal)
    assert values(journal.live_records()) == expected


def test_a_journal_full_of_live_records_refuses_one_more_and_takes_what_replaces_or_retires(journal: Journal) -> None:
    number = 55
    for each in range(number):
        journal.append(record("a", b"%d" % each, 0, padding=bytes(1000)))
    with pytest.raises(StorageError, match=r"journal is full: \d+ bytes \(\d+ of them live\).*fewer peers"):
        journal.append(record("b", b"more", 0, padding=bytes(2000)))
    assert 0.8 * REGION_BYTES < journal.live_bytes <= LIVE_FRACTION_MAX * REGION_BYTES
    before = values(journal.live_records())
    for _ in range(3):
        for each in range(number):  # what replaces is as long
            journal.append(record("a", b"%d" % each, 1, padding=bytes(1000)))
    assert values(journal.live_records()) == dict.fromkeys(before, 1)
    journal.append_envelope({**ENVELOPE, "release": "0.2.0 with a longer name"})
    with pytest.raises(StorageError):
        journal.append(record("b", b"more", 0, padding=bytes(2000)))
    for each in range(number):
        journal.append({"type": "a", "key": b"%d" % each, "retire": "own"})
    journal.append(record("b", b"more", 2, padding=bytes(2000)))
    assert values(journal.live_records()) == {("b", b"more"): 2}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EIO])
def test_memory_that_the_kernel_refuses_costs_the_one_record(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    journal.append(record("a", b"1", 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(code))
        with pytest.raises(StorageError, match=os.strerror(code)):
            journal.append(record("a", b"1", 2))
        with pytest.raises(StorageError, match=os.strerror(code)):
            journal.compact_step(10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing(code))
        journal.compact_step(10)  # gives the memory of the last attempt back
        with pytest.raises(StorageError, match=os.strerror(code)):
            journal.compact_step(10)
    journal.append(record("a", b"2", 2))
    compact(journal)
    assert values(journal.live_records()) == {("a", b"1"): 1, ("a", b"2"): 2}


def failing(code: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_journal_of_full_size_costs_no_memory_until_it_is_used() -> None:
    journal = Journal.create(ENVELOPE, reader=1)
    assert os.fstat(journal.fd).st_size == HEADER_BYTES + 2 * REGION_BYTES_MAX
    assert os.fstat(journal.fd).st_blocks * 512 <= 16 * 4096
    with pytest.raises(PermissionError):
        os.ftruncate(journal.fd, 0)
    assert fcntl.fcntl(journal.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(StateError, match="expected at most"):
        journal.append(record("a", b"1", bytes(RECORD_BYTES_MAX)))
    journal.close()
    journal.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"type": "a", "key": "text"}, "no type"),
        ({"key": b"1"}, "no type"),
        ({"type": "a", "key": b"1", "value": 2**64}, "record 'a'"),
        ({"type": "a", "key": b"1", "value": object()}, "record 'a'"),
        ({"type": "a", "key": b"1", "value": "\ud800"}, "record 'a'"),
        ({"type": "a", "key": b"1", "value": "\u00fc" * 2049}, "max_str_len"),
        ({"type": "a", "key": b"1", "x" * 4097: 1}, "max_str_len"),
        ({"type": "a", "key": b"1", "value": [0] * 32_769}, "max_array_len"),
        ({"type": "a", "key": b"1", "value": {str(i): i for i in range(257)}}, "max_map_len"),
        ({"type": "a", "key": b"1", "value": {1: 1}}, "not allowed"),
        ({"type": "a", "key": b"1", "value": {b"1": 1}}, "field name of the type bytes"),
        ({"type": "a", "key": b"1", "value": msgpack.ExtType(5, b"x")}, "max_ext_len"),
        ({"type": "a", "key": b"1", "retire": "later"}, "retires 'later'"),
        ({"type": "envelope", "key": b"", "retire": "own"}, "retires the envelope"),
        ({"type": "a", "key": b"", "retire": "all"}, "retires the envelope"),
    ],
)
def test_a_malformed_record_is_refused_before_anything_is_written(
    journal: Journal, bad: dict[str, Any], message: str
) -> None:
    before = content(journal)
    with pytest.raises(StateError, match=message):
        journal.append(bad)
    assert content(journal) == before
    journal.append(record("a", b"1", 2**64 - 1))
    assert values(journal.live_records()) == {("a", b"1"): 2**64 - 1}


# --- Refused journals ---


def test_an_envelope_for_newer_readers_is_refused(journal: Journal) -> None:
    journal.append_envelope({"format": 7, "min_reader": 5, "release": "9.0"})
    reader = opened(content(journal), reader=4)
    with pytest.raises(SnapshotError, match=r"format 7, written by release '9.0', wants a reader of 5.*reads 4.*newer"):
        reader.sync()
    reader.close()
    reader = opened(content(journal), reader=5)
    reader.sync()
    reader.close()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"type": "a", "key": b"1"}, "the first record is 'a', expected an envelope"),
        ({"type": "envelope", "key": b"", "magic": "other", **ENVELOPE}, "magic 'other'"),
        ({"type": "envelope", "key": b"", "magic": "oxidize-journal"}, "min_reader None"),
        ({"type": "envelope", "key": b"", "magic": "oxidize-journal", **ENVELOPE, "format": "1"}, "format '1'"),
    ],
)
def test_a_stream_without_its_envelope_is_refused(journal: Journal, first: dict[str, Any], message: str) -> None:
    stream = msgpack.packb(first)
    image = content(journal)[:HEADER_BYTES] + stream
    reader = opened(with_word(image, END, len(image)))
    with pytest.raises(SnapshotError, match=f"{message}.*start without it"):
        reader.sync()
    reader.close()
    reader = opened(with_word(image, END, len(image) - 1))
    with pytest.raises(SnapshotError, match=r"no complete record.*start without it"):
        reader.sync()
    reader.close()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, 1, "magic 0x1"),
        (1, 2, "layout 2"),
        (2, 1 << 63, "regions of"),
    ],
)
def test_a_journal_of_another_layout_is_refused(journal: Journal, index: int, value: int, message: str) -> None:
    with pytest.raises(SnapshotError, match=f"{message}.*expected"):
        opened(with_word(content(journal), index, value))


@pytest.mark.parametrize(
    ("index", "value"), [(2, 0), (ACTIVATIONS, 1), (END, 0), (END, HEADER_BYTES), (END, 1 << 63), (END, 10**6)]
)
def test_an_end_outside_its_region_is_refused(journal: Journal, index: int, value: int) -> None:
    reader = opened(with_word(content(journal), index, value))
    with pytest.raises(SnapshotError, match="expected"):
        reader.sync()
    reader.close()


def test_a_file_that_ends_before_its_records_is_refused(journal: Journal) -> None:
    journal.append(record("a", b"1", bytes(1000)))
    image = content(journal)
    for size in (0, 47, HEADER_BYTES - 1):
        with pytest.raises(SnapshotError, match="bytes, expected at least"):
            opened(image[:size])
    reader = opened(image[: journal.end - 1])
    with pytest.raises(SnapshotError, match="the file ends at"):
        reader.sync()
    reader.close()


def test_a_file_that_ends_right_after_its_records_is_read_and_written(journal: Journal) -> None:
    journal.append(record("a", b"1", 1))
    short = opened(content(journal)[: journal.end])
    assert values(short.sync()) == {("a", b"1"): 1}
    short.become_writer()
    short.append(record("a", b"2", 2))
    compact(short)
    assert values(short.live_records()) == {("a", b"1"): 1, ("a", b"2"): 2}
    short.close()


def test_a_pipe_is_refused_as_a_journal() -> None:
    ends = os.pipe()
    with pytest.raises(SnapshotError, match=r"expected at least|cannot be read"):
        Journal.open(ends[0], reader=1)
    for fd in ends:
        os.close(fd)
