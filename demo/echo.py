"""Numbered ICMP echo requests, and the check of their replies.

Rule: a reply counts only if every byte is the one that its request determines; any other packet from a tunnel is
corrupted. Pure. Sources: RFC 791 (IPv4), RFC 792 (echo), RFC 1071 (checksum).
"""

import struct
from ipaddress import IPv4Address

_IPV4_HEADER = struct.Struct(">BBHHHBBH4s4s")
_ICMP_HEADER = struct.Struct(">BBHHH")
_PAYLOAD = struct.Struct(">QQ16s")  # number, when it was sent in ns, a pattern

_PATTERN = b"oxidize echo\x00\xff\x55\xaa"
_TTL = 64
_PROTOCOL_ICMP = 1
_ECHO_REQUEST = 8
_ECHO_REPLY = 0
_TOTAL_SIZE = _IPV4_HEADER.size + _ICMP_HEADER.size + _PAYLOAD.size


def checksum(data: bytes) -> int:
    """Return the Internet checksum of an even number of bytes; 0 for data that includes its correct checksum."""
    return -int.from_bytes(data, "big") % 0xFFFF


class EchoPath:
    """Echo requests from one tunnel address to another. identifier: of the ICMP header, 16 bits."""

    def __init__(self, source: IPv4Address, destination: IPv4Address, identifier: int) -> None:
        self._identifier = identifier
        self._addresses = destination.packed + source.packed  # in the order of a reply
        header = _IPV4_HEADER.pack(
            0x45, 0, _TOTAL_SIZE, 0, 0, _TTL, _PROTOCOL_ICMP, 0, source.packed, destination.packed
        )
        self._header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]

    def request(self, number: int, sent_ns: int) -> bytes:
        """Return the IP packet of request `number`, which carries `sent_ns`, nanoseconds."""
        payload = _PAYLOAD.pack(number, sent_ns, _PATTERN)
        sequence = number & 0xFFFF
        total = checksum(_ICMP_HEADER.pack(_ECHO_REQUEST, 0, 0, self._identifier, sequence) + payload)
        return self._header + _ICMP_HEADER.pack(_ECHO_REQUEST, 0, total, self._identifier, sequence) + payload

    def read_reply(self, packet: bytes) -> tuple[int, int] | None:
        """Return number and sent_ns of the request that `packet` answers; None if it answers none of this path."""
        if len(packet) != _TOTAL_SIZE or packet[0] != 0x45 or packet[9] != _PROTOCOL_ICMP:
            return None
        if packet[12:20] != self._addresses or checksum(packet[:20]) or checksum(packet[20:]):
            return None
        kind, code, _, identifier, sequence = _ICMP_HEADER.unpack_from(packet, 20)
        number, sent_ns, pattern = _PAYLOAD.unpack_from(packet, 28)
        if (kind, code, identifier, sequence) != (_ECHO_REPLY, 0, self._identifier, number & 0xFFFF):
            return None
        return (number, sent_ns) if pattern == _PATTERN else None
