"""The four messages on the wire: fixed layouts, little-endian, with no options and no versions.

Rule: a message decodes only when its length and its whole first word, the type with its three reserved zero bytes, are
right; every other sequence of bytes raises DecodeError and nothing else. The content of a message is not judged here.

Source: the paper, sections 5.4.2 (initiation), 5.4.3 (response), 5.4.4 (macs), 5.4.6 (data), 5.4.7 (cookie reply).
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, Self

from oxidize.errors import DecodeError
from oxidize.protocol.constants import (
    COOKIE_REPLY_SIZE,
    DATA_OVERHEAD,
    INITIATION_SIZE,
    MAC_SIZE,
    RESPONSE_SIZE,
    TYPE_COOKIE_REPLY,
    TYPE_DATA,
    TYPE_INITIATION,
    TYPE_RESPONSE,
)
from oxidize.protocol.crypto import Buffer

MACS_SIZE = 2 * MAC_SIZE

DATA_HEADER = struct.Struct("<IIQ")  # type, receiver index, counter

_DATA_RECEIVER = struct.Struct("<II")  # the first two fields of a data header

_TYPE = struct.Struct("<I")
_INITIATION_HEADER = struct.Struct("<II")  # type, sender index
_INITIATION = struct.Struct(f"<4xI32s48s28s{MACS_SIZE}x")
_RESPONSE_HEADER = struct.Struct("<III")  # type, sender index, receiver index
_RESPONSE = struct.Struct(f"<4xII32s16s{MACS_SIZE}x")
_COOKIE_REPLY_HEADER = struct.Struct("<II")  # type, receiver index
_COOKIE_REPLY = struct.Struct("<4xI24s32s")


class Initiation(NamedTuple):
    """The first message of a handshake; sizes in bytes: ephemeral 32, encrypted_static 48, encrypted_timestamp 28."""

    sender_index: int
    ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Decode a datagram of 148 bytes without checking its macs; raises DecodeError for any other."""
        _expect(data, TYPE_INITIATION, INITIATION_SIZE, "handshake initiation")
        return cls(*_INITIATION.unpack(data))

    def encode(self) -> bytes:
        """Return the message without its macs, 116 bytes."""
        header = _INITIATION_HEADER.pack(TYPE_INITIATION, self.sender_index)
        return header + self.ephemeral + self.encrypted_static + self.encrypted_timestamp


class Response(NamedTuple):
    """The second message of a handshake; sizes in bytes: ephemeral 32, encrypted_nothing 16."""

    sender_index: int
    receiver_index: int
    ephemeral: bytes
    encrypted_nothing: bytes

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Decode a datagram of 92 bytes without checking its macs; raises DecodeError for any other."""
        _expect(data, TYPE_RESPONSE, RESPONSE_SIZE, "handshake response")
        return cls(*_RESPONSE.unpack(data))

    def encode(self) -> bytes:
        """Return the message without its macs, 60 bytes."""
        header = _RESPONSE_HEADER.pack(TYPE_RESPONSE, self.sender_index, self.receiver_index)
        return header + self.ephemeral + self.encrypted_nothing


class CookieReply(NamedTuple):
    """The answer of a peer under load to a handshake message; sizes in bytes: nonce 24, encrypted_cookie 32."""

    receiver_index: int
    nonce: bytes
    encrypted_cookie: bytes

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Decode a datagram of 64 bytes; raises DecodeError for any other."""
        _expect(data, TYPE_COOKIE_REPLY, COOKIE_REPLY_SIZE, "cookie reply")
        return cls(*_COOKIE_REPLY.unpack(data))

    def encode(self) -> bytes:
        """Return the message, 64 bytes."""
        header = _COOKIE_REPLY_HEADER.pack(TYPE_COOKIE_REPLY, self.receiver_index)
        return header + self.nonce + self.encrypted_cookie


def message_type(data: Buffer) -> int:
    """Return the type of a message, 1 to 4, or 0 when its first word is not one; the length is not checked."""
    if len(data) < _TYPE.size:
        return 0
    word: int = _TYPE.unpack_from(data)[0]
    return word if TYPE_INITIATION <= word <= TYPE_DATA else 0


def initiation_sender(data: Buffer) -> int:
    """Return the sender index of an initiation, of at least 8 bytes."""
    index: int = _INITIATION_HEADER.unpack_from(data)[1]
    return index


def data_receiver(data: Buffer) -> int | None:
    """Return the receiver index of a data message, unauthenticated; None for any other datagram.

    A datagram of less than the 32 bytes of a keepalive is not a data message.
    """
    if len(data) < DATA_OVERHEAD:
        return None
    word, receiver_index = _DATA_RECEIVER.unpack_from(data)
    return receiver_index if word == TYPE_DATA else None


def runs_by_receiver(
    datagrams: Sequence[bytes | memoryview],
) -> Iterable[tuple[int | None, Sequence[bytes | memoryview]]]:
    """Return the datagrams in order, in runs of one `data_receiver`."""
    if len(datagrams) == 1:  # as a flood comes, for which grouping would be half of the work
        return ((data_receiver(datagrams[0]), datagrams),)
    return ((receiver, list(run)) for receiver, run in groupby(datagrams, key=data_receiver))


def split_macs(data: Buffer) -> tuple[memoryview, bytes, memoryview, bytes]:
    """Return the bytes that mac1 covers, mac1, the bytes that mac2 covers, and mac2 (section 5.4.4).

    data: a handshake message. Raises DecodeError when it is shorter than the two macs.
    """
    if len(data) < MACS_SIZE:
        raise DecodeError(f"handshake message of {len(data)} bytes; expected at least the {MACS_SIZE} of its macs")
    view = memoryview(data)
    return view[:-MACS_SIZE], bytes(view[-MACS_SIZE:-MAC_SIZE]), view[:-MAC_SIZE], bytes(view[-MAC_SIZE:])


def _expect(data: Buffer, type_: int, size: int, name: str) -> None:
    if len(data) != size:
        raise DecodeError(f"{name} of {len(data)} bytes; expected {size}")
    word = _TYPE.unpack_from(data)[0]
    if word != type_:
        raise DecodeError(f"{name} with first word {word:#010x}; expected {type_:#010x}")
