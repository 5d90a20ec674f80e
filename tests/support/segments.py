"""TCP segments, and the cutting of super-packets into them, as Linux's tcp_gso_segment does it."""

import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address

from oxidize.protocol.icmp import internet_checksum, ipv6_pseudo_header

VNET_HEADER = struct.Struct("=BBHHHH")
GSO_NONE, GSO_TCPV4, GSO_TCPV6 = 0, 1, 4
ACK, PUSH = 0x10, 0x08


@dataclass(frozen=True)
class Segment:
    """A TCP segment. damage: what is added to its right checksum."""

    source: str = "10.0.0.1"
    destination: str = "10.0.0.2"
    sequence: int = 1
    payload: bytes = bytes(600)
    flags: int = ACK
    options: bytes = bytes.fromhex("0101080a0000000100000002")
    window: int = 500
    ports: tuple[int, int] = (1000, 2000)
    service: int = 0
    fragment: int = 0x4000
    ident: int = 0
    damage: int = 0

    def packet(self) -> bytes:
        """Return it in an IP packet."""
        source, destination = ip_address(self.source).packed, ip_address(self.destination).packed
        size = 20 + len(self.options)
        fields = (*self.ports, self.sequence % (1 << 32), 7, size << 10 | self.flags, self.window)
        tcp = struct.pack(">HHIIHHHH", *fields, 0, 0) + self.options + self.payload
        right = internet_checksum(ipv6_pseudo_header(source, destination, len(tcp), 6) + tcp)
        tcp = tcp[:16] + struct.pack(">H", (right + self.damage) % 0xFFFF) + tcp[18:]
        if len(source) == 16:
            return struct.pack(">IHBB", 6 << 28 | self.service << 20, len(tcp), 6, 64) + source + destination + tcp
        header = struct.pack(
            ">BBHHHBBH", 0x45, self.service, 20 + len(tcp), self.ident % 65_536, self.fragment, 64, 6, 0
        )
        header += source + destination
        return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:] + tcp


def run(first: Segment, count: int) -> list[Segment]:
    """Return segments as a sender's kernel cuts them: one behind the other."""
    size = len(first.payload)
    return [
        replace(first, sequence=first.sequence + number * size, ident=first.ident + number) for number in range(count)
    ]


def has_right_checksum(packet: bytes) -> bool:
    """Return whether the TCP checksum of a packet is right, as the kernel would find."""
    ip_size, addresses = (40, packet[8:40]) if packet[0] >> 4 == 6 else (20, packet[12:20])
    tcp = packet[ip_size:]
    return internet_checksum(addresses + struct.pack(">II", len(tcp), 6) + tcp) == 0


def cut(frame: bytes) -> list[bytes]:
    """Return the packets that the kernel makes of what is written with a virtio header."""
    flags, kind, header_size, segment_size, start, offset = VNET_HEADER.unpack_from(frame)
    packet = frame[VNET_HEADER.size :]
    assert (flags, start, offset) == (0, 0, 0)
    if kind == GSO_NONE:
        assert (header_size, segment_size) == (0, 0)
        return [packet]
    is_ipv4 = packet[0] >> 4 == 4
    assert kind == (GSO_TCPV4 if is_ipv4 else GSO_TCPV6)
    ip_size = 20 if is_ipv4 else 40
    assert packet[9 if is_ipv4 else 6] == 6
    assert header_size == ip_size + (packet[ip_size + 12] >> 4) * 4
    length = struct.unpack_from(">H", packet, 2 if is_ipv4 else 4)[0] + (0 if is_ipv4 else 40)
    assert length == len(packet) <= 65_535
    assert not is_ipv4 or internet_checksum(packet[:20]) == 0
    payload = packet[header_size:]
    assert len(payload) > segment_size > 0
    parts = [payload[at : at + segment_size] for at in range(0, len(payload), segment_size)]
    return [_segment(packet[:header_size], ip_size, parts, number) for number in range(len(parts))]


def _segment(header: bytes, ip_size: int, parts: list[bytes], number: int) -> bytes:
    ip, tcp, part = bytearray(header[:ip_size]), bytearray(header[ip_size:]), parts[number]
    (sequence,) = struct.unpack_from(">I", tcp, 4)
    struct.pack_into(">I", tcp, 4, (sequence + number * len(parts[0])) % (1 << 32))
    if number < len(parts) - 1:
        tcp[13] &= ~(PUSH | 0x01) & 0xFF
    if ip_size == 20:
        (ident,) = struct.unpack_from(">H", ip, 4)
        struct.pack_into(">HH", ip, 2, ip_size + len(tcp) + len(part), (ident + number) % 65_536)
        struct.pack_into(">H", ip, 10, 0)
        struct.pack_into(">H", ip, 10, internet_checksum(bytes(ip)))
        addresses = bytes(ip[12:20])
    else:
        struct.pack_into(">H", ip, 4, len(tcp) + len(part))
        addresses = bytes(ip[8:40])
    struct.pack_into(">H", tcp, 16, 0)
    body = bytes(tcp) + part
    checksum = internet_checksum(addresses + struct.pack(">II", len(body), 6) + body)
    return bytes(ip) + body[:16] + struct.pack(">H", checksum) + body[18:]


def comparable(packet: bytes) -> bytes:
    """Return a packet without what means nothing: the ID of one that is never fragmented (RFC 6864, section 4.1).

    A checksum of 0 and one of 0xFFFF are the same sum.
    """
    is_atomic = packet[0] == 0x45 and packet[6:8] == b"\x40\x00" and packet[9] == 6
    if is_atomic:
        packet = packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    at = (20 if packet[0] >> 4 == 4 else 40) + 16
    return packet[:at] + bytes(2) + packet[at + 2 :] if packet[at : at + 2] == b"\xff\xff" else packet
