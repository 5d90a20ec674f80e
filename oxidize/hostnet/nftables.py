"""The nftables messages of `nat` and `packet_filter`: tables, chains and rules, and the socket that they go through.

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

from oxidize.errors import OxidizeError
from oxidize.hostnet.nft_expressions import attribute, nested, number, text
from oxidize.hostnet.part import Steps, run

# --- linux/netlink.h ---
NETLINK_NETFILTER = 12
_NLMSGHDR = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
NLM_F_REQUEST, NLM_F_ACK = 0x0001, 0x0004
NLM_F_DUMP_INTR = 0x0010
NLM_F_DUMP = 0x0300
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x0200, 0x0400, 0x0800
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF

# --- linux/netfilter/nfnetlink.h ---
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFNL_SUBSYS_NFTABLES = 10

# --- linux/netfilter.h ---
NFPROTO_INET = 1
NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING = 0, 2, 4

# --- linux/netfilter/nf_tables.h: messages ---
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 3, 6, 7, 8
NFT_TABLE_F_DORMANT, NFT_TABLE_F_OWNER = 0x1, 0x2
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_OWNER = 1, 2, 7
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE = 1, 3, 4, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA = 1, 2, 4, 7

# --- libnftnl/udata.h: data of a rule that the kernel keeps and does not read ---
_UDATA_COMMENT = 0  # which nft(8) shows
_UDATA_DIGEST = 0x6F  # this program's: of the expressions
_COMMENT_BYTES = 120
_DIGEST_BYTES = 16

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


# --- Messages ---


def new_table(name: str, *, exclusive: bool) -> Message:
    """Make a table that belongs to the socket. exclusive: it must not exist yet."""
    flags = NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0)
    return Message(NFT_MSG_NEWTABLE, flags, text(NFTA_TABLE_NAME, name) + number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER))


def new_table_without_owner(name: str) -> Message:
    """Make a table that stays until it is removed, or wake it if it is dormant; a no-op if it exists."""
    return Message(NFT_MSG_NEWTABLE, NLM_F_CREATE, text(NFTA_TABLE_NAME, name) + number(NFTA_TABLE_FLAGS, 0))


def delete_table(name: str) -> Message:
    """Remove a table with its chains and rules."""
    return Message(NFT_MSG_DELTABLE, 0, text(NFTA_TABLE_NAME, name))


def new_chain(table: str, name: str, kind: str, hook: int, priority: int) -> Message:
    """Make a base chain that accepts packets that none of its rules decides; a no-op if it exists."""
    at = nested(NFTA_CHAIN_HOOK, number(NFTA_HOOK_HOOKNUM, hook), number(NFTA_HOOK_PRIORITY, priority))
    attributes = text(NFTA_CHAIN_TABLE, table) + text(NFTA_CHAIN_NAME, name) + at + text(NFTA_CHAIN_TYPE, kind)
    return Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, attributes)


def delete_rules(table: str) -> Message:
    """Remove all rules of a table, and keep its chains."""
    return Message(NFT_MSG_DELRULE, 0, text(NFTA_RULE_TABLE, table))


def new_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """Add a rule at the end of a chain."""
    names = text(NFTA_RULE_TABLE, table) + text(NFTA_RULE_CHAIN, chain)
    attributes = names + nested(NFTA_RULE_EXPRESSIONS, *expressions)
    return Message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes)


def new_marked_rule(table: str, rule: Rule) -> Message:
    """Add a rule at the end of its chain, with the data by which `NftSocket.rules` finds it again."""
    return with_data(new_rule(table, rule.chain, rule.expressions), rule.identity[1])


def with_data(rule: Message, data: bytes) -> Message:
    """Add data that the kernel keeps with a new rule, and `NftSocket.rules` returns."""
    return rule._replace(attributes=rule.attributes + attribute(NFTA_RULE_USERDATA, data))


def digest_data(content: bytes) -> bytes:
    """Return data for a rule from which the digest of a content can be told; nft(8) does not show it."""
    digest = hashlib.sha256(content).digest()[:_DIGEST_BYTES]
    return bytes([_UDATA_DIGEST, len(digest)]) + digest


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

    def rules(self, table: str, chain: str | None = None) -> Steps[list[tuple[str, bytes]]]:
        """Return chain and kept data of each rule of a table, in order (`Rule.identity`); raises as `tables` does.

        chain: the only one to look at; None for all.
        """
        where = text(NFTA_RULE_TABLE, table) + (text(NFTA_RULE_CHAIN, chain) if chain is not None else b"")
        read = yield from self._dump(NFT_MSG_GETRULE, NFT_MSG_NEWRULE, where)
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
