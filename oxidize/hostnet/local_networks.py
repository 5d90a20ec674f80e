"""The networks that this machine is connected to directly, as a kill switch lets packets into them.

The rule: read from the kernel when it matters, and only networks of addresses that are not routed on the Internet. Who
runs a wireless network chooses its addresses, and could choose those of any host on the Internet to make traffic to
that host local ("TunnelCrack", LocalNet attacks, 2023).

Source: rtnetlink(7), RTM_GETADDR. It is read by hand: the library that other modules use takes 0.2 s to import, which
a restart would wait for.
"""

import errno
import os
import socket
import struct
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from oxidize.config.values import Network
from oxidize.errors import OxidizeError

# RFC 1918, 3927, 4193, 4291, 6598; and those of documentation and benchmarks: RFC 2544, 3849, 5737.
NOT_ON_THE_INTERNET: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10", "100.64.0.0/10"),
        *("198.18.0.0/15", "2001:db8::/32", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
    )
)

_NLMSGHDR = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x0001, 0x0300, 0x0010
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS = 1  # of a point-to-point link: the other side's
_PART_BYTES = 65_536
_ANSWER_SECS_MAX = 2.0  # the kernel answers at once
_READS_MAX = 10


class LocalNetwork(NamedTuple):
    """A network, and the name of the interface that leads there."""

    network: Network
    interface: str


def read_local_networks() -> list[LocalNetwork]:
    """Return the networks of all interfaces except the loopback one, without duplicates; raises OxidizeError."""
    try:
        for _ in range(_READS_MAX):
            found = _read_once()
            if found is not None:
                return found
    except OSError as error:
        raise OxidizeError(f"the addresses of this machine cannot be read: {error.strerror or error}") from error
    raise OxidizeError("the addresses of this machine change faster than they can be read")


def _read_once() -> list[LocalNetwork] | None:
    """Return the networks, or None where an address changed between the parts of the answer."""
    found: dict[LocalNetwork, None] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(_ANSWER_SECS_MAX)
        size, flags = _NLMSGHDR.size + _IFADDRMSG.size, _NLM_F_REQUEST | _NLM_F_DUMP
        asking.sendto(_NLMSGHDR.pack(size, _RTM_GETADDR, flags, 1, 0) + bytes(_IFADDRMSG.size), (0, 0))
        while True:
            data = asking.recv(_PART_BYTES)
            while len(data) >= _NLMSGHDR.size:
                length, kind, flags, _, _ = _NLMSGHDR.unpack_from(data)
                if flags & _NLM_F_DUMP_INTR:
                    return None
                if kind == _NLMSG_DONE:
                    return list(found)
                body = data[_NLMSGHDR.size : length]
                if kind == _NLMSG_ERROR:
                    raise _refusal(body)
                local = _local_network(body) if kind == _RTM_NEWADDR else None
                if local is not None:
                    found[local] = None
                data = data[max((length + 3) & ~3, _NLMSGHDR.size) :]


def _local_network(body: bytes) -> LocalNetwork | None:
    """Return the network of one RTM_NEWADDR, or None for one that no packet may leave for past a kill switch."""
    _, prefix_length, _, _, index = _IFADDRMSG.unpack_from(body)
    address, at = None, _IFADDRMSG.size
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if kind == _IFA_ADDRESS:
            address = ip_address(body[at + 4 : at + length])
        at += max((length + 3) & ~3, 4)
    if address is None or address.is_loopback:
        return None
    network = ip_network((address, prefix_length), strict=False)
    try:
        name = socket.if_indextoname(index)
    except OSError:  # it has gone since
        return None
    return LocalNetwork(network, name) if _is_local(network) else None


def _is_local(network: Network) -> bool:
    return any(
        network.prefixlen >= outer.prefixlen and network.network_address in outer for outer in NOT_ON_THE_INTERNET
    )


def _refusal(body: bytes) -> OSError:
    code = -struct.unpack_from("=i", body)[0] or errno.EIO
    return OSError(code, os.strerror(code))
