"""The journal: whole records are read, torn ones are not, and one process writes at a time."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.state import journal as journal_module
from oxidize.state.journal import HEADER_BYTES, LIVE_FRACTION_MAX, REGION_BYTES_MAX, Journal
from oxidize.state.stream import RECORD_BYTES_MAX, fold

REGION_BYTES = 1 << 16
ENVELOPE = {"format": 1, "min_reader": 1, "release": "0.1.0"}
ACTIVATIONS = 3
END = 4


def made(region_bytes: int = REGION_BYTES) -> Journal:
    return Journal.create(ENVELOPE, reader=1, region_bytes=region_bytes)


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = made()
    yield journal
    journal.close()


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
    except BaseException:
        os.close(fd)
        raise


def values(records: list[dict[str, Any]]) -> dict[tuple[str, bytes], Any]:
    return {(r["type"], r["key"]): r.get("value") for r in fold(records) if r["type"] != "envelope"}


def compact(journal: Journal, keys_max: int = 1) -> None:
    while journal.compact_step(keys_max):
        pass


# --- Reading and writing ---


def test_a_reader_finds_the_envelope_first_and_every_record_in_order(journal: Journal) -> None:
    written = [record("a", b"1", 1), record("b", b"1", [b"x"]), record("a", b"1", 2), record("a", b"", None)]
    for each in written:
        journal.append(each)
    reader = opened(content(journal))
    first, *rest = reader.sync()
    assert first == {"type": "envelope", "key": b"", "magic": "oxidize-journal", **ENVELOPE}
    assert rest == written
    assert reader.envelope == journal.envelope == first
    assert reader.end == journal.end
    assert reader.live_bytes == journal.live_bytes
    reader.close()


def test_reading_a_journal_writes_nothing(journal: Journal) -> None:
    journal.append(record("a", b"1"))
    before = content(journal)
    reader = Journal.open(os.dup(journal.fd), reader=1)
    reader.sync()
    reader.live_records()
    reader.close()
    assert content(journal) == before


def test_the_shared_file_offset_is_neither_used_nor_moved(journal: Journal) -> None:
    os.lseek(journal.fd, 12345, os.SEEK_SET)
    journal.append(record("a", b"1"))
    reader = Journal.open(os.dup(journal.fd), reader=1)
    assert len(reader.sync()) == 2
    reader.close()
    assert os.lseek(journal.fd, 0, os.SEEK_CUR) == 12345


def test_sync_returns_only_the_records_since_the_last_call(journal: Journal) -> None:
    reader = Journal.open(os.dup(journal.fd), reader=1)
    assert len(reader.sync()) == 1
    assert reader.sync() == []
    journal.append(record("a", b"1", 1))
    journal.append(record("a", b"2", 2), record("a", b"3", 3))
    assert [r["value"] for r in reader.sync()] == [1, 2, 3]
    assert reader.sync() == []
    assert journal.sync() == []
    reader.close()


def test_a_record_replaces_the_record_of_the_same_type_and_key(journal: Journal) -> None:
    journal.append(record("a", b"1", "x" * 100))
    large = journal.live_bytes
    journal.append(record("a", b"1", ""))
    assert journal.live_bytes == large - 101
    assert values(journal.live_records()) == {("a", b"1"): ""}
    assert sorted(journal.live_keys()) == [("a", b"1"), ("envelope", b"")]


def test_a_retirement_ends_one_record_or_all_records_of_a_key(journal: Journal) -> None:
    for kind, key in (("a", b"1"), ("b", b"1"), ("c", b"1"), ("a", b"2")):
        journal.append(record(kind, key, kind))
    journal.append({"type": "a", "key": b"1", "retire": "own"})
    assert set(values(journal.live_records())) == {("b", b"1"), ("c", b"1"), ("a", b"2")}
    journal.append({"type": "gone", "key": b"1", "retire": "all"})
    assert set(values(journal.live_records())) == {("a", b"2")}
    journal.append({"type": "a", "key": b"2", "retire": "own"}, {"type": "a", "key": b"2", "retire": "own"})
    assert values(journal.live_records()) == {}
    only_envelope = made()
    assert journal.live_bytes == only_envelope.live_bytes
    only_envelope.close()


def test_a_new_envelope_replaces_the_old_one(journal: Journal) -> None:
    journal.append(record("a", b"1"))
    journal.append_envelope({**ENVELOPE, "release": "0.2.0"})
    compact(journal)
    reader = opened(content(journal))
    assert reader.sync()[0]["release"] == "0.2.0"
    assert reader.envelope["release"] == journal.envelope["release"] == "0.2.0"
    reader.close()


# --- Torn records ---


def test_a_last_record_torn_at_any_byte_is_not_read(journal: Journal) -> None:
    journal.append(record("a", b"1", "kept"))
    before = content(journal)
    start = journal.end
    journal.append(record("a", b"1", "torn" * 10, more=[1, {"x": b"y"}]))
    after = content(journal)
    for cut in range(start, journal.end):
        # The writer died in pwrite: the end was not stored, and the bytes after the cut are old ones.
        for rest in (b"\0", b"\xff", b"\xc1"):
            image = bytearray(before[:start] + after[start:cut] + rest * (len(after) - cut))
            image[: 8 * END + 8] = before[: 8 * END + 8]
            reader = opened(bytes(image))
            assert values(reader.sync()) == {("a", b"1"): "kept"}
            assert reader.end == start
            reader.close()


def test_an_incomplete_record_before_the_end_is_skipped_and_overwritten(journal: Journal) -> None:
    journal.append(record("a", b"1", "kept"))
    start = journal.end
    journal.append(record("a", b"1", "torn" * 10))
    image = content(journal)
    for cut in range(start + 1, journal.end):
        reader = opened(with_word(image, END, cut))
        assert values(reader.sync()) == {("a", b"1"): "kept"}
        reader.become_writer()
        reader.append(record("b", b"2", "new"))
        again = opened(content(reader))
        assert values(again.sync()) == {("a", b"1"): "kept", ("b", b"2"): "new"}
        again.close()
        reader.close()


def test_several_records_are_appended_all_or_none(journal: Journal) -> None:
    before = content(journal)
    with pytest.raises(StateError):
        journal.append(record("a", b"1"), record("a", b"2", 2**64))
    assert content(journal) == before
    assert values(journal.live_records()) == {}


# --- The writer ---


def test_a_reader_must_not_append_before_it_is_the_writer_and_has_read_everything(journal: Journal) -> None:
    successor = Journal.open(os.dup(journal.fd), reader=1)
    with pytest.raises(StateError, match="become_writer"):
        successor.append(record("a", b"1"))
    with pytest.raises(StateError, match="sync"):
        successor.become_writer()
    successor.sync()
    journal.append(record("a", b"1", 1))
    with pytest.raises(StateError, match="sync"):
        successor.become_writer()
    journal.stop_writing()
    with pytest.raises(StateError, match="become_writer"):
        journal.append(record("a", b"2"))
    successor.sync()
    successor.become_writer()
    successor.append(record("a", b"3", 3))
    with pytest.raises(StateError, match="become_writer"):
        journal.append(record("a", b"4"))
    successor.close()


def test_a_thawing_predecessor_reads_the_records_that_its_successor_appended(journal: Journal) -> None:
    journal.append(record("a", b"1", 1))
    journal.hold()
    journal.stop_writing()
    successor = Journal.open(os.dup(journal.fd), reader=1)
    successor.sync()
    successor.become_writer()
    successor.append(record("a", b"1", 2))
    successor.append(record("a", b"2", 3))
    successor.close()
    assert values(journal.sync()) == {("a", b"1"): 2, ("a", b"2"): 3}
    journal.become_writer()
    journal.unhold()
    journal.append(record("a", b"3", 4))
    assert values(journal.live_records()) == {("a", b"1"): 2, ("a", b"2"): 3, ("a", b"3"): 4}


def test_a_reader_behind_a_compaction_gets_a_retirement_for_each_vanished_record(journal: Journal) -> None:
    for key in (b"1", b"2", b"3"):
        journal.append(record("a", key, 0))
    reader = Journal.open(os.dup(journal.fd), reader=1)
    model = values(reader.sync())
    journal.append({"type": "a", "key": b"2", "retire": "own"})
    journal.append(record("a", b"3", 1))
    compact(journal)
    journal.append(record("a", b"4", 1))
    news = reader.sync()
    assert news[0] == {"type": "a", "key": b"2", "retire": "own"}
    assert values([*({"type": k, "key": i, "value": v} for (k, i), v in model.items()), *news]) == {
        ("a", b"1"): 0,
        ("a", b"3"): 1,
        ("a", b"4"): 1,
    }
    reader.become_writer()
    reader.close()


class Overtaken(Journal):
    """A reader whose journal is compacted, and used further, in the middle of some of its reads."""

    writer: Journal
    compactions = 0

    def _check_envelope(self, record: dict[str, Any], *, first: bool) -> None:
        super()._check_envelope(record, first=first)
        if self.compactions and record["key"] == b"1":
            self.compactions -= 1
            compact(self.writer)
            for i in range(20):
                self.writer.append(record_of_padding(i))


def record_of_padding(number: int) -> dict[str, Any]:
    return record("padding", b"%d" % (number % 3), number, padding=bytes(700))


@pytest.mark.parametrize("compactions", [1, 2, 3, 4])
def test_a_reader_that_is_overtaken_by_a_compaction_reads_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, compactions: int
) -> None:
    monkeypatch.setattr("oxidize.state.stream.READ_BYTES", 512)
    for i in range(40):
        journal.append(record("a", b"%d" % (i % 4), i), record_of_padding(i))
    reader = Overtaken.open(os.dup(journal.fd), reader=1)
    reader.writer, reader.compactions = journal, compactions
    found = values(reader.sync())
    assert reader.compactions == 0
    assert found == values(journal.live_records())
    journal.append(record("a", b"5", 5))
    assert values(reader.sync()) == {("a", b"5"): 5}
    reader.close()


def test_a_reader_that_is_overtaken_again_and_again_gives_up(journal: Journal) -> None:
    journal.append(record("a", b"1", 1))
    reader = Overtaken.open(os.dup(journal.fd), reader=1)
    reader.writer, reader.compactions = journal, 100
    with pytest.raises(SnapshotError, match="compacted 5 times while it was read"):
        reader.sync()
    reader.close()


# --- Compaction ---


def test_compaction_keeps_live_records_and_frees_the_memory_of_dead_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PUNCH_BYTES_MAX", 1 << 16)
    journal = made(1 << 20)
    for i in range(100):
        journal.append(record("a", b"%d" % (i % 3), bytes(10_000)))
    journal.append(record("a", b"last", "here"))
    was_due = journal.needs_compaction
    assert was_due
    blocks_before = os.fstat(journal.fd).st_blocks
    steps = 0
    while journal.compact_step(2):
        steps += 1
    assert steps > 10
    assert not journal.needs_compaction
    assert not journal.is_compacting
    assert journal.size == journal.live_bytes < 31_000
    assert os.fstat(journal.fd).st_blocks * 512 < 60_000 < blocks_before * 512
    # Nothing of the old region is left: it held keys.
    assert content(journal)[HEADER_BYTES : HEADER_BYTES + (1 << 20)].count(0) == 1 << 20
    assert sorted(values(journal.live_records())) == [("a", b"0"), ("a", b"1"), ("a", b"2"), ("a", b"last")]
    for i in range(60):
        journal.append(record("a", b"0", bytes([i]) * 10_000))
    compact(journal)
    assert word(content(journal), ACTIVATIONS) == 2
    reader = opened(content(journal))
    assert values(reader.sync())[("a", b"0")] == bytes([59]) * 10_000
    reader.close()
    journal.close()


def test_a_small_or_mostly_live_journal_needs_no_compaction(journal: Journal) -> None:
    for _ in range(100):
        journal.append(record("a", b"1", 0))
    assert not journal.needs_compaction
    large = made(1 << 20)
    for i in range(50):
        large.append(record("a", b"%d" % i, bytes(10_000)))
    assert not large.needs_compaction
    large.close()


def test_records_appended_during_a_compaction_go_to_both_regions(journal: Journal) -> None:
    for i in range(6):
        journal.append(record("a", b"%d" % i, "old"), record("b", b"%d" % i, "old"))
    assert journal.compact_step(3)
    journal.append(record("a", b"0", "new"))  # copied already
    journal.append(record("a", b"5", "new"))  # not copied yet
    journal.append({"type": "gone", "key": b"1", "retire": "all"})
    journal.append({"type": "b", "key": b"4", "retire": "own"})
    journal.append(record("a", b"6", "new"))
    expected = values(journal.live_records())
    before = opened(content(journal))
    assert values(before.sync()) == expected
    before.close()
    compact(journal)
    assert word(content(journal), ACTIVATIONS) == 1
    assert values(journal.live_records()) == expected
    assert expected[("a", b"0")] == expected[("a", b"5")] == expected[("a", b"6")] == "new"
    assert not {("a", b"1"), ("b", b"1"), ("b", b"4")} & set(expected)
    after = opened(content(journal))
    assert values(after.sync()) == expected
    assert after.live_bytes == journal.live_bytes
    after.close()


def test_a_held_journal_changes_sides_only_when_it_is_held_no_longer(journal: Journal) -> None:
    for i in range(6):
        journal.append(record("a", b"%d" % i, i))
    compact(journal)
    activations = word(content(journal), ACTIVATIONS)
    journal.append(record("a", b"0", "dead"))
    journal.append(record("a", b"0", 0))
    assert journal.compact_step(2)
    journal.hold()
    for _ in range(10):
        journal.compact_step(2)
    assert not journal.compact_step(2), "the rest has to wait"
    journal.append(record("a", b"9", 9))
    assert word(content(journal), ACTIVATIONS) == activations
    journal.unhold()
    assert word(content(journal), ACTIVATIONS) == activations + 1
    assert values(journal.live_records()) == {("a", b"%d" % i): i for i in (0, 1, 2, 3, 4, 5, 9)}
    assert journal.size == journal.live_bytes


def test_holds_in_a_row_do_not_keep_a_compaction_from_its_end(journal: Journal) -> None:
    for i in range(100):
        journal.append(record("a", b"%d" % (i % 20), i))
    expected = values(journal.live_records())
    for _ in range(20):  # a successor that fails, again and again: one step falls between two of its offers
        journal.compact_step(1)
        journal.hold()
        journal.compact_step(1)
        journal.unhold()
    assert word(content(journal), ACTIVATIONS) >= 1
    assert values(journal.live_records()) == expected


def test_a_reader_compacts_nothing(journal: Journal) -> None:
    reader = Journal.open(os.dup(journal.fd), reader=1)
    reader.sync()
    assert not reader.compact_step(10)
    reader.close()


class FullDisk(Journal):
    """A journal whose region 1 cannot be written."""

    def _write(self, offset: int, data: bytes) -> None:
        if offset >= HEADER_BYTES + REGION_BYTES:
            raise StorageError("no space left")
        super()._write(offset, data)


def test_a_failed_compaction_leaves_the_journal_unchanged() -> None:
    journal = FullDisk.create(ENVELOPE, reader=1, region_bytes=REGION_BYTES)
    journal.append(record("a", b"1", 1))
    with pytest.raises(StorageError, match="no space"):
        journal.compact_step(10)
    journal.append(record("a", b"2", 2))
    assert values(journal.live_records()) == {("a", b"1"): 1, ("a", b"2"): 2}
    journal.close()


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
