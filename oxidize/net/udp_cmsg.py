"""Control messages of UDP, numbers of socket options, and the cutting of a batch into segmented sends.

The rule: everything here is a function of bytes; no system call is made. Sources: udp(7) UDP_SEGMENT and UDP_GRO, ip(7)
IP_PKTINFO, ipv6(7) IPV6_PKTINFO, and Linux's uapi headers for the numbers that Python 3.11 does not name.
"""

import struct
from collections.abc import Sequence
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_UDP,
    IPV6_PKTINFO,
    inet_ntop,
    inet_pton,
)
from sys import byteorder

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.endpoint import Endpoint

# --- linux/udp.h ---
UDP_SEGMENT = 103
UDP_GRO = 104
# --- linux/in.h ---
IP_PKTINFO = 8
IP_RECVERR = 11
# --- linux/in6.h ---
IPV6_RECVERR = 25
RECEIVE_ERRORS = ((IPPROTO_IP, IP_RECVERR), (IPPROTO_IPV6, IPV6_RECVERR))
# --- asm-generic/socket.h ---
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
# linux/sock_diag.h: where SO_MEMINFO's array of u32 has the bytes in the receive queue, its room, and the drop counter.
MEMINFO_QUEUED, MEMINFO_ROOM, MEMINFO_DROPS = 0, 1, 8

# The kernel takes 128 segments (an older one 64); more than a batch would overflow a peer's default receive buffer.
SEGMENTS_MAX = BATCH_PACKETS_MAX
# One segmented send in bytes, all datagrams together: what one IPv4 and one IPv6 datagram can both carry.
SEGMENTED_BYTES_MAX = 65_487

ControlMessage = tuple[int, int, bytes]
Datagram = bytes | bytearray | memoryview
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_PKTINFO4 = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, address in the header
_PKTINFO6 = struct.Struct("=16si")  # struct in6_pktinfo: address, interface
# struct sock_extended_err: errno, origin, type, code, padding, info, data; the address of the offender follows it.
_EXTENDED_ERROR = struct.Struct("=IBBBxII")
_OFFENDER4 = struct.Struct("=HH4s")  # struct sockaddr_in: family, port, address
_OFFENDER6 = struct.Struct("=HHI16s")  # struct sockaddr_in6: family, port, flow, address, and the scope
_SEGMENT_SIZE = struct.Struct("=H")  # a u16 on the way out (an int32 is EINVAL) ...
_GRO_SIZE = struct.Struct("=i")  # ... and an int32 on the way in


def split_runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut datagrams of these sizes in bytes into runs [start, end) that may each leave in one segmented send.

    In a run all sizes are equal, only the last may be shorter; SEGMENTS_MAX and SEGMENTED_BYTES_MAX hold for every run
    of two or more. An empty datagram runs alone: segmentation cannot express it.
    """
    count = len(sizes)
    runs = []
    start = 0
    while start < count:
        size = sizes[start]
        limit = start + (min(SEGMENTS_MAX, SEGMENTED_BYTES_MAX // size or 1) if size else 1)
        limit = min(limit, count)
        # Nearly every batch is one run, which one pass in C confirms.
        end = limit if sizes[start:limit].count(size) == limit - start else start + 1
        while end < limit and sizes[end] == size:
            end += 1
        if end < limit and 0 < sizes[end] < size:
            end += 1
        runs.append((start, end))
        start = end
    return runs


def segment_message(size: int) -> ControlMessage:
    """Return the control message that makes the kernel cut a send into datagrams of `size` bytes."""
    return IPPROTO_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(size)


def read_control(messages: Sequence[ControlMessage]) -> tuple[int, bytes]:
    """Return a receive's segment size in bytes (0: a single datagram) and its raw packet info (empty: none came)."""
    segment_size = 0
    packet_info = b""
    for level, kind, data in messages:
        if level == IPPROTO_UDP:
            if kind == UDP_GRO:
                (segment_size,) = _GRO_SIZE.unpack_from(data)
        elif (level == IPPROTO_IPV6 and kind == IPV6_PKTINFO) or (level == IPPROTO_IP and kind == IP_PKTINFO):
            # A dual stack socket may carry both for one IPv4 packet (systemd sets both); they say the same.
            packet_info = data
    return segment_size, packet_info


def read_error(messages: Sequence[ControlMessage]) -> tuple[int, bytes]:
    """Return the errno of a message from the error queue (ip(7), IP_RECVERR), 0 for none, and who reports it.

    The latter is the address from which the ICMP error came (SO_EE_OFFENDER), 4 or 16 bytes, empty if not known.
    """
    for level, kind, data in messages:
        if (level, kind) in RECEIVE_ERRORS and len(data) >= _EXTENDED_ERROR.size:
            number, *_ = _EXTENDED_ERROR.unpack_from(data)
            return number, _offender(data[_EXTENDED_ERROR.size :])
    return 0, b""


def _offender(data: bytes) -> bytes:
    family = int.from_bytes(data[:2], byteorder)
    if family == AF_INET and len(data) >= _OFFENDER4.size:
        return bytes(_OFFENDER4.unpack_from(data)[2])
    if family == AF_INET6 and len(data) >= _OFFENDER6.size:
        return _unmapped(_OFFENDER6.unpack_from(data)[3])
    return b""


def endpoint_from(address: SocketAddress, packet_info: bytes) -> Endpoint:
    """Return the endpoint for a received socket address and its raw packet info (empty: local address not known)."""
    host, port = address[:2]
    family = AF_INET6 if ":" in host else AF_INET
    remote = _unmapped(inet_pton(family, host.partition("%")[0]))
    scope_id = address[3] if len(address) == 4 else 0
    local, interface = b"", 0
    if len(packet_info) == _PKTINFO4.size:
        interface, local, _ = _PKTINFO4.unpack(packet_info)
    elif len(packet_info) == _PKTINFO6.size:
        local, interface = _PKTINFO6.unpack(packet_info)
        local = _unmapped(local)
    if len(local) != len(remote):
        local, interface = b"", 0
    return Endpoint(remote, port, scope_id, local, interface)


def path_to(endpoint: Endpoint, family: int) -> tuple[SocketAddress, list[ControlMessage]] | None:
    """Return the socket address and control messages that lead to an endpoint from a socket of this family.

    None: an IPv4 socket cannot reach an IPv6 address.
    """
    address, port, scope_id, local, interface = endpoint
    if family == AF_INET:
        if len(address) != 4:
            return None
        source = [(IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, local, bytes(4)))] if local else []
        return (inet_ntop(AF_INET, address), port), source
    # Interface 0 leaves the route to the kernel; a link-local address means nothing without its interface.
    index = (interface or scope_id) if is_link_local(local) else 0
    source = [(IPPROTO_IPV6, IPV6_PKTINFO, _PKTINFO6.pack(_mapped(local), index))] if local else []
    return (inet_ntop(AF_INET6, _mapped(address)), port, 0, scope_id), source


def is_link_local(address: bytes) -> bool:
    """Return whether an address is one of fe80::/10 (16 bytes)."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _unmapped(address: bytes) -> bytes:
    return address[12:] if address.startswith(_MAPPED_PREFIX) and len(address) == 16 else address


def _mapped(address: bytes) -> bytes:
    return _MAPPED_PREFIX + address if len(address) == 4 else address
