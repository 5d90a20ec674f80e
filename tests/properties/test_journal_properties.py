"""The journal against a dictionary: wherever its writer is killed, it reads as before or as after.

SIGKILL may come at every store of a word, and before, within and after every pwrite. At each of these instants the
memory file is copied, and the copy is read as a successor would read it.
"""

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.errors import StorageError
from oxidize.state.journal import LIVE_FRACTION_MAX, Journal

REGION_BYTES = 8192
ENVELOPE = {"format": 1, "min_reader": 1, "release": "0.1.0"}
Model = dict[tuple[str, bytes], Any]


class Recorded(Journal):
    """A journal that keeps an image of its file for every instant at which its process could have been killed."""

    def __init__(self, fd: int, region_bytes: int, *, reader: int) -> None:
        super().__init__(fd, region_bytes, reader=reader)
        self.images: set[bytes] = set()

    def capture(self) -> None:
        self.images.add(os.pread(self.fd, os.fstat(self.fd).st_size, 0))

    def _write(self, offset: int, data: bytes) -> None:
        for cut in (1, len(data) // 2, len(data) - 1):
            super()._write(offset, data[:cut])
            self.capture()
        super()._write(offset, data)
        self.capture()

    def _store(self, word: int, value: int) -> None:
        super()._store(word, value)
        self.capture()


def applied(model: Model, records: list[dict[str, Any]]) -> Model:
    """Fold records into a model, by the rule that `state.stream` states."""
    model = dict(model)
    for record in records:
        kind, key = record["type"], record["key"]
        if kind == "envelope":
            continue
        if record.get("retire") == "all":
            model = {name: value for name, value in model.items() if name[1] != key}
        elif record.get("retire") == "own":
            model.pop((kind, key), None)
        else:
            model[kind, key] = record["value"]
    return model


def read(image: bytes) -> tuple[Model, int]:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.pwrite(fd, image, 0)
    journal = Journal.open(fd, reader=1)
    model = applied({}, journal.sync())
    assert applied({}, journal.live_records()) == model
    assert len(journal.live_keys()) == len(model) + 1
    live_bytes = journal.live_bytes
    journal.close()
    return model, live_bytes


kinds = st.sampled_from(["a", "b", "c"])
keys = st.sampled_from([b"1", b"2", b"3", b"4"])
values = st.integers(0, 255) | st.binary(max_size=300)
puts = st.builds(lambda kind, key, value: {"type": kind, "key": key, "value": value}, kinds, keys, values)
retirements = st.builds(
    lambda kind, key, retire: {"type": kind, "key": key, "retire": retire}, kinds, keys, st.sampled_from(["own", "all"])
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(puts | retirements, min_size=1, max_size=3)),
        st.tuples(st.just("append"), st.lists(puts, min_size=1, max_size=1)),
        st.tuples(st.just("compact"), st.integers(1, 3)),
        st.tuples(st.just("compact"), st.integers(1, 3)),
        st.tuples(st.just("hand over"), st.none()),
        st.tuples(st.just("thaw"), st.lists(puts, max_size=2)),
        st.tuples(st.just("hold"), st.none()),
        st.tuples(st.just("unhold"), st.none()),
        st.tuples(st.just("observe"), st.none()),
    ),
    max_size=25,
)


def perform(journal: Recorded, observer: Journal, seen: Model, operation: tuple[str, Any], model: Model) -> Model:
    """Apply one operation to the journal and return the new model; `seen` follows what the observer reads."""
    name, argument = operation
    if name == "append":
        try:
            journal.append(*argument)
        except StorageError:
            assert journal.live_bytes + 320 * len(argument) > REGION_BYTES * LIVE_FRACTION_MAX  # it was full
            return model
        return applied(model, argument)
    if name == "compact":
        journal.compact_step(argument)
    elif name == "hold":
        journal.hold()
    elif name == "unhold":
        journal.unhold()
    elif name == "observe":
        news = applied(seen, observer.sync())
        seen.clear()
        seen.update(news)
        assert seen == model
    return model


def hand_over(predecessor: Recorded) -> Recorded:
    successor = Recorded.open(os.dup(predecessor.fd), reader=1)
    successor.sync()
    predecessor.stop_writing()
    assert successor.sync() == []
    successor.become_writer()
    predecessor.close()
    return successor


def thaw(predecessor: Recorded, records: list[dict[str, Any]], model: Model) -> Model:
    """Let a successor own the journal for a while, compact it, and die."""
    predecessor.stop_writing()
    successor = Journal.open(os.dup(predecessor.fd), reader=1)
    known = applied({}, successor.sync())
    successor.become_writer()
    if records and successor.size + 320 * len(records) < REGION_BYTES:
        successor.append(*records)
        model = applied(model, records)
    for _ in range(len(records)):
        successor.compact_step(2)
    successor.close()
    assert applied(known, predecessor.sync()) == model
    predecessor.become_writer()
    return model


@settings(max_examples=200)
@given(operations)
def test_a_killed_writer_leaves_the_state_before_or_after_its_operation(script: list[tuple[str, Any]]) -> None:
    journal = Recorded.create(ENVELOPE, reader=1, region_bytes=REGION_BYTES)
    observer = Journal.open(os.dup(journal.fd), reader=1)
    model: Model = {}
    seen: Model = {}
    for operation in script:
        before = model
        journal.images.clear()
        if operation[0] == "hand over":
            journal = hand_over(journal)
        elif operation[0] == "thaw":
            model = before = thaw(journal, operation[1], before)
        model = perform(journal, observer, seen, operation, before)
        journal.capture()
        for image in journal.images:
            assert read(image)[0] in (before, model)
    after, live_bytes = read(os.pread(journal.fd, os.fstat(journal.fd).st_size, 0))
    assert after == model
    assert live_bytes == journal.live_bytes <= journal.size
    assert applied(seen, observer.sync()) == model
    observer.close()
    journal.close()


@settings(max_examples=100)
@given(st.lists(puts | retirements, max_size=30), st.integers(1, 5))
def test_a_finished_compaction_leaves_only_live_records(records: list[dict[str, Any]], keys_max: int) -> None:
    journal = Journal.create(ENVELOPE, reader=1, region_bytes=REGION_BYTES * 4)
    for record in records:
        journal.append(record)
    live_bytes = journal.live_bytes
    while journal.compact_step(keys_max):
        pass
    assert journal.size == journal.live_bytes == live_bytes
    assert applied({}, journal.live_records()) == applied({}, records)
    journal.close()
