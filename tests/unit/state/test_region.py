"""The index of a region's live records."""

from oxidize.state.region import LiveRecords, Place, Region


def test_the_place_of_a_record_replaces_the_one_before_and_says_how_long_that_was() -> None:
    live = LiveRecords()
    assert live.put(b"k", "a", 1 << 40, 7) == 0
    assert live.put(b"k", "b", 20, 8) == 0
    assert live.put(b"k", "a", 30, 9) == 7
    assert dict(live.items(b"k")) == {"a": Place(30, 9), "b": Place(20, 8)}
    assert live.find(b"k", "c") is None
    assert live.find(b"other", "a") is None
    assert list(live) == [b"k"]


def test_a_key_without_records_is_forgotten() -> None:
    live = LiveRecords()
    live.put(b"k", "a", 1, 7)
    live.put(b"k", "b", 2, 8)
    assert live.remove(b"k", ["a", "never there"]) == 7
    assert dict(live.items(b"k")) == {"b": Place(2, 8)}
    assert live.remove(b"k", ["b"]) == 8
    assert len(live) == 0
    assert live.remove(b"k", ["b"]) == 0


def test_an_index_out_of_use_is_dropped_in_steps() -> None:
    live = LiveRecords()
    for number in range(5):
        live.put(bytes([number]), "a", number, 1)
    live.drop(3)
    assert len(live) == 2
    live.drop(3)
    assert len(live) == 0


def test_a_record_that_ends_all_of_a_key_takes_its_own_kind_with_it() -> None:
    region = Region(0, 4096, 1 << 20)
    region.note({"type": "peer", "key": b"k"}, 4096, 10)
    region.note({"type": "endpoint", "key": b"k"}, 4106, 20)
    region.note({"type": "peer", "key": b"other"}, 4126, 5)
    assert region.live_bytes == 35
    region.note({"type": "removed", "key": b"k", "retire": "all"}, 4131, 30)
    assert region.live_bytes == 5
    assert list(region.live) == [b"other"]
