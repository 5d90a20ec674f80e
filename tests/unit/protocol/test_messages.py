"""The layouts of the four messages, byte by byte as the paper draws them."""

import pytest

from oxidize.errors import DecodeError
from oxidize.protocol import constants
from oxidize.protocol.messages import (
    DATA_HEADER,
    CookieReply,
    Initiation,
    Response,
    data_receiver,
    message_type,
    split_macs,
)

MACS = bytes(range(0xE0, 0x100))
INITIATION = b"\x01\0\0\0" + b"\x04\x03\x02\x01" + b"e" * 32 + b"s" * 48 + b"t" * 28 + MACS
RESPONSE = b"\x02\0\0\0" + b"\x04\x03\x02\x01" + b"\x08\x07\x06\x05" + b"e" * 32 + b"n" * 16 + MACS
COOKIE_REPLY = b"\x03\0\0\0" + b"\x04\x03\x02\x01" + b"n" * 24 + b"c" * 32
KEEPALIVE = b"\x04\0\0\0" + b"\x04\x03\x02\x01" + b"\x08\x07\x06\x05\x04\x03\x02\x01" + b"t" * 16

FIXED = [(Initiation, INITIATION), (Response, RESPONSE), (CookieReply, COOKIE_REPLY)]
BY_CLASS = pytest.mark.parametrize(("class_", "data"), FIXED, ids=lambda value: getattr(value, "__name__", ""))
Fixed = type[Initiation] | type[Response] | type[CookieReply]


def test_message_sizes_are_those_of_the_paper() -> None:
    assert len(INITIATION) == constants.INITIATION_SIZE == 148
    assert len(RESPONSE) == constants.RESPONSE_SIZE == 92
    assert len(COOKIE_REPLY) == constants.COOKIE_REPLY_SIZE == 64
    assert len(KEEPALIVE) == constants.DATA_OVERHEAD == 32
    assert DATA_HEADER.size == constants.DATA_HEADER_SIZE == 16


def test_an_initiation_is_laid_out_as_in_the_paper() -> None:
    message = Initiation.decode(INITIATION)
    assert message == Initiation(0x01020304, b"e" * 32, b"s" * 48, b"t" * 28)
    assert message.encode() == INITIATION[:116]


def test_a_response_is_laid_out_as_in_the_paper() -> None:
    message = Response.decode(RESPONSE)
    assert message == Response(0x01020304, 0x05060708, b"e" * 32, b"n" * 16)
    assert message.encode() == RESPONSE[:60]


def test_a_cookie_reply_is_laid_out_as_in_the_paper() -> None:
    message = CookieReply.decode(COOKIE_REPLY)
    assert message == CookieReply(0x01020304, b"n" * 24, b"c" * 32)
    assert message.encode() == COOKIE_REPLY


def test_a_data_header_is_laid_out_as_in_the_paper() -> None:
    assert DATA_HEADER.unpack_from(KEEPALIVE) == (constants.TYPE_DATA, 0x01020304, 0x0102030405060708)
    assert data_receiver(KEEPALIVE) == 0x01020304
    assert data_receiver(KEEPALIVE + bytes(1452)) == 0x01020304


def test_the_largest_indices_and_counters_are_read() -> None:
    largest = b"\x04\0\0\0" + b"\xff" * 28
    assert data_receiver(largest) == 2**32 - 1
    assert DATA_HEADER.unpack_from(largest) == (constants.TYPE_DATA, 2**32 - 1, 2**64 - 1)
    assert Initiation.decode(INITIATION[:4] + b"\xff" * 144).sender_index == 2**32 - 1


@BY_CLASS
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_read_into_bytes(class_: Fixed, data: bytes, kind: type) -> None:
    message = class_.decode(kind(data))
    assert message == class_.decode(data)
    assert all(isinstance(value, bytes) for value in message if not isinstance(value, int))


@BY_CLASS
@pytest.mark.parametrize("change", [-1, 1])
def test_a_message_of_another_length_is_refused(class_: Fixed, data: bytes, change: int) -> None:
    with pytest.raises(DecodeError, match=rf"of {len(data) + change} bytes; expected {len(data)}"):
        class_.decode(data[:change] if change < 0 else data + bytes(change))


@BY_CLASS
@pytest.mark.parametrize("position", range(4))
def test_a_message_with_another_type_or_reserved_bytes_is_refused(class_: Fixed, data: bytes, position: int) -> None:
    altered = bytearray(data)
    altered[position] ^= 0x80
    with pytest.raises(DecodeError, match="with first word 0x"):
        class_.decode(altered)


@pytest.mark.parametrize("length", [0, 3, 4, 15, 16, 31])
def test_a_datagram_shorter_than_a_keepalive_has_no_receiver(length: int) -> None:
    assert data_receiver(KEEPALIVE[:length]) is None


@pytest.mark.parametrize("position", range(4))
def test_a_datagram_with_another_type_or_reserved_bytes_has_no_receiver(position: int) -> None:
    altered = bytearray(KEEPALIVE)
    altered[position] ^= 0x80
    assert data_receiver(altered) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (INITIATION, constants.TYPE_INITIATION),
        (RESPONSE, constants.TYPE_RESPONSE),
        (memoryview(COOKIE_REPLY), constants.TYPE_COOKIE_REPLY),
        (bytearray(KEEPALIVE), constants.TYPE_DATA),
        (b"\x01\0\0\0", 1),
        (b"", 0),
        (b"\x01\0\0", 0),
        (b"\0\0\0\0", 0),
        (b"\x05\0\0\0", 0),
        (b"\x01\x01\0\0", 0),
        (b"\x01\0\0\x01", 0),
        (b"\xff\xff\xff\xff", 0),
    ],
)
def test_the_type_of_a_message_is_its_whole_first_word(data: bytes, expected: int) -> None:
    assert message_type(data) == expected


@pytest.mark.parametrize("data", [INITIATION, RESPONSE])
def test_the_macs_are_the_last_32_bytes_of_a_handshake_message(data: bytes) -> None:
    covered_by_mac1, mac1, covered_by_mac2, mac2 = split_macs(data)
    assert (mac1, mac2) == (MACS[:16], MACS[16:])
    assert covered_by_mac1 == data[:-32]
    assert covered_by_mac2 == data[:-16]


def test_a_message_without_room_for_macs_is_refused() -> None:
    assert [bytes(part) for part in split_macs(MACS)] == [b"", MACS[:16], MACS[:16], MACS[16:]]
    with pytest.raises(DecodeError, match="of 31 bytes; expected at least the 32"):
        split_macs(MACS[1:])
