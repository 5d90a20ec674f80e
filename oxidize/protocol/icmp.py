"""ICMP and ICMPv6: the Internet checksum, and the answer to a packet that cannot be delivered.

The rule: a packet has at most one answer, and none that the standards forbid (RFC 1122, section 3.2.2; RFC 1812,
section 4.3.2.7; RFC 4443, section 2.4): never an answer to an ICMP error, to a packet whose source or destination is
not a single host, or to a fragment other than the first. So no two machines can answer each other forever.

The answer comes from the address that was asked for, not from the tunnel's own: the kernel refuses an IPv4 packet with
a local source that comes in by an interface, whereas a reply of the destination passes every filter of reverse paths,
and is forwarded to whichever host or peer has sent the packet.
"""

import struct

from oxidize.protocol.allowed_ips import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, Buffer, inner_length

HOP_LIMIT = 64

PROTOCOL_ICMP = 1
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

DONT_FRAGMENT = 0x4000
_FRAGMENT_OFFSET_MASK = 0x1FFF
_IPV6_FRAGMENT_OFFSET_MASK = 0xFFF8

# RFC 791: version and header length, type of service, total length, identification, flags and fragment offset, time to
# live, protocol, checksum, source, destination.
IPV4_HEADER = struct.Struct(">BBHHHBBH4s4s")
# RFC 8200: version, traffic class and flow label, payload length, next header, hop limit, source, destination.
IPV6_HEADER = struct.Struct(">IHBB16s16s")
_ERROR_HEADER = struct.Struct(">BBHI")  # type, code, checksum, unused

# As the kernel's WireGuard answers: host unreachable (RFC 792), address unreachable (RFC 4443, section 3.1).
_UNREACHABLE, _HOST_UNREACHABLE = 3, 1
_UNREACHABLE_V6, _ADDRESS_UNREACHABLE = 1, 3
# Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122, section 3.2.2).
_ICMP_ERRORS = frozenset((3, 4, 5, 11, 12))
_ICMPV6_INFORMATION = range(128, 256)  # the other half is errors (RFC 4443, section 2.1)
_ICMPV6_REDIRECT = 137
_INTERNETWORK_CONTROL = 0xC0  # the precedence of an ICMP error (RFC 1812, section 4.3.2.5)

_LONGEST_ERROR = 576  # bytes, with its header (RFC 1812, section 4.3.2.3)
_LONGEST_ERROR_V6 = 1280  # bytes, the least MTU of IPv6 (RFC 4443, section 2.4)

EXTENSION_HEADERS_MAX = 8  # of IPv6; a packet with more has no answer
_EXTENSION_HEADERS = frozenset((0, 43, 60))  # hop-by-hop options, routing, destination options (RFC 8200, section 4)
_FRAGMENT_HEADER = 44
_FRAGMENT_HEADER_SIZE = 8


def internet_checksum(data: bytes) -> int:
    """Return the Internet checksum of data (RFC 1071); of data that holds its own right checksum it is 0."""
    number = int.from_bytes(data, "big")
    return -(number << 8 if len(data) % 2 else number) % 0xFFFF


def ipv6_pseudo_header(source: bytes, destination: bytes, length: int, protocol: int) -> bytes:
    """Return what a checksum over `length` bytes of a protocol covers besides them (RFC 8200, section 8.1)."""
    return source + destination + struct.pack(">II", length, protocol)


def ipv4_header(service: int, length: int, protocol: int, source: bytes, destination: bytes) -> bytes:
    """Return the header of a packet that must not be fragmented; length: bytes behind the header.

    Such a packet needs no identification (RFC 6864, section 4.1).
    """
    total = IPV4_HEADER_SIZE + length
    header = IPV4_HEADER.pack(0x45, service, total, 0, DONT_FRAGMENT, HOP_LIMIT, protocol, 0, source, destination)
    return header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:]


def is_single_host(address: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is a single host's (RFC 1122, section 3.2.1.3; RFC 4291, section 2.7).

    The broadcast addresses of networks cannot be told from hosts.
    """
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127
    return address[0] != 0xFF and address != bytes(16)


def unreachable(packet: Buffer) -> bytes | None:
    """Return the ICMP or ICMPv6 error that tells the sender of a packet that it cannot be delivered, or None."""
    length = inner_length(packet)
    if not length:
        return None
    data = bytes(packet[:length])
    return _unreachable_ipv4(data) if data[0] >> 4 == 4 else _unreachable_ipv6(data)


def _unreachable_ipv4(packet: bytes) -> bytes | None:
    _, _, _, _, fragment, _, protocol, _, source, destination = IPV4_HEADER.unpack_from(packet)
    if fragment & _FRAGMENT_OFFSET_MASK or not (is_single_host(source) and is_single_host(destination)):
        return None
    payload_at = (packet[0] & 0x0F) * 4
    if protocol == PROTOCOL_ICMP and (len(packet) <= payload_at or packet[payload_at] in _ICMP_ERRORS):
        return None
    quoted = packet[: _LONGEST_ERROR - IPV4_HEADER_SIZE - _ERROR_HEADER.size]
    error = _error(_UNREACHABLE, _HOST_UNREACHABLE, quoted, pseudo_header=b"")
    return ipv4_header(_INTERNETWORK_CONTROL, len(error), PROTOCOL_ICMP, destination, source) + error


def _unreachable_ipv6(packet: bytes) -> bytes | None:
    _, _, _, _, source, destination = IPV6_HEADER.unpack_from(packet)
    if not (is_single_host(source) and is_single_host(destination)) or not _is_answerable_ipv6(packet):
        return None
    quoted = packet[: _LONGEST_ERROR_V6 - IPV6_HEADER_SIZE - _ERROR_HEADER.size]
    length = _ERROR_HEADER.size + len(quoted)
    pseudo_header = ipv6_pseudo_header(destination, source, length, PROTOCOL_ICMPV6)
    error = _error(_UNREACHABLE_V6, _ADDRESS_UNREACHABLE, quoted, pseudo_header)
    return IPV6_HEADER.pack(6 << 28, length, PROTOCOL_ICMPV6, HOP_LIMIT, destination, source) + error


def _is_answerable_ipv6(packet: bytes) -> bool:
    """Return whether a packet is known to carry no ICMPv6 error, redirect or later fragment: no header hides it."""
    protocol, at = packet[6], IPV6_HEADER_SIZE
    for _ in range(EXTENSION_HEADERS_MAX):
        if protocol == PROTOCOL_ICMPV6:
            return len(packet) > at and packet[at] in _ICMPV6_INFORMATION and packet[at] != _ICMPV6_REDIRECT
        if protocol != _FRAGMENT_HEADER and protocol not in _EXTENSION_HEADERS:
            return True
        if len(packet) < at + _FRAGMENT_HEADER_SIZE:
            return False
        if protocol != _FRAGMENT_HEADER:
            protocol, at = packet[at], at + 8 + 8 * packet[at + 1]
        elif int.from_bytes(packet[at + 2 : at + 4], "big") & _IPV6_FRAGMENT_OFFSET_MASK:
            return False
        else:
            protocol, at = packet[at], at + _FRAGMENT_HEADER_SIZE
    return False


def _error(kind: int, code: int, quoted: bytes, pseudo_header: bytes) -> bytes:
    """Return an ICMP or ICMPv6 error about the packet of which the begin is quoted."""
    error = _ERROR_HEADER.pack(kind, code, 0, 0) + quoted
    checksum = internet_checksum(pseudo_header + error)
    return _ERROR_HEADER.pack(kind, code, checksum, 0) + quoted
