"""Cryptokey routing: which peer an inner address belongs to.

The rule (paper, section 2): an outgoing packet goes to the peer whose allowed IPs contain its destination by the
longest prefix; an incoming packet is accepted only when its source belongs to the peer that sent it. The IP headers
that decide this are those of RFC 791 and RFC 8200; bytes that are not an IP packet belong to no peer.
"""

import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Generic, TypeVar

Buffer = bytes | bytearray | memoryview
Network = IPv4Network | IPv6Network

T = TypeVar("T")

IPV4_HEADER_SIZE = 20  # without options
IPV6_HEADER_SIZE = 40  # without extension headers
PLAIN_IPV4 = 0x45  # the first byte of an IPv4 packet without options

# One call of struct reads from any buffer, at half the cost of slicing a memoryview and copying the slice.
_IPV4_SOURCE = struct.Struct("12x4s4x").unpack_from
_IPV4_DESTINATION = struct.Struct("16x4s").unpack_from
_IPV6_SOURCE = struct.Struct("8x16s16x").unpack_from
_IPV6_DESTINATION = struct.Struct("24x16s").unpack_from
_HEADERS = {4: struct.Struct("B15x4s"), 6: struct.Struct("B23x16s")}  # by version: the version, and the destination
_LENGTHS = struct.Struct(">BxHH").unpack_from  # version and IPv4 header size, IPv4 length, IPv6 payload length

# Addresses whose answer is cached, both families together. A peer with a wide allowed range chooses the addresses that
# are looked up, so the cache is bounded; when it is full it is emptied, and the tables answer again.
CACHED_ADDRESSES_MAX = 4096


