"""The nftables messages of `nat` and `packet_filter`: the one place where rules of the kernel's firewall are written.

The rule: a change is one batch, which the kernel applies completely or not at all; the rules of a table, which may be
hundreds, are read in slices of a datagram. A table made with NFT_TABLE_F_OWNER (Linux 5.12) belongs to the socket: no
other socket may change it, and the kernel removes it once the last holder has closed its socket. The owner is the
socket's port, not a process, so a socket passed by SCM_RIGHTS or by a service manager's store stays the owner. A table
without an owner stays until a process removes it.

Sources: nfnetlink(7) and netlink(7), linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; `nft --debug=netlink`
shows the expressions of a rule. It needs CAP_NET_ADMIN.
"""

import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from oxidize.config.values import HostAddress, Network
from oxidize.errors import OxidizeError
from oxidize.hostnet.part import Steps, run

# --- linux/netlink.h ---
NETLINK_NETFILTER = 12
_NLMSGHDR = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
NLM_F_REQUEST, NLM_F_ACK = 0x0001, 0x0004
NLM_F_DUMP_INTR = 0x0010
NLM_F_DUMP = 0x0300
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x0200, 0x0400, 0x0800
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000  # in the type of an attribute that holds attributes
NLA_TYPE_MASK = 0x3FFF

# --- linux/netfilter/nfnetlink.h ---
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFNL_SUBSYS_NFTABLES = 10

# --- linux/netfilter.h ---
NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING = 0, 2, 4
NF_DROP, NF_ACCEPT = 0, 1

# --- linux/netfilter/nf_tables.h: messages ---
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 3, 6, 7, 8
NFT_TABLE_F_DORMANT, NFT_TABLE_F_OWNER = 0x1, 0x2
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_OWNER = 1, 2, 7
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE = 1, 3, 4, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA = 1, 2, 4, 7

# --- linux/netfilter/nf_tables.h: expressions. All here pass their one value through one register ---
NFT_REG_VERDICT, NFT_REG_1 = 0, 1
NFTA_LIST_ELEM = 1
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE = 1
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA = 1, 2, 3
NFT_CMP_EQ, NFT_CMP_NEQ = 0, 1
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFT_META_MARK, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_NFPROTO, NFT_META_L4PROTO = 3, 6, 7, 15, 16
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 1, 2
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
NFTA_RT_DREG, NFTA_RT_KEY = 1, 2
NFT_RT_TCPMSS = 3
NFTA_BYTEORDER_SREG, NFTA_BYTEORDER_DREG, NFTA_BYTEORDER_OP, NFTA_BYTEORDER_LEN, NFTA_BYTEORDER_SIZE = 1, 2, 3, 4, 5
NFT_BYTEORDER_HTON = 1
NFTA_EXTHDR_TYPE, NFTA_EXTHDR_OFFSET, NFTA_EXTHDR_LEN, NFTA_EXTHDR_OP, NFTA_EXTHDR_SREG = 2, 3, 4, 6, 7
NFT_EXTHDR_OP_TCPOPT = 1
_TCPOPT_MAXSEG = 2  # RFC 9293, section 3.1: the maximum segment size, which stands at 2 of its option

# --- libnftnl/udata.h: data of a rule that the kernel keeps and does not read ---
_UDATA_COMMENT = 0  # which nft(8) shows
_UDATA_DIGEST = 0x6F  # this program's: of the expressions
_COMMENT_BYTES = 120

_SOURCE_OFFSET, _DESTINATION_OFFSET = {4: 12, 6: 8}, {4: 16, 6: 24}  # RFC 791, RFC 8200
_FAMILY = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}

_INTERFACE_NAME_SIZE = 16  # IFNAMSIZ: names are compared whole, with the NULs after them
_ANSWER_BYTES_MAX = 65_536
_DUMPS_MAX = 10
_SEND_BYTES = 65_536  # what any socket sends at once; more needs a larger buffer, socket(7)
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h


