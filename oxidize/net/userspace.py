"""The network without a TUN device: the server's tunnel addresses answer echo requests inside the process.

The rule: a packet in makes at most one packet out, which carries the same payload. Answered are ICMP echo (RFC 792),
ICMPv6 echo (RFC 4443, section 4.2) and UDP echo (RFC 862, port 7), to the addresses given and to no other. Anything
else is dropped silently: damaged packets, fragments, IPv6 extension headers, sources that cannot be answered.

Checksums (RFC 1071) are one's complement sums, which do not depend on the order of the words, and a whole packet of 16
bit words, read as one number, leaves the same remainder by 65535. So a reply's checksum is the request's, corrected by
what changed (RFC 1624): damage done to the payload in between stays visible to the receiver.
"""

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from oxidize.protocol.allowed_ips import IPV6_HEADER_SIZE, Buffer, inner_length
from oxidize.protocol.icmp import (
    HOP_LIMIT,
    IPV4_HEADER,
    IPV6_HEADER,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
    internet_checksum,
    ipv4_header,
    ipv6_pseudo_header,
    is_single_host,
)
from oxidize.protocol.inner_packets import Frame
from oxidize.protocol.super_packets import SuperPacket

# Replies that wait to be read. The loop reads after each batch of at most BATCH_PACKETS_MAX packets that it has
# written, so this leaves room for a delay; beyond it the oldest reply is dropped.
PENDING_REPLIES_MAX = 4096

ICMP_ECHO_REPLY = 0
ICMP_ECHO_REQUEST = 8
ICMPV6_ECHO_REQUEST = 128
ICMPV6_ECHO_REPLY = 129
UDP_ECHO_PORT = 7

_ECHO_HEADER_SIZE = 8  # of ICMP and ICMPv6 echo, and of UDP
_FRAGMENT_MASK = 0x3FFF  # "more fragments" and the offset


class UserspaceNetwork:
    """A network whose only hosts are the server's own tunnel addresses: the data path's `Tunnel` without an interface.

    replies_dropped: replies that were not read in time.
    """

    header_size = 0
    takes_super_packets = False

    def __init__(self, addresses: Iterable[IPv4Address | IPv6Address | IPv4Interface | IPv6Interface]) -> None:
        self._addresses = frozenset(address.packed for address in addresses)
        self._replies: deque[bytes] = deque(maxlen=PENDING_REPLIES_MAX)
        self.replies_dropped = 0

    @property
    def pending(self) -> int:
        """The number of replies that wait to be read."""
        return len(self._replies)

    def fileno(self) -> None:
        """Return None: there is nothing to poll. Replies are ready as soon as `write_packets` returns."""

    def write_packets(self, packets: Sequence[Buffer]) -> int:
        """Deliver packets to the addresses they are for; return how many had no answer. Copies what it keeps."""
        unanswered = 0
        for packet in packets:
            reply = answer(bytes(packet), self._addresses)
            if reply is None:
                unanswered += 1
                continue
            if len(self._replies) == PENDING_REPLIES_MAX:
                self.replies_dropped += 1  # the deque drops its oldest
            self._replies.append(reply)
        return unanswered

    def write_frames(self, frames: Sequence[Frame]) -> int:
        """Deliver frames, which are packets here."""
        return self.write_packets([frame for frame in frames if not isinstance(frame, SuperPacket)])

    def read_packets(self, limit: int) -> list[bytes]:
        """Return at most `limit` replies, oldest first."""
        replies = self._replies
        return [replies.popleft() for _ in range(min(limit, len(replies)))]


def answer(packet: bytes, addresses: frozenset[bytes]) -> bytes | None:
    """Return the reply of the host with these addresses, 4 or 16 bytes each, to a packet, or None."""
    length = inner_length(packet)
    if not length:
        return None
    if packet[0] >> 4 == 4:
        return _answer_ipv4(packet[:length], addresses)
    return _answer_ipv6(packet[:length], addresses)


def _answer_ipv4(packet: bytes, addresses: frozenset[bytes]) -> bytes | None:
    _, service, _, _, fragment, _, protocol, _, source, destination = IPV4_HEADER.unpack_from(packet)
    header_size = (packet[0] & 0x0F) * 4
    if destination not in addresses or not is_single_host(source):
        return None
    if fragment & _FRAGMENT_MASK or internet_checksum(packet[:header_size]):
        return None
    payload = packet[header_size:]  # options end with the header, and are not sent back
    if protocol == PROTOCOL_ICMP:
        reply = _answer_icmp(payload, ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY, pseudo_header=b"")
    elif protocol == PROTOCOL_UDP:
        reply = _answer_udp(payload, source + destination, checksum_required=False)
    else:
        return None
    if reply is None:
        return None
    # The differentiated service is the request's (RFC 1349, section 5.1), congestion marks are not.
    return ipv4_header(service & 0xFC, len(reply), protocol, destination, source) + reply


def _answer_ipv6(packet: bytes, addresses: frozenset[bytes]) -> bytes | None:
    flow, _, protocol, _, source, destination = IPV6_HEADER.unpack_from(packet)
    if destination not in addresses or not is_single_host(source):
        return None
    payload = packet[IPV6_HEADER_SIZE:]
    if protocol == PROTOCOL_ICMPV6:
        pseudo_header = ipv6_pseudo_header(source, destination, len(payload), protocol)
        reply = _answer_icmp(payload, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY, pseudo_header)
    elif protocol == PROTOCOL_UDP:
        reply = _answer_udp(payload, source + destination, checksum_required=True)
    else:
        return None
    if reply is None:
        return None
    flow &= 0xFFC0_0000  # version and differentiated service
    header = IPV6_HEADER.pack(flow, len(reply), protocol, HOP_LIMIT, destination, source)
    return header + reply


def _answer_icmp(message: bytes, request_type: int, reply_type: int, pseudo_header: bytes) -> bytes | None:
    """Return the echo reply to an ICMP or ICMPv6 message: only type and checksum differ."""
    if len(message) < _ECHO_HEADER_SIZE or message[:2] != bytes((request_type, 0)):
        return None
    if internet_checksum(pseudo_header + message):
        return None
    received = int.from_bytes(message[2:4], "big")
    # 0 and 0xFFFF are the same sum, but the check of a message that is all zeros passes only with the latter.
    checksum = (received + ((request_type - reply_type) << 8)) % 0xFFFF or 0xFFFF
    return bytes((reply_type, 0)) + checksum.to_bytes(2, "big") + message[4:]


def _answer_udp(segment: bytes, endpoints: bytes, checksum_required: bool) -> bytes | None:
    """Return the UDP echo of a segment (RFC 768). endpoints: both IP addresses.

    Addresses and ports are swapped, which leaves the checksum as it is; over IPv4 it may be zero, for "none".
    """
    if len(segment) < _ECHO_HEADER_SIZE:
        return None
    source_port, destination_port, length, checksum = struct.unpack_from(">HHHH", segment)
    if destination_port != UDP_ECHO_PORT or not _ECHO_HEADER_SIZE <= length <= len(segment):
        return None
    # Port 0 takes no reply, and another echo service would answer it forever.
    if source_port in (0, UDP_ECHO_PORT):
        return None
    segment = segment[:length]
    if checksum:
        if internet_checksum(endpoints + struct.pack(">HH", PROTOCOL_UDP, length) + segment):
            return None
    elif checksum_required:
        return None
    return segment[2:4] + segment[0:2] + segment[4:]