class AllowedIPs(Generic[T]):
    """A table of networks with a value each, looked up by the longest prefix that contains an address.

    There is one dict for each prefix length in use; lookups try them from the longest to the shortest.
    """

    def __init__(self) -> None:
        # For each family, by the number of address bits that a prefix leaves open: the values by prefix. The fewer open
        # bits, the longer the prefix.
        self._ipv4: dict[int, dict[int, T]] = {}
        self._ipv6: dict[int, dict[int, T]] = {}
        self._cache: dict[bytes, T | None] = {}
        self.cached = self._cache.get  # the value of an address that was looked up lately, else None

    def insert(self, network: Network, value: T) -> None:
        """Give `network` this value, in place of any value that exactly this network has."""
        tables = self._ipv4 if network.version == 4 else self._ipv6
        open_bits = network.max_prefixlen - network.prefixlen
        if open_bits not in tables:
            tables[open_bits] = {}
            for key in sorted(tables):  # lookups rely on the order of insertion
                tables[key] = tables.pop(key)
        tables[open_bits][int(network.network_address) >> open_bits] = value
        self._cache.clear()

    def remove(self, network: Network, value: T) -> None:
        """Take `network` out of the table if it has this value: packets to it go to the network around it, if any."""
        table = (self._ipv4 if network.version == 4 else self._ipv6).get(network.max_prefixlen - network.prefixlen, {})
        prefix = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        if table.get(prefix) is value:
            del table[prefix]
            self._cache.clear()

    def items(self) -> Iterator[tuple[Network, T]]:
        """Iterate over networks and their values: IPv4 first, longer prefixes before shorter ones."""
        for tables, address_size in ((self._ipv4, 4), (self._ipv6, 16)):
            for open_bits, table in tables.items():
                for prefix, value in table.items():
                    address = (prefix << open_bits).to_bytes(address_size, "big")
                    yield ip_network((address, 8 * address_size - open_bits)), value

    def lookup(self, address: bytes) -> T | None:
        """Return the value of the longest prefix that contains `address`, 4 or 16 bytes, or None."""
        found = self._cache.get(address, _NOT_CACHED)
        return self._search(address) if isinstance(found, _NotCached) else found

    def lookup_packet_destination(self, packet: Buffer) -> T | None:
        """Return the value of an IP packet's destination, or None without a value or without an IP header.

        Only the addresses are read: `inner_length` checks the rest of the header.
        """
        version = packet[0] >> 4 if packet else 0
        if version == 4:
            return self.lookup(*_IPV4_DESTINATION(packet)) if len(packet) >= IPV4_HEADER_SIZE else None
        if version == 6:
            return self.lookup(*_IPV6_DESTINATION(packet)) if len(packet) >= IPV6_HEADER_SIZE else None
        return None

    def lookup_packet_destinations(self, packets: Sequence[Buffer]) -> list[T | None]:
        """Return what `lookup_packet_destination` returns for each of the packets, one at least."""
        version = packets[0][0] >> 4 if packets[0] else 0
        header = _HEADERS.get(version)
        if header is None or min(map(len, packets)) < header.size:
            return list(map(self.lookup_packet_destination, packets))
        heads = list(map(header.unpack_from, packets))
        if heads.count(heads[0]) == len(heads):
            return [self.lookup(heads[0][1])] * len(heads)
        if {first >> 4 for first, _ in heads} != {version}:
            return list(map(self.lookup_packet_destination, packets))
        cached = self.cached
        found = [cached(destination) for _, destination in heads]
        return found if None not in found else [self.lookup(destination) for _, destination in heads]

    def lookup_packet_source(self, packet: Buffer) -> T | None:
        """Return the value of an IP packet's source, or None without a value or without an IP header.

        Only the addresses are read: `inner_length` checks the rest of the header.
        """
        version = packet[0] >> 4 if packet else 0
        if version == 4:
            return self.lookup(*_IPV4_SOURCE(packet)) if len(packet) >= IPV4_HEADER_SIZE else None
        if version == 6:
            return self.lookup(*_IPV6_SOURCE(packet)) if len(packet) >= IPV6_HEADER_SIZE else None
        return None

    def _search(self, address: bytes) -> T | None:
        tables = self._ipv4 if len(address) == 4 else self._ipv6 if len(address) == 16 else {}
        number = int.from_bytes(address, "big")
        found: T | None = None
        for open_bits, table in tables.items():
            prefix = number >> open_bits
            if prefix in table:
                found = table[prefix]
                break
        if len(self._cache) >= CACHED_ADDRESSES_MAX:
            self._cache.clear()
        self._cache[address] = found
        return found


class _NotCached:
    """The type of the sentinel for an address that is not in the cache; None is a cached answer."""


_NOT_CACHED: Final = _NotCached()


def packet_source(packet: Buffer) -> bytes:
    """Return the source address of a packet that has a destination: 4 or 16 bytes."""
    source: bytes
    (source,) = (_IPV4_SOURCE if packet[0] >> 4 == 4 else _IPV6_SOURCE)(packet)
    return source


def packet_destination(packet: Buffer) -> bytes:
    """Return the destination address of a packet, 4 or 16 bytes, or nothing without an IP header."""
    destination = b""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= IPV4_HEADER_SIZE:
        (destination,) = _IPV4_DESTINATION(packet)
    elif version == 6 and len(packet) >= IPV6_HEADER_SIZE:
        (destination,) = _IPV6_DESTINATION(packet)
    return destination


def inner_length(packet: Buffer) -> int:
    """Return the length of an IP packet by its own header, bytes; the rest is padding (paper, section 5.4.6).

    Returns 0 when the bytes are not an IP packet, or when the header claims more bytes than there are.
    """
    size = len(packet)
    if size < IPV4_HEADER_SIZE:
        return 0
    first: int
    length: int
    first, length, payload_length = _LENGTHS(packet)
    if first >> 4 == 4:
        header_size = (first & 0x0F) * 4
        return length if IPV4_HEADER_SIZE <= header_size <= length <= size else 0
    if first >> 4 == 6:
        length = IPV6_HEADER_SIZE + payload_length
        return length if length <= size else 0
    return 0
