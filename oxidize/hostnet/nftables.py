"""The few messages to nftables that `nat` needs, over a netlink socket that may change hands.

The rule: a table is made with NFT_TABLE_F_OWNER (Linux 5.12), so it belongs to the socket: nobody else may change it,
and the kernel removes it once the last holder has closed that socket. The owner is the socket's port, not a process, so
a socket that came by SCM_RIGHTS or from a service manager's store goes on owning. All of a change is one batch, which
the kernel takes up whole or not at all.

Sources: nfnetlink(7) and netlink(7), linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; `nft --debug=netlink`
shows the expressions of a rule. It needs CAP_NET_ADMIN.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from oxidize.errors import OxidizeError

# --- linux/netlink.h ---
_NETLINK_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_REQUEST, _ACK = 0x0001, 0x0004
_DUMP_INTERRUPTED = 0x0010
_DUMP = 0x0300
_EXCLUSIVE, _CREATE, _APPEND = 0x0200, 0x0400, 0x0800
_ERROR, _DONE = 2, 3
_NESTED = 0x8000  # in the type of an attribute that holds attributes
_TYPE_MASK = 0x3FFF

# --- linux/netfilter/nfnetlink.h ---
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES

# --- linux/netfilter/nf_tables.h: nf_tables_msg_types, nft_table_flags ---
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _DELETE_RULE = 0, 1, 2, 3, 6, 8
_TABLE_OWNER = 0x2
_REGISTER = 1  # NFT_REG_1, through which all expressions here pass their one value

NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
HOOK_FORWARD, HOOK_POSTROUTING = 2, 4
META_OUTPUT_NAME, META_INPUT_NAME, META_NFPROTO, META_L4PROTO = 7, 6, 15, 16
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2

_INTERFACE_NAME_SIZE = 16  # IFNAMSIZ: names are compared whole, with the NULs after them
_ANSWER_BYTES_MAX = 65_536
_DUMPS_MAX = 10


class NftError(OxidizeError):
    """The kernel refuses a change. `code`: errno. `step`: the number of the message in its batch, -1 for all of it."""

    def __init__(self, code: int, step: int) -> None:
        super().__init__(f"nftables: message {step}: {os.strerror(code)}")
        self.code = code
        self.step = step


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a batch: its type, its flags besides request and acknowledgement, and its attributes."""

    kind: int
    flags: int
    attributes: bytes


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is there. `owner`: the port of the socket that owns it, 0 for none."""

    name: str
    owner: int


# --- Attributes and expressions ---


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">i", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *attributes))  # NFTA_LIST_ELEM: NFTA_EXPR_NAME, NFTA_EXPR_DATA


def _compare(operation: int, value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, operation), _nested(3, _attribute(1, value)))


def _equal(value: bytes) -> bytes:
    return _compare(0, value)


def _meta(key: int) -> bytes:
    return _expression("meta", _number(1, _REGISTER), _number(2, key))


def interface_is(key: int, name: str, *, negate: bool = False) -> bytes:
    """Match packets by the name of their interface: `key` is META_INPUT_NAME or META_OUTPUT_NAME."""
    value = name.encode().ljust(_INTERFACE_NAME_SIZE, b"\0")
    return _meta(key) + _compare(int(negate), value)


def meta_is(key: int, value: int) -> bytes:
    """Match packets by META_NFPROTO or META_L4PROTO."""
    return _meta(key) + _equal(bytes([value]))


def payload_is(header: int, offset: int, value: bytes, mask: bytes) -> bytes:
    """Match packets whose bytes at `offset` of a header are `value` under `mask`."""
    size = len(value)
    load = _expression("payload", _number(1, _REGISTER), _number(2, header), _number(3, offset), _number(4, size))
    bits = (_nested(4, _attribute(1, mask)), _nested(5, _attribute(1, bytes(size))))
    registers = (_number(1, _REGISTER), _number(2, _REGISTER), _number(3, size))
    return load + _expression("bitwise", *registers, *bits) + _equal(value)


def masquerade() -> bytes:
    """Give a flow the address of the interface by which it leaves."""
    return _expression("masq")


def clamp_mss() -> bytes:
    """Lower the MSS of a TCP SYN to what its route's MTU lets through, in either direction; never raise it."""
    load = _expression("rt", _number(1, _REGISTER), _number(2, 3))  # NFT_RT_TCPMSS
    to_network = (_number(1, _REGISTER), _number(2, _REGISTER), _number(3, 1), _number(4, 2), _number(5, 2))
    # Source register, TCP option 2 (RFC 9293, maximum segment size), 2 bytes at 2 of it, NFT_EXTHDR_OP_TCPOPT.
    write = (_number(7, _REGISTER), _attribute(2, b"\x02"), _number(3, 2), _number(4, 2), _number(6, 1))
    return load + _expression("byteorder", *to_network) + _expression("exthdr", *write)


# --- Messages ---


def new_table(name: str, *, exclusive: bool) -> Message:
    """Make a table that belongs to the socket; `exclusive`: it must not be there yet."""
    flags = _CREATE | (_EXCLUSIVE if exclusive else 0)
    return Message(_NEW_TABLE, flags, _text(1, name) + _number(2, _TABLE_OWNER))


def delete_table(name: str) -> Message:
    """Remove a table with all that is in it."""
    return Message(_DELETE_TABLE, 0, _text(1, name))


def new_chain(table: str, name: str, kind: str, hook: int, priority: int) -> Message:
    """Make a base chain that accepts what no rule of it decides; no change where it is there."""
    at = _nested(4, _number(1, hook), _number(2, priority))
    return Message(_NEW_CHAIN, _CREATE, _text(1, table) + _text(3, name) + at + _text(7, kind))