class NftError(OxidizeError):
    """The kernel refused a change. code: errno. step: number of the message in its batch, -1 for the whole batch."""

    def __init__(self, code: int, step: int) -> None:
        super().__init__(f"nftables: message {step}: {os.strerror(code)}")
        self.code = code
        self.step = step


class Message(NamedTuple):
    """One message of a batch. kind: its type. flags: in addition to request and acknowledgement."""

    kind: int
    flags: int
    attributes: bytes


class Table(NamedTuple):
    """An existing table. owner: the port of the socket that owns it, 0 for none. is_dormant: its rules do nothing."""

    name: str
    owner: int
    is_dormant: bool = False


class Rule(NamedTuple):
    """One rule of a chain. comment: what it is for, as nft(8) shows it. expressions: joined; unknown for a read one."""

    chain: str
    comment: str
    expressions: bytes

    @property
    def identity(self) -> tuple[str, bytes]:
        """The chain and the data that the kernel keeps with the rule, by which it is found again."""
        comment = self.comment.encode()[:_COMMENT_BYTES] + b"\0"
        digest = hashlib.sha256(self.expressions).digest()[:8]
        parts = ((_UDATA_COMMENT, comment), (_UDATA_DIGEST, digest))
        return self.chain, b"".join(bytes([kind, len(value)]) + value for kind, value in parts)


# --- Attributes and expressions ---


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | NLA_F_NESTED, b"".join(attributes))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">i", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(NFTA_LIST_ELEM, _text(NFTA_EXPR_NAME, name), _nested(NFTA_EXPR_DATA, *attributes))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression(
        "cmp",
        _number(NFTA_CMP_SREG, NFT_REG_1),
        _number(NFTA_CMP_OP, operation),
        _nested(NFTA_CMP_DATA, _attribute(NFTA_DATA_VALUE, value)),
    )


def _meta(key: int) -> bytes:
    return _expression("meta", _number(NFTA_META_DREG, NFT_REG_1), _number(NFTA_META_KEY, key))


def interface_is(key: int, name: str, *, negate: bool = False) -> bytes:
    """Match packets by the name of their interface: `key` is NFT_META_IIFNAME or NFT_META_OIFNAME."""
    value = name.encode().ljust(_INTERFACE_NAME_SIZE, b"\0")
    return _meta(key) + _compare(NFT_CMP_NEQ if negate else NFT_CMP_EQ, value)


def meta_is(key: int, value: int) -> bytes:
    """Match packets by NFT_META_NFPROTO or NFT_META_L4PROTO."""
    return _meta(key) + _compare(NFT_CMP_EQ, bytes([value]))


def mark_is(mark: int) -> bytes:
    """Match packets by their mark, as SO_MARK sets it."""
    return _meta(NFT_META_MARK) + _compare(NFT_CMP_EQ, struct.pack("=I", mark))


def family_is(version: int) -> bytes:
    """Match packets of IPv4 or IPv6."""
    return meta_is(NFT_META_NFPROTO, _FAMILY[version])


def comes_from(network: Network) -> bytes:
    """Match packets by the network of their source."""
    return _address_in(_SOURCE_OFFSET, network)


def goes_to(network: Network) -> bytes:
    """Match packets by the network of their destination."""
    return _address_in(_DESTINATION_OFFSET, network)


def goes_to_host(address: HostAddress) -> bytes:
    """Match packets by their destination."""
    every_bit = b"\xff" * len(address.packed)
    return _address_is(_DESTINATION_OFFSET, address.version, address.packed, every_bit)


def _address_in(offsets: dict[int, int], network: Network) -> bytes:
    return _address_is(offsets, network.version, network.network_address.packed, network.netmask.packed)


def _address_is(offsets: dict[int, int], version: int, address: bytes, mask: bytes) -> bytes:
    return family_is(version) + payload_is(NFT_PAYLOAD_NETWORK_HEADER, offsets[version], address, mask)


