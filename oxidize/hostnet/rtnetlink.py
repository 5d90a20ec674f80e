"""rtnetlink as a few typed requests, in pieces that take less than a millisecond each.

The rule: nothing here waits, and nothing reads or changes more than one piece at a time: the kernel answers within
sendmsg(2) and recv(2), and a dump of many thousand routes is an iterator over its datagrams. So a process that serves
may read and change its interface between two batches of packets.

Sources: rtnetlink(7), netlink(7), linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/fib_rules.h.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from oxidize.errors import OxidizeError
from oxidize.hostnet.part import Steps

# --- linux/netlink.h ---
_HEADER = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type
_REQUEST, _ACK, _DUMP_INTERRUPTED, _DUMP = 0x0001, 0x0004, 0x0010, 0x0300
_REPLACE, _EXCLUSIVE, _CREATE = 0x0100, 0x0200, 0x0400
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12
_TYPE_MASK = 0x3FFF

# --- linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h ---
_NEW_LINK, _GET_LINK = 16, 18
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_NEW_RULE, _DELETE_RULE, _GET_RULE = 32, 33, 34
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, mask of the flags to change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths, tos, table, protocol, scope, type, flags
_IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_GSO_MAX_SEGS = 3, 4, 13, 40
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_METRICS, _RTA_TABLE, _RTA_MARK = 1, 2, 4, 8, 15, 16
_RTAX_MTU = 2
_IFF_UP = 0x1
_IFA_F_NODAD = 0x02  # usable at once: on a point-to-point device no other host could hold the same address
_SHORT_TABLE_MAX = 255
_RTN_UNICAST, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 1, 253, 255

DATAGRAM_BYTES = 8_192  # of a dump: some 130 routes
DUMPS_MAX = 10  # attempts at a dump that changes meanwhile interrupt
# No such family, or no table yet: there is nothing to dump.
_NOTHING = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT})

_Item = TypeVar("_Item")

Key = tuple[int, bytes]  # prefix length and address (4 or 16 bytes), of a network or of an interface's address


class RtnetlinkError(OxidizeError):
    """The kernel refused a request. code: errno."""

    def __init__(self, code: int) -> None:
        super().__init__(f"rtnetlink: {os.strerror(code)}")
        self.code = code


class Link(NamedTuple):
    """An interface as the kernel has it. mtu: bytes. queue: packets. segments: that TCP hands over at once, at most.

    Of what the kernel does not report it is 0.
    """

    number: int
    mtu: int
    queue: int
    segments: int
    is_up: bool


class Route(NamedTuple):
    """A route as the kernel has it. key: its destination. link: the index of its interface, 0 for none or several."""

    key: Key
    table: int
    link: int
    protocol: int


class Way(NamedTuple):
    """The kernel's choice for packets. link: the index of their interface. mtu: bytes, 0 where the route has none."""

    link: int
    mtu: int


class Request(NamedTuple):
    """One change. kind: the message's type. flags: in addition to request and acknowledgement."""

    kind: int
    flags: int
    body: bytes


def set_link(
    index: int, *, mtu: int | None = None, queue: int | None = None, segments: int | None = None, up: bool = False
) -> Request:
    """Return the change of an interface's MTU, queue, segments or state."""
    flag = _IFF_UP if up else 0
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, flag, flag)
    body += _number(_IFLA_MTU, mtu) if mtu is not None else b""
    body += _number(_IFLA_TXQLEN, queue) if queue is not None else b""
    body += _number(_IFLA_GSO_MAX_SEGS, segments) if segments is not None else b""
    return Request(_NEW_LINK, 0, body)


def change_address(index: int, key: Key, *, add: bool) -> Request:
    """Return the addition or the removal of an interface's address."""
    prefix_length, address = key
    attributes = _attribute(_IFA_LOCAL, address) + _attribute(_IFA_ADDRESS, address)
    if add and len(address) == 16:
        attributes += _number(_IFA_FLAGS, _IFA_F_NODAD)
    body = _ADDRESS.pack(family_of(address), prefix_length, 0, 0, index) + attributes
    return Request(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, body) if add else Request(_DELETE_ADDRESS, 0, body)


def change_route(index: int, key: Key, table: int, protocol: int, *, add: bool) -> Request:
    """Return the addition or the removal of a route into an interface."""
    prefix_length, address = key
    scope = (_RT_SCOPE_LINK if len(address) == 4 else 0) if add else _RT_SCOPE_NOWHERE
    body = _route(index, key, table, (prefix_length, protocol, scope, _RTN_UNICAST if add else 0))
    return Request(_NEW_ROUTE, _CREATE | _EXCLUSIVE, body) if add else Request(_DELETE_ROUTE, 0, body)