def delete_rules(table: str) -> Message:
    """Remove all rules of a table, and leave its chains."""
    return Message(_DELETE_RULE, 0, _text(1, table))


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Add a rule at the end of a chain."""
    attributes = _text(1, table) + _text(2, chain) + _nested(4, *expressions)
    return Message(_NEW_RULE, _CREATE | _APPEND, attributes)


# --- The socket ---


class NftSocket:
    """A netlink socket that owns tables of the family inet; one process at a time makes requests on it.

    The kernel works within sendmsg(2), so that its answers are there when that returns and nothing here waits.
    """

    def __init__(self, underlying: socket.socket) -> None:
        self._socket = underlying
        self.port: int = underlying.getsockname()[0]
        self._sequence = 0

    @classmethod
    def create(cls) -> Self:
        """Open a socket that owns nothing yet; raises OxidizeError where the kernel has no netfilter."""
        try:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        except OSError as error:
            raise OxidizeError(f"nftables: no netlink socket of the kernel's netfilter: {error.strerror}") from error
        made.bind((0, 0))
        return cls(made)

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Take over a descriptor with the tables that it owns; raises OxidizeError, and closes it, if it is none."""
        try:
            passed = socket.socket(fileno=descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OxidizeError(f"descriptor {descriptor} passed as nat: {error.strerror}") from error
        if (passed.family, passed.proto) != (socket.AF_NETLINK, _NETLINK_NETFILTER):
            passed.close()
            raise OxidizeError(f"descriptor {descriptor} passed as nat: is no netlink socket of the kernel's netfilter")
        return cls(passed)

    def commit(self, messages: Sequence[Message]) -> None:
        """Do all that a batch says; raises NftError, and then nothing has changed."""
        self._batch(messages, is_final=True)

    def check(self, messages: Sequence[Message]) -> None:
        """Have the kernel look whether it would do a batch; raises NftError. A batch without an end is undone."""
        self._batch(messages, is_final=False)

    def tables(self) -> list[Table]:
        """Return all tables of the family inet; raises OxidizeError."""
        for _ in range(_DUMPS_MAX):
            found, is_whole = self._dump()
            if is_whole:
                return found
        raise OxidizeError("nftables: the tables change faster than they can be read")

    def fileno(self) -> int:
        """Return the file descriptor, -1 after `close`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this process's hold on the tables; idempotent."""
        self._socket.close()

    def _batch(self, messages: Sequence[Message], *, is_final: bool) -> None:
        self._forget_answers()
        first = self._next(len(messages) + 2)
        parts = [_packed(_BATCH_BEGIN, _REQUEST, first, _SUBSYSTEM)]
        for sequence, message in enumerate(messages, start=first + 1):
            kind = _SUBSYSTEM << 8 | message.kind
            flags = _REQUEST | _ACK | message.flags
            parts.append(_packed(kind, flags, sequence, 0, message.attributes, family=NFPROTO_INET))
        if is_final:
            parts.append(_packed(_BATCH_END, _REQUEST, first + len(messages) + 1, _SUBSYSTEM))
        self._send(b"".join(parts))
        answers = {sequence: code for kind, _, sequence, code, _ in self._answers() if kind == _ERROR}
        for sequence, code in sorted(answers.items()):
            if code:
                raise NftError(-code, sequence - first - 1)
        expected = range(first + 1, first + 1 + len(messages))
        if not answers.keys() >= set(expected):
            raise OxidizeError(f"nftables: {len(answers)} answers, expected {len(expected)}; the change is not certain")

    def _dump(self) -> tuple[list[Table], bool]:
        self._forget_answers()
        kind = _SUBSYSTEM << 8 | _GET_TABLE
        self._send(_packed(kind, _REQUEST | _DUMP, self._next(1), 0, family=NFPROTO_INET))
        found = []
        is_whole = False
        for answer, flags, _, code, body in self._answers():
            if flags & _DUMP_INTERRUPTED:
                return [], False
            if answer == _ERROR and code:
                raise NftError(-code, -1)
            if answer == _DONE:
                is_whole = True
            elif answer == _SUBSYSTEM << 8 | _NEW_TABLE:
                attributes = dict(_attributes(body[4:]))  # after struct nfgenmsg
                owner = struct.unpack(">I", attributes.get(7, bytes(4)))[0]
                found.append(Table(attributes[1].rstrip(b"\0").decode("utf-8", "replace"), owner))
        return found, is_whole

    def _next(self, count: int) -> int:
        self._sequence += count
        return self._sequence - count + 1

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise NftError(error.errno or errno.EIO, -1) from error

    def _forget_answers(self) -> None:
        """Drop what another holder of the socket has left unread."""
        for _ in self._answers():
            pass

    def _answers(self) -> Iterator[tuple[int, int, int, int, bytes]]:
        """Yield type, flags, sequence, error (0 for success) and body of each message that has come."""
        while True:
            try:
                data = self._socket.recv(_ANSWER_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                raise NftError(error.errno or errno.EIO, -1) from error
            while len(data) >= _HEADER.size:
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
                body = data[_HEADER.size : length]
                code = struct.unpack_from("=i", body)[0] if kind == _ERROR else 0
                yield kind, flags, sequence, code, body
                data = data[_padded(length) :]


def _packed(
    kind: int, flags: int, sequence: int, resource: int, attributes: bytes = b"", family: int = socket.AF_UNSPEC
) -> bytes:
    """Return one message: header, struct nfgenmsg, attributes."""
    body = struct.pack("=BB", family, 0) + struct.pack(">H", resource) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _padded(length: int) -> int:
    return max((length + 3) & ~3, _HEADER.size)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & _TYPE_MASK, data[4:length]
        data = data[max((length + 3) & ~3, 4) :]