def decide(verdict: int) -> bytes:
    """End the way of a packet through a chain: NF_ACCEPT or NF_DROP."""
    code = _nested(NFTA_DATA_VERDICT, _number(NFTA_VERDICT_CODE, verdict))
    return _expression("immediate", _number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), _nested(NFTA_IMMEDIATE_DATA, code))


def payload_is(header: int, offset: int, value: bytes, mask: bytes) -> bytes:
    """Match packets whose bytes at `offset` of a header are `value` under `mask`."""
    size = len(value)
    load = _expression(
        "payload",
        _number(NFTA_PAYLOAD_DREG, NFT_REG_1),
        _number(NFTA_PAYLOAD_BASE, header),
        _number(NFTA_PAYLOAD_OFFSET, offset),
        _number(NFTA_PAYLOAD_LEN, size),
    )
    apply_mask = _expression(
        "bitwise",
        _number(NFTA_BITWISE_SREG, NFT_REG_1),
        _number(NFTA_BITWISE_DREG, NFT_REG_1),
        _number(NFTA_BITWISE_LEN, size),
        _nested(NFTA_BITWISE_MASK, _attribute(NFTA_DATA_VALUE, mask)),
        _nested(NFTA_BITWISE_XOR, _attribute(NFTA_DATA_VALUE, bytes(size))),
    )
    return load + apply_mask + _compare(NFT_CMP_EQ, value)


def masquerade() -> bytes:
    """Give a flow the address of the interface by which it leaves."""
    return _expression("masq")


def clamp_mss() -> bytes:
    """Lower the MSS of a TCP SYN to what its route's MTU lets through, in either direction; never raise it."""
    load = _expression("rt", _number(NFTA_RT_DREG, NFT_REG_1), _number(NFTA_RT_KEY, NFT_RT_TCPMSS))
    to_network_order = _expression(
        "byteorder",
        _number(NFTA_BYTEORDER_SREG, NFT_REG_1),
        _number(NFTA_BYTEORDER_DREG, NFT_REG_1),
        _number(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON),
        _number(NFTA_BYTEORDER_LEN, 2),
        _number(NFTA_BYTEORDER_SIZE, 2),
    )
    write = _expression(
        "exthdr",
        _number(NFTA_EXTHDR_SREG, NFT_REG_1),
        _attribute(NFTA_EXTHDR_TYPE, bytes([_TCPOPT_MAXSEG])),
        _number(NFTA_EXTHDR_OFFSET, 2),
        _number(NFTA_EXTHDR_LEN, 2),
        _number(NFTA_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT),
    )
    return load + to_network_order + write


# --- Messages ---


def new_table(name: str, *, exclusive: bool) -> Message:
    """Make a table that belongs to the socket. exclusive: it must not exist yet."""
    flags = NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0)
    return Message(NFT_MSG_NEWTABLE, flags, _text(NFTA_TABLE_NAME, name) + _number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER))


def new_table_without_owner(name: str) -> Message:
    """Make a table that stays until it is removed, or wake it if it is dormant; a no-op if it exists."""
    return Message(NFT_MSG_NEWTABLE, NLM_F_CREATE, _text(NFTA_TABLE_NAME, name) + _number(NFTA_TABLE_FLAGS, 0))


def delete_table(name: str) -> Message:
    """Remove a table with its chains and rules."""
    return Message(NFT_MSG_DELTABLE, 0, _text(NFTA_TABLE_NAME, name))


def new_chain(table: str, name: str, kind: str, hook: int, priority: int) -> Message:
    """Make a base chain that accepts packets that none of its rules decides; a no-op if it exists."""
    at = _nested(NFTA_CHAIN_HOOK, _number(NFTA_HOOK_HOOKNUM, hook), _number(NFTA_HOOK_PRIORITY, priority))
    attributes = _text(NFTA_CHAIN_TABLE, table) + _text(NFTA_CHAIN_NAME, name) + at + _text(NFTA_CHAIN_TYPE, kind)
    return Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, attributes)