def replace_route(index: int, key: Key, table: int, protocol: int) -> Request:
    """Return the addition of a route into an interface, in place of one to the same destination.

    Its scope is the global one, by which release 0.1.0 finds and removes it.
    """
    body = _route(index, key, table, (key[0], protocol, 0, _RTN_UNICAST))
    return Request(_NEW_ROUTE, _CREATE | _REPLACE, body)


def _route(index: int, key: Key, table: int, fields: tuple[int, int, int, int]) -> bytes:
    address = key[1]
    prefix_length, protocol, scope, kind = fields
    header = _ROUTE.pack(family_of(address), prefix_length, 0, 0, _short(table), protocol, scope, kind, 0)
    number = _number(_RTA_TABLE, table) if table > _SHORT_TABLE_MAX else b""
    return header + _attribute(_RTA_DST, address) + _number(_RTA_OIF, index) + number


def change_rule(family: int, action: int, flags: int, attributes: Iterable[tuple[int, bytes]], *, add: bool) -> Request:
    """Return the addition or the removal of a policy rule (struct fib_rule_hdr, FRA_*)."""
    header = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, action, flags)
    body = header + b"".join(_attribute(kind, value) for kind, value in attributes)
    return Request(_NEW_RULE, _CREATE | _EXCLUSIVE, body) if add else Request(_DELETE_RULE, 0, body)


def read_all(dump: Callable[[], Iterator[list[_Item]]]) -> Steps[list[_Item]]:
    """Return all items of a dump, which starts again where a change has interrupted it; raises RtnetlinkError."""
    for attempts_left in reversed(range(DUMPS_MAX)):
        items: list[_Item] = []
        try:
            for found in dump():
                items += found
                yield 0.0
        except RtnetlinkError as error:
            if error.code != errno.EINTR or not attempts_left:
                raise
        else:
            break
    return items


