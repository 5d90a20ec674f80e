"""Records that are decoded in short are decoded as every other record, or left to that."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from oxidize.errors import SnapshotError
from oxidize.protocol.changes import Change, KeypairState, PeerEndpoint, PeerKeypairs, PeerSeen, PeerTimestamp
from oxidize.protocol.endpoint import Endpoint
from oxidize.state.plain_records import plain_change
from oxidize.state.records import Unknown, decode_at_length, encode_change
from oxidize.state.stream import Record

PEER, KEY = b"P" * 32, b"k" * 32
STATE = KeypairState(1, 2, KEY, KEY, 3.5, True, 256)
CHANGES: tuple[Change, ...] = (
    PeerSeen(PEER, 256),
    PeerKeypairs(PEER, None, STATE, None, 1.5),
    PeerKeypairs(PEER, STATE, STATE, STATE, 1.5),
    PeerEndpoint(PEER, Endpoint(b"\x7f\0\0\1", 9)),
    PeerEndpoint(PEER, Endpoint(b"\x7f" * 16, 9, 2, b"\x7f" * 16, 3)),
    PeerTimestamp(PEER, b"t" * 12, 2.5),
)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 1 << 16, 1 << 32, 1 << 64, 0.0, -0.5, float("inf"), float("nan"), b"", b"\x7f\0\0\1",
     KEY, b"t" * 12, b"a" * 16, "text", [], {}]
)  # fmt: skip


def decoded_at_length(record: Record) -> object:
    """Return the change and the unknown fields, or the error."""
    unknown = Unknown()
    try:
        return decode_at_length(record, unknown), unknown.fields, unknown.types
    except SnapshotError as error:
        return str(error)


def maps_of(value: Any) -> list[dict[str, Any]]:
    """Return a record and the maps in it."""
    return [value, *(inner for each in value.values() if isinstance(each, dict) for inner in maps_of(each))]


@given(st.data())
def test_a_record_with_any_mistake_is_decoded_in_short_as_at_length_or_not_at_all(data: st.DataObject) -> None:
    record = copy.deepcopy(encode_change(data.draw(st.sampled_from(CHANGES))))
    for _ in range(data.draw(st.integers(0, 2))):
        fields = data.draw(st.sampled_from(maps_of(record)))
        name = data.draw(st.sampled_from([*sorted(set(fields) - {"type"}), "unknown", "older", "retire"]))
        action = data.draw(st.sampled_from(["set", "remove"]))
        if action == "remove" and name != "key":
            fields.pop(name, None)
        elif name not in {"key", "retire"}:
            fields[name] = data.draw(ODD)
        elif name == "retire":
            fields[name] = data.draw(st.sampled_from(["own", "all"]))
        else:
            fields[name] = data.draw(st.sampled_from([b"", b"short", PEER]))
    short = plain_change(record)
    assert short is None or (short, 0, 0) == decoded_at_length(record)


def test_the_usual_records_are_decoded_in_short() -> None:
    for change in CHANGES:
        assert plain_change(encode_change(change)) == change
