"""What a peer sent inside its messages: the packets that its allowed IPs permit, without padding (paper, section 2)."""

from collections.abc import Sequence
from typing import TypeVar

from oxidize.protocol.allowed_ips import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, AllowedIPs, inner_length
from oxidize.protocol.constants import DATA_OVERHEAD
from oxidize.protocol.counters import RECEIVED_PACKETS, DropReason, Total
from oxidize.protocol.peer import Peer
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.session_table import SessionTable

Plaintext = TypeVar("Plaintext", bytes, memoryview)

_PLAIN_IPV4 = 0x45  # version 4, a header without options
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
        return packets

    def unwrap_rows(self, rows: ReceivedRows, owners: Sequence[Peer | None]) -> list[bytes | memoryview]:
        """Like `unwrap` for what was opened in `rows`, in their order; owners: who sent it, None for nothing."""
        counters, known_owner, packet = self._counters, self._routes.cached, rows.packet
        firsts, lengths, sources = rows.ipv4_headers()
        payloads, ipv6_sources = rows.ipv6_headers() if max(firsts) >= _FIRST_OF_IPV6 else ((), ())
        packets: list[bytes | memoryview] = []
        for number, peer in enumerate(owners):
            if peer is None:
                continue
            room, first = rows.sizes[number] - DATA_OVERHEAD, firsts[number]
            if first == _PLAIN_IPV4:
                length, source = lengths[number], sources[number]
            elif first >> 4 == _IPV6:
                length, source = IPV6_HEADER_SIZE + payloads[number], ipv6_sources[number]
            else:
                length, source = 0, b""
            if IPV4_HEADER_SIZE <= length <= room and known_owner(source) is peer:
                packets.append(packet(number, length))
                counters[peer.slot + RECEIVED_PACKETS] += 1
            else:
                packets += self.unwrap(peer, [packet(number, room)])
        return packets