class RtnetlinkSocket:
    """A connection to the kernel's rtnetlink; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)  # dumps are filtered by the kernel, Linux 4.20
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> "RtnetlinkSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._socket.close()

    # --- Requests ---

    def link(self, name: str) -> Link:
        """Return an interface; raises RtnetlinkError (ENODEV) if there is none of this name."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        sequence = self._send([Request(_GET_LINK, 0, body)], _REQUEST)
        for kind, _, found_sequence, found in self._answers():
            if found_sequence == sequence and kind == _ERROR:
                raise RtnetlinkError(_code(found))
            if found_sequence == sequence and kind == _NEW_LINK:
                _, _, index, flags, _ = _LINK.unpack_from(found)
                attributes = _attributes(found, _LINK.size)
                mtu, queue, segments = (
                    _unpacked(attributes.get(each)) for each in (_IFLA_MTU, _IFLA_TXQLEN, _IFLA_GSO_MAX_SEGS)
                )
                return Link(index, mtu, queue, segments, bool(flags & _IFF_UP))
        raise RtnetlinkError(errno.ENODEV)

    def addresses(self, index: int) -> Iterator[list[Key]]:
        """Yield the addresses of an interface, IPv4 and IPv6."""
        for body in self._dump(_GET_ADDRESS, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, index)):
            found = []
            for message in body:
                family, prefix_length, _, _, at = _ADDRESS.unpack_from(message)
                if at == index and family in {socket.AF_INET, socket.AF_INET6}:
                    attributes = _attributes(message, _ADDRESS.size)
                    # IFA_ADDRESS is the far end where IPv4 has a peer address; IFA_LOCAL is absent for IPv6.
                    found.append((prefix_length, attributes.get(_IFA_LOCAL) or attributes[_IFA_ADDRESS]))
            yield found

    def routes_of(self, family: int, *, table: int = 0, index: int = 0, protocol: int = 0) -> Iterator[list[Route]]:
        """Yield the routes of a table, into an interface and with a protocol number; 0 is any."""
        any_host = bytes(4 if family == socket.AF_INET else 16)
        request = _ROUTE.pack(family, 0, 0, 0, _short(table), protocol, 0, 0, 0)
        request += _number(_RTA_TABLE, table) if table else b""
        request += _number(_RTA_OIF, index) if index else b""
        for body in self._dump(_GET_ROUTE, request):
            found = []
            for message in body:
                found_family, prefix_length, _, _, short, found_protocol, *_ = _ROUTE.unpack_from(message)
                attributes = _attributes(message, _ROUTE.size)
                found_table = _unpacked(attributes.get(_RTA_TABLE)) or short
                found_index = _unpacked(attributes.get(_RTA_OIF))
                if (
                    found_family == family
                    and table in {0, found_table}
                    and index in {0, found_index}
                    and protocol in {0, found_protocol}
                ):
                    key = (prefix_length, attributes.get(_RTA_DST) or any_host)
                    found.append(Route(key, found_table, found_index, found_protocol))
            yield found

    def rules(self, family: int) -> Iterator[list[tuple[bytes, dict[int, bytes]]]]:
        """Yield the policy rules of one version of IP: header (struct fib_rule_hdr) and attributes of each."""
        for body in self._dump(_GET_RULE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            yield [(each[: _ROUTE.size], _attributes(each, _ROUTE.size)) for each in body if each[0] == family]

    def interface_towards(self, address: bytes, source: bytes, mark: int = 0) -> int | None:
        """Return the index of the interface by which packets from `source` to `address` leave; None without a route.

        source: b"" for any.
        """
        way = self.way_towards(address, source, mark)
        return way.link if way is not None else None

    def way_towards(self, address: bytes, source: bytes, mark: int = 0) -> Way | None:
        """Return the way of packets from `source`, or from any address of this machine; None without a route."""
        body = _ROUTE.pack(family_of(address), 8 * len(address), 8 * len(source), 0, 0, 0, 0, 0, 0)
        body += _attribute(_RTA_DST, address) + (_attribute(_RTA_SRC, source) if source else b"")
        body += _number(_RTA_MARK, mark) if mark else b""
        sequence = self._send([Request(_GET_ROUTE, 0, body)], _REQUEST)
        for kind, _, found_sequence, found in self._answers():
            if found_sequence == sequence and kind == _NEW_ROUTE:
                attributes = _attributes(found, _ROUTE.size)
                metrics = _attributes(attributes.get(_RTA_METRICS, b""), 0)
                link = _unpacked(attributes.get(_RTA_OIF))
                return Way(link, _unpacked(metrics.get(_RTAX_MTU))) if link else None
        return None

    def change(self, requests: Sequence[Request]) -> list[int]:
        """Make changes in order; return the errno of each, 0 for success."""
        first = self._send(requests, _REQUEST | _ACK)
        codes = [errno.EIO] * len(requests)  # of one that is not answered
        for kind, _, sequence, body in self._answers():
            if kind == _ERROR and 0 <= sequence - first < len(codes):
                codes[sequence - first] = _code(body)
        return codes

    # --- Messages ---

    def _dump(self, kind: int, body: bytes) -> Iterator[list[bytes]]:
        """Yield the messages of a dump, a datagram at a time.

        Raises RtnetlinkError, with EINTR for a dump that a change has interrupted: its reader starts again.
        """
        sequence = self._send([Request(kind, 0, body)], _REQUEST | _DUMP)
        is_done = False
        while not is_done:
            found = []
            for answer, flags, found_sequence, content in self._datagram():
                if found_sequence != sequence:
                    continue
                if flags & _DUMP_INTERRUPTED:
                    raise RtnetlinkError(errno.EINTR)
                if answer == _ERROR and _code(content) not in _NOTHING:
                    raise RtnetlinkError(_code(content))
                if answer in {_ERROR, _DONE}:
                    code = -struct.unpack_from("=i", content)[0] if answer == _DONE and len(content) >= 4 else 0
                    if code > 0 and code not in _NOTHING:
                        raise RtnetlinkError(code)
                    is_done = True
                else:
                    found.append(content)
            yield found

    def _send(self, requests: Sequence[Request], flags: int) -> int:
        """Send requests in one datagram; return the sequence number of the first."""
        first = self._sequence + 1
        self._sequence += len(requests)
        data = b"".join(
            _HEADER.pack(_HEADER.size + len(each.body), each.kind, flags | each.flags, sequence, 0) + each.body
            for sequence, each in enumerate(requests, start=first)
        )
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise RtnetlinkError(error.errno or errno.EIO) from error
        return first

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, sequence and body of each message that has arrived."""
        with_more = True
        while with_more:
            with_more = False
            try:
                for message in self._datagram():
                    with_more = True
                    yield message
            except RtnetlinkError as error:
                if error.code != errno.EAGAIN:
                    raise
                return

    def _datagram(self) -> list[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(DATAGRAM_BYTES)
        except OSError as error:
            raise RtnetlinkError(error.errno or errno.EIO) from error
        found = []
        at = 0
        while len(data) - at >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            found.append((kind, flags, sequence, data[at + _HEADER.size : at + length]))
            at += max((length + 3) & ~3, _HEADER.size)
        return found


def family_of(address: bytes) -> int:
    """Return AF_INET or AF_INET6 for an address of 4 or 16 bytes."""
    return int(socket.AF_INET if len(address) == 4 else socket.AF_INET6)


def _short(table: int) -> int:
    """Return the number of a table as the header has it, RT_TABLE_UNSPEC for one that only fits an attribute."""
    return table if table <= _SHORT_TABLE_MAX else 0


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _unpacked(value: bytes | None) -> int:
    return int.from_bytes(value, sys.byteorder) if value is not None else 0


def _code(body: bytes) -> int:
    """Return the errno of an NLMSG_ERROR, 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", body)[0])


def _attributes(data: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while len(data) - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return found
