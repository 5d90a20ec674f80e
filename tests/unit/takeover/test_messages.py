"""Round trips of every message of a takeover, and bytes that are no message."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.errors import DecodeError, StateError
from oxidize.state.stream import STRING_BYTES_MAX
from oxidize.takeover import messages
from oxidize.takeover.messages import (
    DEPTH_MAX,
    FDS_MAX,
    MESSAGE_BYTES_MAX,
    REASON_BYTES_MAX,
    Busy,
    CommitMessage,
    Failed,
    FdEntry,
    Hello,
    MoreFds,
    OfferMessage,
    Query,
    Ready,
    Refused,
    Reply,
    Taken,
    Withdrawn,
    decode,
    encode,
)

LATER_FIELDS = ("network_namespace", "time_namespace", "abilities")  # which 0.1.0 does not send
HELLO = Hello(
    "0.1.0",
    4711,
    (1, 2),
    network_namespace="net:[4026531840]",
    time_namespace="time:[4026531834]",
    abilities=("reads", "writes"),
)
OFFER = OfferMessage(
    generation=3,
    release="0.1.0",
    fds=(FdEntry("udp", "udp", {"gro": True, "buffer_bytes": 8 << 20}), FdEntry("journal", "memfd", {})),
    state={"watchdog_secs": 10.0, "nested": {"list": [1, None, b"raw"]}},
)
EVERY: list[messages.Message] = [
    HELLO,
    OFFER,
    MoreFds(),
    Ready({"restored": 20, "refused": [{"peer": "a", "why": "expired"}]}),
    CommitMessage(123.25, {"journal_bytes": 1 << 40}),
    Taken({"blackout_ms": 1.5}),
    Busy("b"),
    Refused("r"),
    Withdrawn("w"),
    Failed("Fehler: größer"),
    Query("status"),
    Reply((FdEntry("journal", "memfd", {}), FdEntry("arena", "memfd", {"read_only": True}))),
]


def test_every_kind_of_message_is_tested_here() -> None:
    assert {type(each) for each in EVERY} == set(messages.Message.__args__)


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_survives_a_round_trip(message: messages.Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_unknown_fields_of_a_newer_release_are_ignored(message: messages.Message) -> None:
    wire = msgpack.unpackb(encode(message))
    assert decode(msgpack.packb({**wire, "invented_later": [1, 2, {"x": b"y"}]})) == message


@pytest.mark.parametrize("message", [HELLO, OFFER, EVERY[3], EVERY[4], EVERY[5], EVERY[6], EVERY[10]], ids=repr)
def test_a_missing_or_mistyped_field_is_named(message: messages.Message) -> None:
    wire = msgpack.unpackb(encode(message))
    for name in message._fields:
        with pytest.raises(DecodeError, match=name):
            decode(msgpack.packb({**wire, name: b"\x00"}))
        if name not in LATER_FIELDS:
            with pytest.raises(DecodeError, match=name):
                decode(msgpack.packb({key: value for key, value in wire.items() if key != name}))


def test_a_hello_of_release_0_1_0_names_no_namespaces_and_no_abilities() -> None:
    wire = msgpack.unpackb(encode(HELLO))
    older = decode(msgpack.packb({key: value for key, value in wire.items() if key not in LATER_FIELDS}))
    assert older == HELLO._replace(network_namespace="", time_namespace="", abilities=())


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (encode(HELLO)[:-1], "no msgpack"),
        (encode(HELLO) + b"\x00", "no msgpack"),
        (msgpack.packb([1]), "a list; expected a map"),
        (msgpack.packb(None), "expected a map"),
        (msgpack.packb({1: 2}), "no msgpack map"),
        (msgpack.packb({b"type": "reply"}), "a key is b'type'"),
        (msgpack.packb({}), "type None"),
        (msgpack.packb({"type": ["reply"]}), "of type"),
        (msgpack.packb({"type": "surprise"}), "'surprise'"),
        (msgpack.packb({"type": "reply", "x": msgpack.ExtType(4, b"")}), "ExtType"),
        (msgpack.packb({"type": "reply", "x": msgpack.Timestamp(1)}), "Timestamp"),
        (b"\x81\xa4type\xa2\xff\xfe", "no msgpack"),
        (b"\x82\xa4type\xa5reply\xa1x" + b"\x91" * 900 + b"\xc0", "deep"),
        (b"\x91" * 60_000, "no msgpack"),
        (b"\x00" * (MESSAGE_BYTES_MAX + 1), "expected at most"),
        (msgpack.packb({"type": "query", "name": "x" * 300}), "300 characters"),
        (msgpack.packb({**msgpack.unpackb(encode(HELLO)), "pid": -1}), "non-negative"),
        (msgpack.packb({**msgpack.unpackb(encode(HELLO)), "pid": True}), "non-negative"),
        (msgpack.packb({**msgpack.unpackb(encode(HELLO)), "snapshot_versions": ["1"]}), "integers"),
        (msgpack.packb({**msgpack.unpackb(encode(OFFER)), "fds": [1]}), "expected maps"),
        (msgpack.packb({**msgpack.unpackb(encode(OFFER)), "fds": [{}] * (FDS_MAX + 1)}), "descriptors"),
    ],
)
def test_bytes_that_are_no_message_say_why(wire: bytes, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        decode(wire)


def decode_quietly(wire: bytes) -> messages.Message | None:
    try:
        return decode(wire)
    except DecodeError:
        return None


@given(st.binary(max_size=400))
def test_random_bytes_raise_only_decode_errors(wire: bytes) -> None:
    decode_quietly(wire)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*(msgpack.unpackb(encode(each))["type"] for each in EVERY), "x"])
KEYS = st.sampled_from(sorted({name for message in EVERY for name in message._fields}))


@given(NAMES, st.dictionaries(KEYS, PLAIN))
def test_well_formed_maps_of_any_content_raise_only_decode_errors(name: str, content: dict[str, object]) -> None:
    message = decode_quietly(msgpack.packb({"type": name, **content}))
    if message is not None and "nan" not in repr(message):
        assert decode(encode(message)) == message


@given(st.sampled_from(EVERY), st.data())
def test_flipped_bytes_raise_only_decode_errors(message: messages.Message, data: st.DataObject) -> None:
    wire = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    decode_quietly(bytes(wire))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Ready({"x": object()}), "object"),
        (Ready({"x": {1: 2}}), "a key is 1"),
        (Ready({"x": 1 << 64}), "ready"),
        (Ready({"x": b"x" * MESSAGE_BYTES_MAX}), "shorten"),
        (Taken({"x": "\udcff"}), "taken"),
        (Taken({"x": {1, 2}}), "set"),
    ],
)
def test_a_value_that_cannot_be_encoded_is_a_state_error(message: messages.Message, says: str) -> None:
    with pytest.raises(StateError, match=says):
        encode(message)


def test_nesting_has_the_same_limit_in_both_directions() -> None:
    value: object = 0
    for _ in range(DEPTH_MAX - 2):
        value = [value]
    assert decode(encode(Ready({"x": value}))) == Ready({"x": value})
    with pytest.raises(StateError, match="deep"):
        encode(Ready({"x": [[[value]]]}))


@pytest.mark.parametrize("text", ["x", "é", "я", "漢", "🙂", "a🙂", "\x01"])
def test_a_reason_of_any_length_can_be_sent_and_recorded(text: str) -> None:
    sent = decode(encode(Failed(text * 9_000)))
    assert isinstance(sent, Failed)
    assert REASON_BYTES_MAX - 4 < len(sent.reason.encode()) <= REASON_BYTES_MAX
    assert (text * 9_000).startswith(sent.reason)  # cut between two characters


def test_the_longest_reason_fits_into_the_journal() -> None:
    assert REASON_BYTES_MAX <= STRING_BYTES_MAX


def test_a_reason_with_what_utf_8_does_not_have_can_be_sent() -> None:
    assert decode(encode(Failed("\udcff"))) == Failed("?")


def test_a_longer_reason_of_an_older_release_is_cut() -> None:
    older = msgpack.packb({"type": "failed", "reason": "漢" * 4_096})  # it counted characters
    assert decode(older) == Failed("漢" * (REASON_BYTES_MAX // 3))


@pytest.mark.parametrize("frozen_at", [float("nan"), float("inf"), -1.0])
def test_a_commit_at_no_time_is_no_message(frozen_at: float) -> None:
    with pytest.raises(DecodeError, match="a time in seconds"):
        decode(msgpack.packb({"type": "commit", "frozen_at": frozen_at, "info": {}}))
