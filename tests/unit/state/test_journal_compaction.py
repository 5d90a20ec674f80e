"""Compaction: live records are kept, and the memory of dead ones is freed."""

import os
import sys

import pytest

from oxidize.errors import StorageError
from oxidize.state import journal as journal_module
from oxidize.state.journal import FREE_KEYS_MAX, HEADER_BYTES, Journal
from tests.support.journals import (
    ACTIVATIONS,
    ENVELOPE,
    REGION_BYTES,
    compact,
    content,
    made,
    opened,
    record,
    values,
    word,
)


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


def test_the_keys_of_an_abandoned_compaction_are_freed_in_steps() -> None:
    journal = made(1 << 20)
    count = 2 * FREE_KEYS_MAX
    for i in range(count):
        journal.append(record("a", b"%d" % i, "live"))
    journal.compact_step(2)
    last = next(key for key in journal._active.live if key == b"%d" % (count - 1))
    referred = sys.getrefcount(last)
    journal.stop_writing()
    assert sys.getrefcount(last) == referred, "the owner that freezes has freed nothing"
    journal.become_writer()
    steps = 0
    while journal.compact_step(2):
        steps += 1
    assert sys.getrefcount(last) == referred - 1
    assert steps >= 1
    journal.close()