def delete_rules(table: str) -> Message:
    """Remove all rules of a table, and keep its chains."""
    return Message(NFT_MSG_DELRULE, 0, _text(NFTA_RULE_TABLE, table))


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Add a rule at the end of a chain."""
    names = _text(NFTA_RULE_TABLE, table) + _text(NFTA_RULE_CHAIN, chain)
    attributes = names + _nested(NFTA_RULE_EXPRESSIONS, *expressions)
    return Message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes)


def new_marked_rule(table: str, rule: Rule) -> Message:
    """Add a rule at the end of its chain, with the data by which `NftSocket.rules` finds it again."""
    bare = new_rule(table, rule.chain, rule.expressions)
    return Message(bare.kind, bare.flags, bare.attributes + _attribute(NFTA_RULE_USERDATA, rule.identity[1]))


# --- The socket ---


class NftSocket:
    """A netlink socket that owns tables of the family inet; one process at a time makes requests on it.

    The kernel works within sendmsg(2), so its answers have arrived when that returns, and nothing here waits.
    """

    def __init__(self, underlying: socket.socket) -> None:
        self._socket = underlying
        self.port: int = underlying.getsockname()[0]
        self._sequence = 0

    @classmethod
    def create(cls) -> Self:
        """Open a socket that owns nothing yet; raises OxidizeError if the kernel has no netfilter."""
        try:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise OxidizeError(f"nftables: no netlink socket of the kernel's netfilter: {error.strerror}") from error
        made.bind((0, 0))
        return cls(made)

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Take over a descriptor with the tables that it owns; raises OxidizeError for any other, and closes it."""
        try:
            passed = socket.socket(fileno=descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OxidizeError(f"descriptor {descriptor} passed as nat: {error.strerror}") from error
        if (passed.family, passed.proto) != (socket.AF_NETLINK, NETLINK_NETFILTER):
            passed.close()
            raise OxidizeError(f"descriptor {descriptor} passed as nat: is not a netlink socket of netfilter")
        return cls(passed)

    def commit(self, messages: Sequence[Message]) -> None:
        """Apply a batch; raises NftError, and then nothing has changed."""
        self._batch(messages, is_final=True)

    def check(self, messages: Sequence[Message]) -> None:
        """Raise NftError if the kernel would refuse a batch; a batch without an end is checked and undone."""
        self._batch(messages, is_final=False)

    def tables(self) -> list[Table]:
        """Return all tables of the family inet; raises OxidizeError, and NftError if the kernel refuses."""
        found = []
        for attributes in run(self._dump(NFT_MSG_GETTABLE, NFT_MSG_NEWTABLE)):
            owner, flags = (
                struct.unpack(">I", attributes.get(kind, bytes(4)))[0] for kind in (NFTA_TABLE_OWNER, NFTA_TABLE_FLAGS)
            )
            name = _text_of(attributes[NFTA_TABLE_NAME])
            found.append(Table(name, owner, is_dormant=bool(flags & NFT_TABLE_F_DORMANT)))
        return found

    def rules(self, table: str) -> Steps[list[tuple[str, bytes]]]:
        """Return chain and kept data of each rule of a table, in order (`Rule.identity`); raises as `tables` does."""
        read = yield from self._dump(NFT_MSG_GETRULE, NFT_MSG_NEWRULE, _text(NFTA_RULE_TABLE, table))
        return [(_text_of(each[NFTA_RULE_CHAIN]), each.get(NFTA_RULE_USERDATA, b"")) for each in read]

    def fileno(self) -> int:
        """Return the file descriptor, -1 after `close`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this process's hold on the tables; idempotent."""
        self._socket.close()

    def _batch(self, messages: Sequence[Message], *, is_final: bool) -> None:
        self._discard_answers()
        first = self._next(len(messages) + 2)
        parts = [_packed(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, first, NFNL_SUBSYS_NFTABLES)]
        for sequence, message in enumerate(messages, start=first + 1):
            kind = NFNL_SUBSYS_NFTABLES << 8 | message.kind
            # Of the others only errors are answered: the answers to some hundred messages do not fit into the socket.
            is_last = sequence == first + len(messages)
            flags = NLM_F_REQUEST | (NLM_F_ACK if is_last else 0) | message.flags
            parts.append(_packed(kind, flags, sequence, 0, message.attributes, family=NFPROTO_INET))
        if is_final:
            parts.append(_packed(NFNL_MSG_BATCH_END, NLM_F_REQUEST, first + len(messages) + 1, NFNL_SUBSYS_NFTABLES))
        self._send(b"".join(parts))
        answers = {
            sequence: code
            for datagram in self._datagrams()
            for kind, _, sequence, code, _ in _messages(datagram)
            if kind == NLMSG_ERROR
        }
        for sequence, code in sorted(answers.items()):
            if code:
                raise NftError(-code, sequence - first - 1)
        if messages and first + len(messages) not in answers:
            raise OxidizeError("nftables: no answer to a batch of changes, expected one; the result is unknown")

    def _dump(self, question: int, answer: int, attributes: bytes = b"") -> Steps[list[dict[int, bytes]]]:
        """Return the attributes of all answers to a question; raises OxidizeError, and NftError if refused."""
        for _ in range(_DUMPS_MAX):
            found = yield from self._dump_once(question, answer, attributes)
            if found is not None:
                return found
        raise OxidizeError("nftables: the tables change faster than they can be read")

    def _dump_once(self, question: int, answer: int, attributes: bytes) -> Steps[list[dict[int, bytes]] | None]:
        """Return the attributes, or None where a change came between the parts of the answer."""
        self._discard_answers()
        kind = NFNL_SUBSYS_NFTABLES << 8 | question
        self._send(_packed(kind, NLM_F_REQUEST | NLM_F_DUMP, self._next(1), 0, attributes, family=NFPROTO_INET))
        found = []
        is_whole = False
        for datagram in self._datagrams():
            for kind, flags, _, code, body in _messages(datagram):
                if flags & NLM_F_DUMP_INTR:
                    return None
                if kind == NLMSG_ERROR and code:
                    raise NftError(-code, -1)
                if kind == NLMSG_DONE:
                    is_whole = True
                elif kind == NFNL_SUBSYS_NFTABLES << 8 | answer:
                    found.append(dict(_attributes(body[4:])))  # after struct nfgenmsg
            yield 0.0
        return found if is_whole else None

    def _next(self, count: int) -> int:
        self._sequence += count
        return self._sequence - count + 1

    def _send(self, data: bytes) -> None:
        try:
            if len(data) > _SEND_BYTES:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data))  # the kernel doubles it
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise NftError(error.errno or errno.EIO, -1) from error

    def _discard_answers(self) -> None:
        """Discard answers that another holder of the socket has left unread."""
        for _ in self._datagrams():
            pass

    def _datagrams(self) -> Iterator[bytes]:
        """Yield the datagrams that have arrived; the kernel adds the next one of a dump when one is taken."""
        while True:
            try:
                yield self._socket.recv(_ANSWER_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                raise NftError(error.errno or errno.EIO, -1) from error


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield type, flags, sequence, error (0 for success) and body of each message of a datagram."""
    start = 0
    while len(data) - start >= _NLMSGHDR.size:
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, start)
        body = data[start + _NLMSGHDR.size : start + length]
        code = struct.unpack_from("=i", body)[0] if kind == NLMSG_ERROR else 0
        yield kind, flags, sequence, code, body
        start += _padded(length)


def _packed(
    kind: int, flags: int, sequence: int, resource: int, attributes: bytes = b"", family: int = socket.AF_UNSPEC
) -> bytes:
    """Return one message: header, struct nfgenmsg, attributes."""
    body = struct.pack("=BB", family, 0) + struct.pack(">H", resource) + attributes
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, sequence, 0) + body


def _text_of(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _padded(length: int) -> int:
    return max((length + 3) & ~3, _NLMSGHDR.size)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & NLA_TYPE_MASK, data[4:length]
        data = data[max((length + 3) & ~3, 4) :]
