"""The journal: whole records are read, torn ones are not, and one process writes at a time."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from oxidize.errors import SnapshotError, StateError
from oxidize.state.journal import Journal
from tests.support.journals import END, ENVELOPE, compact, content, made, opened, record, values, with_word

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

    def _read(self, activations: int, content_of: Callable[[Any], Any], found: list[Any]) -> Any:
        def overtaken(record: dict[str, Any]) -> Any:
            if self.compactions and record["key"] == b"1":
                self.compactions -= 1
                compact(self.writer)
                for i in range(20):
                    self.writer.append(record_of_padding(i))
            return content_of(record)

        return super()._read(activations, overtaken, found)


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


def test_a_reader_that_is_overtaken_by_a_compaction_misses_no_retirement(journal: Journal) -> None:
    journal.append(record("a", b"1", 1), record("a", b"2", 2), record("a", b"3", 3))
    reader = Overtaken.open(os.dup(journal.fd), reader=1)
    model = values(reader.sync())
    journal.append({"type": "a", "key": b"2", "retire": "own"}, {"type": "gone", "key": b"3", "retire": "all"})
    journal.append(record("a", b"1", 4))
    reader.writer, reader.compactions = journal, 1
    news = reader.sync()
    read = values([*({"type": kind, "key": key, "value": value} for (kind, key), value in model.items()), *news])
    assert read == values(journal.live_records())
    assert reader.compactions == 0
    reader.close()


def test_a_reader_that_is_overtaken_again_and_again_gives_up(journal: Journal) -> None:
    journal.append(record("a", b"1", 1))
    reader = Overtaken.open(os.dup(journal.fd), reader=1)
    reader.writer, reader.compactions = journal, 100
    with pytest.raises(SnapshotError, match="compacted 5 times while it was read"):
        reader.sync()
    reader.close()
