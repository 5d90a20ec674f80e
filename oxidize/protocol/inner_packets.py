"""What a peer sent inside its messages: the packets that its allowed IPs permit, without padding (paper, section 2)."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from oxidize.protocol.allowed_ips import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, PLAIN_IPV4, AllowedIPs, inner_length
from oxidize.protocol.constants import DATA_OVERHEAD
from oxidize.protocol.counters import RECEIVED_PACKETS, DropReason, Total
from oxidize.protocol.peer import Peer
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.super_packets import SEGMENT_BYTES_MIN, SuperPacket, join

Plaintext = TypeVar("Plaintext", bytes, memoryview)
Frame = bytes | memoryview | SuperPacket
_Fields = tuple[int, int, bytes, int]  # of a row: the first byte, the length by the header, the source, the size

_IPV6 = 6
_FIRST_OF_IPV6 = 0x60  # the lowest first byte, which also has a part of the traffic class


class InnerPackets:
    """Checks and counts the packets that come from peers; `routes` is the device's table of allowed IPs."""

    def __init__(self, table: SessionTable, routes: AllowedIPs[Peer]) -> None:
        self._table = table
        self._counters = table.counters
        self._routes = routes

    def unwrap(self, peer: Peer, plaintexts: Sequence[Plaintext]) -> list[Plaintext]:
        """Return the packets in the plaintexts of a peer's messages that may be delivered, in order."""
        drop, lookup = self._table.drop, self._routes.lookup_packet_source
        packets: list[Plaintext] = []
        for plaintext in plaintexts:
            if not plaintext:
                self._counters[Total.RECEIVED_KEEPALIVES] += 1
            elif not (length := inner_length(plaintext)):
                drop(DropReason.INNER_MALFORMED)
            elif lookup(plaintext) is not peer:
                drop(DropReason.SOURCE_NOT_ALLOWED)
            else:
                packets.append(plaintext if length == len(plaintext) else plaintext[:length])
        self._counters[peer.slot + RECEIVED_PACKETS] += len(packets)
        self._count(len(packets), sum(map(len, packets)))
        return packets

    def unwrap_rows(self, rows: ReceivedRows, owners: Sequence[Peer | None], *, join_segments: bool) -> list[Frame]:
        """Like `unwrap` for what was opened in `rows`, as frames in their order; owners: who sent it, None for nothing.

        join_segments: whether runs of segments are joined.
        """
        peer = owners[0]
        if peer is not None and max(rows.sizes) >= SEGMENT_BYTES_MIN and owners.count(peer) == len(owners):
            return self._unwrap_runs(rows, peer, join_segments=join_segments)
        counters, known_owner, frame = self._counters, self._routes.cached, rows.frame
        firsts, lengths, sources = rows.ip_headers(4)
        _, payloads, ipv6_sources = rows.ip_headers(6) if max(firsts) >= _FIRST_OF_IPV6 else ((), (), ())
        frames: list[Frame] = []
        count = size = 0
        for number, peer in enumerate(owners):
            if peer is None:
                continue
            room, first = rows.sizes[number] - DATA_OVERHEAD, firsts[number]
            if first == PLAIN_IPV4:
                length, source = lengths[number], sources[number]
            elif first >> 4 == _IPV6:
                length, source = IPV6_HEADER_SIZE + payloads[number], ipv6_sources[number]
            else:
                length, source = 0, b""
            if IPV4_HEADER_SIZE <= length <= room and known_owner(source) is peer:
                frames.append(frame(number, length))
                counters[peer.slot + RECEIVED_PACKETS] += 1
                count += 1
                size += length
            else:
                frames += self._unwrap_row(rows, peer, number)
        self._count(count, size)
        return frames

    def _unwrap_runs(self, rows: ReceivedRows, peer: Peer, *, join_segments: bool) -> list[Frame]:
        """Like `unwrap_rows` where all came from one peer: rows that are alike are looked at together."""
        version = rows.packet(0, 1)[0] >> 4 if rows.sizes[0] > DATA_OVERHEAD else 0
        header_size = IPV6_HEADER_SIZE if version == 6 else IPV4_HEADER_SIZE
        frames: list[Frame] = []
        row = 0
        for (first, told, source, size), count in _runs(*rows.ip_headers(version), rows.sizes):
            length = IPV6_HEADER_SIZE + told if version == 6 else told
            if (
                (first == PLAIN_IPV4 or first >> 4 == version == 6)
                and header_size <= length <= size - DATA_OVERHEAD
                and self._routes.cached(source) is peer
            ):
                if join_segments and count > 1:
                    frames += join(rows, row, count, length)
                else:
                    frames += [rows.frame(number, length) for number in range(row, row + count)]
                self._counters[peer.slot + RECEIVED_PACKETS] += count
                self._count(count, count * length)
            else:
                for number in range(row, row + count):
                    frames += self._unwrap_row(rows, peer, number)
            row += count
        return frames

    def _unwrap_row(self, rows: ReceivedRows, peer: Peer, number: int) -> list[memoryview]:
        packets = self.unwrap(peer, [rows.packet(number, rows.sizes[number] - DATA_OVERHEAD)])
        return [rows.frame(number, len(packet)) for packet in packets]

    def _count(self, packets: int, size: int) -> None:
        """Count packets of `size` bytes together."""
        self._counters[Total.RECEIVED_PACKETS] += packets
        self._counters[Total.RECEIVED_PACKET_BYTES] += size


def _runs(
    firsts: Sequence[int], lengths: Sequence[int], sources: Sequence[bytes], sizes: Sequence[int]
) -> Iterator[tuple[_Fields, int]]:
    """Yield the fields of rows that follow each other and are alike, and how many these are."""
    count, first, length, source, size = len(sizes), firsts[0], lengths[0], sources[0], sizes[0]
    if firsts.count(first) == lengths.count(length) == sources.count(source) == sizes.count(size) == count:
        yield (first, length, source, size), count
        return
    for fields, rows in groupby(zip(firsts, lengths, sources, sizes, strict=True)):
        yield fields, len(list(rows))
