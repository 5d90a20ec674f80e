"""Super-packets: runs of TCP segments that the kernel takes in one write, and handles as one packet.

The rule: the kernel would cut a super-packet into exactly the segments that it was made of. So segments are joined only
where their headers differ by nothing but what cutting sets: sequence number, checksums, the ID of a packet that is
never fragmented (RFC 6864, section 4.1), and PSH in the last one. The checksum is computed from those of the segments
(RFC 1624), never from their payload: damage that was done before the tunnel stays visible to the receiver.

Source: RFC 9293, section 3.1; Linux's tcp_gso_segment, and struct virtio_net_hdr of linux/virtio_net.h. UDP is not
joined: its flows bring one or two datagrams a batch, and finding them costs more than the kernel saves.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Self

from oxidize.protocol.allowed_ips import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, PLAIN_IPV4
from oxidize.protocol.icmp import internet_checksum
from oxidize.protocol.rows import FORMATS_CACHED_MAX, ReceivedRows

PACKET_BYTES_MAX = 65_535  # of a super-packet: its length has 16 bits
SEGMENT_BYTES_MIN = 256  # of a packet: joining shorter ones saves less than it costs

PROTOCOL_TCP = 6
_TCP_HEADER_SIZE = 20  # without options
_ACK, _PUSH = 0x10, 0x08
_DO_NOT_FRAGMENT = 0x4000  # the field of flags and offset of an IPv4 packet that is whole and stays so

# Of a TCP header: the bytes that `_Headers` reads by themselves, and that need not be the same.
_SEQUENCE, _FLAGS, _CHECKSUM = 4, 13, 16
_VARYING = (*range(_SEQUENCE, _SEQUENCE + 4), _FLAGS, _CHECKSUM, _CHECKSUM + 1)
_VARYING_IPV4 = (4, 5, 10, 11)  # ID and checksum

# --- linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset ---
_VNET_HEADER = struct.Struct("=BBHHHH")
VNET_HEADER_SIZE = _VNET_HEADER.size
_GSO_TCPV4, _GSO_TCPV6 = 1, 4


class SuperPacket:
    """Segments that stand in rows, one behind the other, and the buffers that hold them as one packet.

    buffers: together the packet behind its virtio header. It lasts as long as the rows.
    """

    __slots__ = ("_first", "_rows", "buffers", "count", "length")

    def __init__(self, rows: ReceivedRows, first: int, count: int, length: int, buffers: list[bytes | memoryview]):
        self.buffers = buffers
        self.count = count
        self.length = length
        self._rows = rows
        self._first = first

    def frames(self) -> list[memoryview]:
        """Return the segments, as `ReceivedRows.frame` does."""
        return [self._rows.frame(row, self.length) for row in range(self._first, self._first + self.count)]


class _Layout(NamedTuple):
    """Where a segment has its parts: the sizes of its headers and of its payload, bytes."""

    ip_size: int
    tcp_size: int
    payload_size: int

    @property
    def size(self) -> int:
        """The size of both headers."""
        return self.ip_size + self.tcp_size

    @classmethod
    def of(cls, packet: memoryview | bytearray, length: int) -> Self | None:
        """Return the layout of a packet of `length` bytes if it is a segment that may be joined, else None."""
        if packet[0] == PLAIN_IPV4:
            ip_size, protocol = IPV4_HEADER_SIZE, packet[9]
            is_whole = packet[6] << 8 | packet[7] == _DO_NOT_FRAGMENT
        else:
            ip_size, protocol, is_whole = IPV6_HEADER_SIZE, packet[6], packet[0] >> 4 == 6
        if not is_whole or protocol != PROTOCOL_TCP or len(packet) < ip_size + _TCP_HEADER_SIZE:
            return None
        tcp_size = (packet[ip_size + 12] >> 4) * 4
        payload_size = length - ip_size - tcp_size
        # The words of a checksum must not begin within one of a payload that follows another.
        if tcp_size < _TCP_HEADER_SIZE or payload_size <= 0 or payload_size % 2:
            return None
        return cls(ip_size, tcp_size, payload_size)


def join(rows: ReceivedRows, first: int, count: int, length: int) -> list[memoryview | SuperPacket]:
    """Return what stands in `count` rows from `first` on, packets of `length` bytes and one version of IP, in order.

    Runs of segments are joined; other packets are returned as `ReceivedRows.frame` does.
    """
    frames: list[memoryview | SuperPacket] = []
    end = first + count
    while first < end and (layout := _Layout.of(rows.packet(first, length), length)) is None:
        frames.append(rows.frame(first, length))
        first += 1
    if layout is not None:
        headers = _Headers(rows, first, end - first, layout)
        for start, stop in headers.runs():
            if stop - start == 1:
                frames.append(rows.frame(first + start, length))
            else:
                frames.append(headers.joined(start, stop))
    return frames


class _Headers:
    """The headers of packets that are as long, in rows from `first` on, read as if all had the layout of the first."""

    def __init__(self, rows: ReceivedRows, first: int, count: int, layout: _Layout) -> None:
        self._rows = rows
        self._first = first
        self._count = count
        self._layout = layout
        size, tcp = layout.size, layout.ip_size
        joined = bytearray().join(rows.opened_fields(first, count, size))
        fields = _fields(count, tcp, size).unpack(joined)
        self._sequences: tuple[int, ...] = fields[0::2]
        self._checksums: tuple[int, ...] = fields[1::2]
        self._flags = joined[tcp + _FLAGS :: size]
        self._head = joined[:size]
        zeros = bytes(count)
        for at in (*(_VARYING_IPV4 if tcp == IPV4_HEADER_SIZE else ()), *[tcp + each for each in _VARYING]):
            joined[at::size] = zeros
        self._same = joined

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield which rows may be joined, each run from its first to behind its last, counted from the first row."""
        start = 0
        while start < self._count:
            end = self._flags.find(_ACK | _PUSH, start) + 1 or self._count  # nothing is joined behind a push
            if self._are_one_run(start, end):
                yield start, end
            else:
                yield from self._runs(start, end)
            start = end

    def _are_one_run(self, start: int, end: int) -> bool:
        """Return whether these rows are a run like the first row, as nearly all are."""
        count, size, payload = end - start, self._layout.size, self._layout.payload_size
        first, flags = self._sequences[start], self._flags
        return (
            self._same[start * size : end * size] == self._same[:size] * count
            and self._sequences[start:end] == tuple(range(first, first + count * payload, payload))
            and flags.count(_ACK, start, end) + (flags[end - 1] == _ACK | _PUSH) == count
            and size + count * payload <= PACKET_BYTES_MAX
        )

    def _runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        layout, flags, sequences = self._layout, self._flags, self._sequences
        size, payload = layout.size, layout.payload_size
        most = (PACKET_BYTES_MAX - size) // payload
        heads = [self._same[at : at + size] for at in range(0, len(self._same), size)]
        start = first
        for row in range(first + 1, end + 1):
            if (
                row < end
                and row - start < most
                and heads[row] == heads[start]
                and sequences[row] == (sequences[row - 1] + payload) % (1 << 32)
                and flags[row - 1] == _ACK
                and flags[row] | _PUSH == _ACK | _PUSH
                and _Layout.of(heads[start], size + payload) == layout
            ):
                continue
            yield start, row
            start = row

    def joined(self, start: int, end: int) -> SuperPacket:
        """Return the super-packet of a run."""
        layout, count = self._layout, end - start
        ip_size, size, payload = layout.ip_size, layout.size, layout.payload_size
        header = bytearray(self._rows.packet(self._first + start, size))
        length = size + count * payload
        if ip_size == IPV4_HEADER_SIZE:
            header[2:4] = length.to_bytes(2, "big")
            header[10:12] = bytes(2)
            header[10:12] = internet_checksum(bytes(header[:IPV4_HEADER_SIZE])).to_bytes(2, "big")
        else:
            header[4:6] = (length - IPV6_HEADER_SIZE).to_bytes(2, "big")
        header[ip_size + _FLAGS] = self._flags[end - 1]
        header[ip_size + _CHECKSUM : ip_size + _CHECKSUM + 2] = self._checksum(start, end, header).to_bytes(2, "big")
        kind = _GSO_TCPV4 if ip_size == IPV4_HEADER_SIZE else _GSO_TCPV6
        vnet_header = _VNET_HEADER.pack(0, kind, size, payload, 0, 0)
        payloads = self._rows.payloads(size, payload)[self._first + start : self._first + end]
        return SuperPacket(self._rows, self._first + start, count, size + payload, [vnet_header + header, *payloads])

    def _checksum(self, start: int, end: int, header: bytearray) -> int:
        """Return the checksum of a run's super-packet, right if and only if those of all its segments are.

        Beside the payloads each of them covers the addresses, the protocol, its length and its header; of these the
        super-packet has one instead of as many as there are segments.
        """
        ip_size, tcp_size, _ = self._layout
        addresses = bytes(header[12:20] if ip_size == IPV4_HEADER_SIZE else header[8:40])
        at = start * self._layout.size + ip_size
        same = bytes(self._same[at : at + tcp_size])
        each = PROTOCOL_TCP + tcp_size + _ACK - internet_checksum(addresses) - internet_checksum(same)
        more = (end - start - 1) * each + sum(self._sequences[start + 1 : end])
        return (sum(self._checksums[start:end]) + more) % 0xFFFF


@lru_cache(FORMATS_CACHED_MAX)
def _fields(count: int, ip_size: int, size: int) -> struct.Struct:
    """Return the struct that reads sequence number and checksum of headers of `size` bytes."""
    before, between = ip_size + _SEQUENCE, _CHECKSUM - _SEQUENCE - 4
    rest = size - before - between - 6
    return struct.Struct(">" + f"{before}xI{between}xH{rest}x" * count)
