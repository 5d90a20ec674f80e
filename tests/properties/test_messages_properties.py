"""For any bytes, decoders raise only DecodeError and the handshake raises nothing."""

import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.errors import DecodeError
from oxidize.protocol import crypto
from oxidize.protocol.constants import COOKIE_REPLY_SIZE, INITIATION_SIZE, RESPONSE_SIZE
from oxidize.protocol.cookie import CookieChecker, CookieJar
from oxidize.protocol.counters import DropReason
from oxidize.protocol.crypto import Buffer
from oxidize.protocol.messages import (
    CookieReply,
    Initiation,
    Response,
    data_receiver,
    message_type,
    split_macs,
)
from oxidize.protocol.noise import (
    LocalIdentity,
    RemoteIdentity,
    consume_initiation,
    consume_response,
    create_initiation,
    tai64n,
)

RANDOM_BYTES = random.Random(5).randbytes
LOCAL = LocalIdentity(crypto.generate_private_key(RANDOM_BYTES))
REMOTE_PRIVATE = crypto.generate_private_key(RANDOM_BYTES)
REMOTE = RemoteIdentity(LOCAL, crypto.public_key(REMOTE_PRIVATE))
STATE, SENT = create_initiation(LOCAL, REMOTE, 1, tai64n(1.7e9), RANDOM_BYTES)
MakeBuffer = Callable[[bytes], Buffer]
DECODERS: list[Callable[[Buffer], object]] = [
    Initiation.decode,
    Response.decode,
    CookieReply.decode,
    data_receiver,
    split_macs,
]

words = st.integers(0, 2**32 - 1)
# Plain random bytes almost never have a valid type and a valid length: give both a good chance.
sizes = st.sampled_from([INITIATION_SIZE, RESPONSE_SIZE, COOKIE_REPLY_SIZE, 32]) | st.integers(0, 200)
datagrams = st.builds(
    lambda word, rest, size: (word.to_bytes(4, "little") + rest)[:size].ljust(size, b"\0"),
    st.integers(0, 5) | words,
    st.binary(max_size=200),
    sizes,
)
buffers: st.SearchStrategy[MakeBuffer] = st.sampled_from([bytes, bytearray, memoryview])


def keys(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size) | st.sampled_from([bytes(size), b"\xff" * size])


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__qualname__)
@given(data=datagrams | st.binary(max_size=200), kind=buffers)
def test_decoders_raise_decode_error_only(decode: Callable[[Buffer], object], data: bytes, kind: MakeBuffer) -> None:
    with suppress(DecodeError):
        decode(kind(data))


@given(data=datagrams, kind=buffers)
def test_message_type_is_the_first_word_or_nothing(data: bytes, kind: MakeBuffer) -> None:
    word = int.from_bytes(data[:4], "little") if len(data) >= 4 else 0
    assert message_type(kind(data)) == (word if word <= 4 else 0)


@given(st.builds(Initiation, words, keys(32), keys(48), keys(28)), st.binary(min_size=32, max_size=32))
def test_initiations_survive_the_wire(message: Initiation, macs: bytes) -> None:
    assert Initiation.decode(message.encode() + macs) == message


@given(st.builds(Response, words, words, keys(32), keys(16)), st.binary(min_size=32, max_size=32))
def test_responses_survive_the_wire(message: Response, macs: bytes) -> None:
    assert Response.decode(message.encode() + macs) == message


@given(st.builds(CookieReply, words, keys(24), keys(32)))
def test_cookie_replies_survive_the_wire(message: CookieReply) -> None:
    assert CookieReply.decode(message.encode()) == message


@given(st.builds(Initiation, words, keys(32), keys(48), keys(28)))
def test_arbitrary_initiations_are_dropped(message: Initiation) -> None:
    assert consume_initiation(LOCAL, message, lambda _: REMOTE) is DropReason.AUTHENTICATION_FAILED


@given(words, keys(32), keys(28), keys(32))
def test_initiations_with_a_genuine_static_key_are_dropped(
    index: int, claimed: bytes, encrypted_timestamp: bytes, ephemeral: bytes
) -> None:
    """An attacker who knows the responder's public key reaches the lookup with any static key."""
    attacker = LocalIdentity(REMOTE_PRIVATE)
    attacker.public_key = claimed
    to_us = RemoteIdentity(attacker, LOCAL.public_key)
    _, sent = create_initiation(attacker, to_us, index, tai64n(0.0), lambda _: ephemeral)
    forged = Initiation.decode(sent + bytes(32))._replace(encrypted_timestamp=encrypted_timestamp)
    asked: list[bytes] = []
    assert consume_initiation(LOCAL, forged, asked.append) is DropReason.UNKNOWN_PEER
    assert asked == [claimed]
    peer = RemoteIdentity(LOCAL, claimed)
    assert consume_initiation(LOCAL, forged, lambda _: peer) is DropReason.AUTHENTICATION_FAILED


@given(st.builds(Response, words, st.just(STATE.local_index) | words, keys(32), keys(16)))
def test_arbitrary_responses_are_dropped(message: Response) -> None:
    assert consume_response(LOCAL, REMOTE, STATE, message) is None


@given(data=datagrams, kind=buffers, source=st.binary(max_size=20))
def test_arbitrary_bytes_have_no_valid_macs(data: bytes, kind: MakeBuffer, source: bytes) -> None:
    checker = CookieChecker(LOCAL.public_key, RANDOM_BYTES)
    checker.refresh(0.0)
    assert not checker.check_mac1(kind(data))
    assert not checker.check_mac2(kind(data), source, 0.0)


@given(st.builds(CookieReply, words, keys(24), keys(32)))
def test_arbitrary_cookie_replies_are_dropped(reply: CookieReply) -> None:
    jar = CookieJar(REMOTE.public_key)
    assert not jar.consume_reply(reply, 0.0)
    jar.stamp(SENT, 0.0)
    assert not jar.consume_reply(reply, 0.0)
    assert jar.cookie == b""
