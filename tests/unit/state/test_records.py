"""The schema of the journal: encoding and decoding of changes, also of those of other releases."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.errors import SnapshotError
from oxidize.protocol.changes import (
    Change,
    CookieSecret,
    KeypairState,
    PeerCookie,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerTimestamp,
)
from oxidize.protocol.endpoint import Endpoint
from oxidize.state.records import Unknown, decode_change, encode_change

PEER = bytes(range(32))
KEYPAIR = KeypairState(0xFFFFFFFF, 0, b"s" * 32, b"r" * 32, 12.5, True, 320)
CHANGES: list[Change] = [
    PeerSeen(PEER, 256),
    PeerKeypairs(PEER, None, KEYPAIR, None, 1.7e9),
    PeerKeypairs(PEER, None, None, None, 0.0),
    PeerEndpoint(PEER, Endpoint(b"\xc0\0\2\1", 51820, 0, b"\xc0\0\2\2", 3)),
    PeerEndpoint(PEER, Endpoint(b"\xfe\x80" + bytes(14), 1, 4)),
    PeerTimestamp(PEER, bytes(12), 3.25),
    PeerHandshake(PEER, 9, b"e" * 32, b"c" * 32, b"h" * 32, b"m" * 16, 1.0, 2.0, 7.0),
    PeerHandshake(PEER, 0, b"", b"", b"", b"", 0.0, 0.0, 0.0),
    PeerCookie(PEER, b"k" * 16, 5.0),
    PeerStaged(PEER, (b"one", b"", b"x" * 65535)),
    PeerStaged(PEER, ()),
    PeerRemoved(PEER),
    CookieSecret(b"z" * 32, 0.0),
]


def through_msgpack(change: Change) -> dict[str, Any]:
    record: dict[str, Any] = msgpack.unpackb(msgpack.packb(encode_change(change)))
    return record


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_every_kind_of_change_survives_encoding_and_decoding(change: Change) -> None:
    unknown = Unknown()
    assert decode_change(through_msgpack(change), unknown) == change
    assert (unknown.fields, unknown.types) == (0, 0)


seconds = st.floats(0, 1e12)
u32 = st.integers(0, 2**32 - 1)
keys = st.binary(min_size=32, max_size=32)
indices = st.integers(1, 2**32 - 1)  # 0 names no session of this side
keypairs = st.none() | st.builds(
    KeypairState, indices, u32, keys, keys, seconds, st.booleans(), st.integers(0, 2**64 - 1)
)
addresses = st.sampled_from([4, 16]).flatmap(
    lambda size: st.builds(
        Endpoint,
        st.binary(min_size=size, max_size=size),
        st.integers(0, 65535),
        u32,
        st.just(b"") | st.binary(min_size=size, max_size=size),
        u32,
    )
)
changes = st.one_of(
    st.builds(PeerSeen, keys, st.integers(0, 2**64 - 1)),
    st.builds(PeerKeypairs, keys, keypairs, keypairs, keypairs, seconds, keypairs),
    st.builds(PeerEndpoint, keys, addresses),
    st.builds(PeerTimestamp, keys, st.binary(min_size=12, max_size=12), seconds),
    st.builds(PeerStaged, keys, st.lists(st.binary(max_size=100), max_size=5).map(tuple), st.just(0)),
    st.builds(CookieSecret, st.binary(min_size=1, max_size=64), seconds),
)


@given(changes)
def test_any_change_survives_encoding_and_decoding(change: Change) -> None:
    assert decode_change(through_msgpack(change), Unknown()) == change


def test_changes_that_end_other_records_are_retirements() -> None:
    assert encode_change(PeerRemoved(PEER)) == {"type": "removed", "key": PEER, "retire": "all"}
    assert encode_change(CHANGES[7]) == {"type": "handshake", "key": PEER, "retire": "own"}
    assert encode_change(PeerStaged(PEER, ())) == {"type": "staged", "key": PEER, "retire": "own"}
    assert not any("retire" in encode_change(CHANGES[i]) for i in (0, 1, 2, 3, 5, 6, 8, 9, 12))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("peer", PeerRemoved(PEER)),
        ("keypairs", PeerKeypairs(PEER, None, None, None, 0.0)),
        ("endpoint", None),
        ("timestamp", None),
        ("cookie", None),
    ],
)
def test_a_retirement_decodes_to_its_change_or_to_none(kind: str, expected: Change | None) -> None:
    unknown = Unknown()
    assert decode_change({"type": kind, "key": PEER, "retire": "own"}, unknown) == expected
    assert (unknown.fields, unknown.types) == (0, 0)


@pytest.mark.parametrize("record", [{"type": "route", "key": b"x"}, {"type": "route", "key": b"", "retire": "own"}])
def test_an_unknown_type_is_skipped_and_counted(record: dict[str, Any]) -> None:
    unknown = Unknown()
    assert decode_change(record, unknown) is None
    assert (unknown.fields, unknown.types) == (0, 1)


def test_unknown_fields_are_skipped_and_counted_at_every_depth() -> None:
    unknown = Unknown()
    record = through_msgpack(CHANGES[1])
    record["post_quantum"] = {"key": b"q", "list": [1, None]}
    record["current"]["cipher"] = "AEGIS"
    assert decode_change(record, unknown) == CHANGES[1]
    record = through_msgpack(CHANGES[3])
    record["endpoint"]["vrf"] = 2
    assert decode_change(record, unknown) == CHANGES[3]
    assert (unknown.fields, unknown.types) == (3, 0)


def test_missing_fields_take_their_defaults() -> None:
    record = {"type": "endpoint", "key": PEER, "endpoint": {"address": b"\x7f\0\0\1", "port": 9}}
    assert decode_change(record, Unknown()) == PeerEndpoint(PEER, Endpoint(b"\x7f\0\0\1", 9))
    assert decode_change({"type": "keypairs", "key": PEER}, Unknown()) == PeerKeypairs(PEER, None, None, None, 0.0)


def test_whole_seconds_may_be_written_as_integers() -> None:
    change = decode_change({"type": "cookie", "key": PEER, "cookie": b"k" * 16, "received_at": 5}, Unknown())
    assert isinstance(change, PeerCookie)
    assert type(change.received_at) is float


def damaged() -> list[tuple[dict[str, Any], str]]:
    keypair = encode_change(CHANGES[1])["current"]
    endpoint = {"address": b"\x7f\0\0\1", "port": 9}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"type": "peer"}, "slot is missing"),
        ({"type": "peer", "slot": -1}, "slot is -1"),
        ({"type": "peer", "slot": True}, "slot is of the type bool"),
        ({"type": "peer", "slot": 1.0}, "slot is of the type float"),
        ({"type": "peer", "slot": "256"}, "slot is of the type str"),
        ({"type": "peer", "slot": 256, "key": PEER[1:]}, "key has 31 bytes"),
        ({"type": "cookie_secret", "secret": b"s", "created_at": 0.0}, "key has 32 bytes"),
        ({"type": "cookie_secret", "key": b"", "secret": b"", "created_at": 0.0}, "secret has 0 bytes"),
        ({"type": "cookie", "cookie": "k" * 16, "received_at": 0.0}, "cookie is of the type str"),
        ({"type": "cookie", "cookie": b"k" * 16, "received_at": float("nan")}, "received_at is nan"),
        ({"type": "cookie", "cookie": b"k" * 16, "received_at": float("inf")}, "received_at is inf"),
        ({"type": "cookie", "cookie": b"k" * 16, "received_at": -0.5}, "received_at is -0.5"),
        ({"type": "cookie", "cookie": b"k" * 16, "received_at": False}, "received_at is of the type bool"),
        ({"type": "cookie", "cookie": b"k" * 16}, "received_at is missing"),
        ({"type": "keypairs", "current": []}, "current is of the type list"),
        ({"type": "keypairs", "current": {**keypair, "send_key": b"s" * 31}}, "current.send_key has 31 bytes"),
        ({"type": "keypairs", "current": {**keypair, "local_index": 2**32}}, "current.local_index is 4294967296"),
        ({"type": "keypairs", "current": {**keypair, "is_initiator": 1}}, "current.is_initiator is of the type int"),
        ({"type": "endpoint", "endpoint": None}, "endpoint is of the type NoneType"),
        ({"type": "endpoint", "endpoint": {**endpoint, "address": b"12345"}}, "address has 5 bytes"),
        ({"type": "endpoint", "endpoint": {**endpoint, "port": 65536}}, "port is 65536"),
        ({"type": "endpoint", "endpoint": {**endpoint, "local_address": bytes(16)}}, "local_address has 16 bytes"),
        ({"type": "staged", "packets": b"packet"}, "packets is of the type bytes"),
        ({"type": "staged", "packets": [b"packet", "text"]}, "packets holds a str"),
        ({"type": "staged", "packets": [bytes(65537)]}, "packets holds a bytes"),
        ({**encode_change(CHANGES[6]), "local_index": 0}, "local_index"),
    ]
    return [({"key": PEER, **record}, text) for record, text in cases]


@pytest.mark.parametrize(("record", "text"), damaged(), ids=[text for _, text in damaged()])
def test_a_field_of_another_type_or_range_is_refused_by_name(record: dict[str, Any], text: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        decode_change(record, Unknown())
    message = str(caught.value)
    assert text in message
    assert f"record '{record['type']}'" in message
    assert "expected" in message
    assert "start without it" in message


def test_no_error_shows_key_material() -> None:
    record = encode_change(CHANGES[1])
    record["current"]["send_key"] = "SECRETSECRET"
    with pytest.raises(SnapshotError) as caught:
        decode_change(record, Unknown())
    assert "SECRET" not in str(caught.value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_a_damaged_record_raises_only_snapshot_errors(data: st.DataObject) -> None:
    record = through_msgpack(data.draw(st.sampled_from(CHANGES)))
    field = data.draw(st.sampled_from(sorted(set(record) - {"type", "key"}) or ["slot"]))
    record[field] = data.draw(json_like)
    with contextlib.suppress(SnapshotError):
        decode_change(record, Unknown())


def test_a_keypair_with_the_index_that_means_none_is_refused() -> None:
    keypair = KeypairState(0, 2, bytes(32), bytes(32), 1.0, True, 256)
    record = encode_change(PeerKeypairs(PEER, None, keypair, None, 0.0))
    with pytest.raises(SnapshotError, match=r"local_index is 0, expected a number from 1"):
        decode_change(record, Unknown())
