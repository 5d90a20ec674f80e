"""Records as bytes from outside: which are read, which are skipped, and which are refused with their offset."""

import os
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.errors import SnapshotError, StateError
from oxidize.state import stream
from oxidize.state.stream import ARRAY_ENTRIES_MAX, MAP_ENTRIES_MAX, STRING_BYTES_MAX, cut, encode, fold, scan

GOOD = msgpack.packb({"type": "a", "key": b"1"})


@pytest.fixture(scope="module")
def fd() -> Iterator[int]:
    fd = os.memfd_create("stream", os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


def scanned(fd: int, data: bytes, start: int = 0) -> list[tuple[int, int, dict[str, Any]]]:
    os.pwrite(fd, data, start)
    return list(scan(fd, start, start + len(data)))


def test_scanned_offsets_and_lengths_are_those_in_the_file(fd: int) -> None:
    records = [{"type": "a", "key": b"1", "value": value} for value in ("", [1.5, None], {"x": True}, 2**64 - 1)]
    packed = [msgpack.packb(record) for record in records]
    offset, expected = 100, []
    for record, data in zip(records, packed, strict=True):
        expected.append((offset, len(data), record))
        offset += len(data)
    assert scanned(fd, b"".join(packed), 100) == expected


def test_a_record_may_span_two_reads(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = GOOD * 50 + msgpack.packb({"type": "b", "key": bytes(200)})
    expected = scanned(fd, data)
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(stream, "READ_BYTES", size)
        assert scanned(fd, data) == expected
        assert scanned(fd, data[:-1]) == expected[:-1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"\xc1", "cannot be read"),
        (b"\x00", "of the type int"),
        (b"\x90", "of the type list"),
        (b"\x80", "no type"),
        (msgpack.packb({"type": "a"}), "no type"),
        (msgpack.packb({"type": b"a", "key": b""}), "no type"),
        (msgpack.packb({"type": "a", "key": "1"}), "no type"),
        (b"\x82\xa1x\x01\xa1x\x02", "a field twice"),
        (b"\x81\xa1x\x82\xa1y\x01\xa1y\x01", "a field twice"),
        (b"\x81\xc4\x01x\x01", "field name of the type bytes"),
        (b"\x81\x01\x01", "int is not allowed"),
        (b"\x81\xa2\xff\xfe\x01", "utf-8"),
        (b"\x81\xa1x\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\x81\xa1x\xdf\xff\xff\xff\xff", "max_map_len"),
        (msgpack.packb([0] * (ARRAY_ENTRIES_MAX + 1)), "max_array_len"),
        (msgpack.packb({str(i): i for i in range(MAP_ENTRIES_MAX + 1)}), "max_map_len"),
        (b"\x81\xa1x\xd6\xff\x00\x00\x00\x00", "max_ext_len"),
        (b"\x91" * 5000, "cannot be read"),
        (msgpack.packb({"type": "a", "key": b"1", "retire": "later"}), "retires 'later'"),
        (msgpack.packb({"type": "a", "key": b"1", "retire": [1]}), r"retires \[1\]"),
        (msgpack.packb({"type": "a", "key": b"", "retire": "all"}), "retires the envelope"),
        (msgpack.packb({"type": "envelope", "key": b"", "retire": "own"}), "retires the envelope"),
        (msgpack.packb({"type": "envelope", "key": b"x"}), "envelope with a key"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_with_its_offset(fd: int, bad: bytes, message: str) -> None:
    with pytest.raises(SnapshotError, match=f"record at offset {len(GOOD)} .*{message}.*start without it"):
        scanned(fd, GOOD + bad)


def test_a_string_that_only_release_0_1_0_would_write_is_read(fd: int) -> None:
    long = {"type": "takeover", "key": b"1", "entry": {"reason": "\u00fc" * 4096}}
    data = msgpack.packb(long)
    assert scanned(fd, data) == [(0, len(data), long)]
    with pytest.raises(StateError, match="max_str_len"):
        encode(long)


def nested(depth: int, *, map_too: bool) -> object:
    value: object = None
    for level in range(depth):
        value = {"x": value} if map_too and level % 2 else [value]
    return value


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner),
)
sizes = st.sampled_from([0, 1, 31, 255, 256, 257, 1024, 1025, 4095, 4096, 4097, 32_767, 32_768, 32_769])
large = st.one_of(
    st.builds(lambda size, character: character * size, sizes, st.characters()),
    st.builds(lambda size: [None] * size, sizes),
    st.builds(lambda size: {str(number): number for number in range(size)}, sizes),
    st.builds(lambda size, map_too: nested(min(size, 1025), map_too=map_too), sizes, st.booleans()),
    st.builds(lambda size, offset: bytes(size * 512 + offset), sizes, st.integers(0, 3)),
)
fields = st.dictionaries(st.text(max_size=5) | large.filter(lambda key: isinstance(key, str)), anything | large)
heads = st.fixed_dictionaries({"type": st.text(max_size=3), "key": st.binary(max_size=3)})
retired = st.sampled_from([{}, {"retire": "own"}, {"retire": "all"}, {"retire": "never"}, {"retire": None}])


@given(st.builds(lambda head, retire, more: {**more, **head, **retire}, heads, retired, fields))
def test_whatever_the_writer_accepts_the_reader_reads(fd: int, record: dict[str, Any]) -> None:
    try:
        data = encode(record)
    except StateError:
        return
    ((offset, length, found),) = scanned(fd, data)
    assert (offset, length) == (0, len(data))
    assert encode(found) == data


@pytest.mark.parametrize("character", ["x", "\u00fc", "\u20ac", "\U0001f512"])
def test_a_long_text_is_cut_between_two_characters_to_what_a_record_takes(character: str) -> None:
    for length in range(STRING_BYTES_MAX // 4 - 1, STRING_BYTES_MAX + 2):
        short = cut(character * length)
        assert set(short) == {character}
        assert len(short) == min(length, STRING_BYTES_MAX // len(character.encode()))
        encode({"type": "a", "key": b"", "text": short})
    assert cut("lone \ud800") == "lone ?"


def test_a_file_that_ends_before_its_records_is_refused(fd: int) -> None:
    size = os.fstat(fd).st_size
    with pytest.raises(SnapshotError, match=f"the file ends at {size}, expected records to {size + 5}"):
        list(scan(fd, size, size + 5))


@given(st.binary(max_size=200), st.integers(0, 40))
def test_random_bytes_raise_only_snapshot_errors(fd: int, data: bytes, offset: int) -> None:
    packed = GOOD * 3
    mixed = packed[:offset] + data + packed[offset:]
    try:
        records = scanned(fd, mixed)
    except SnapshotError:
        return
    assert sum(length for _, length, _ in records) <= len(mixed)
    assert all(type(record["type"]) is str and type(record["key"]) is bytes for _, _, record in records)


def test_a_fold_keeps_the_last_record_of_each_type_and_key_unless_retired() -> None:
    def record(kind: str, key: bytes, value: int, **more: str) -> dict[str, Any]:
        return {"type": kind, "key": key, "value": value, **more}

    kept = [record("a", b"1", 2), record("b", b"3", 6), record("a", b"2", 8)]
    records = [
        record("a", b"1", 1),
        record("b", b"1", 1),
        kept[0],
        record("b", b"1", 0, retire="own"),
        record("c", b"9", 0, retire="own"),
        record("a", b"2", 3),
        record("b", b"2", 4),
        kept[1],
        record("gone", b"2", 0, retire="all"),
        record("gone", b"8", 0, retire="all"),
        kept[2],
    ]
    assert sorted(fold(records), key=lambda r: r["value"]) == kept
