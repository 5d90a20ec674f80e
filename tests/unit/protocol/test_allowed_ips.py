"""Cryptokey routing (paper, section 2): the longest prefix decides."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from oxidize.protocol import allowed_ips
from oxidize.protocol.allowed_ips import AllowedIPs, inner_length


def packed(address: str) -> bytes:
    return ip_address(address).packed


def table(**networks: str) -> AllowedIPs[str]:
    result: AllowedIPs[str] = AllowedIPs()
    for value, text in networks.items():
        for network in text.split():
            result.insert(ip_network(network), value)
    return result


def ipv4(source: str, destination: str, payload: bytes = b"") -> bytes:
    length = (20 + len(payload)).to_bytes(2, "big")
    return b"\x45\0" + length + bytes(8) + packed(source) + packed(destination) + payload


def ipv6(source: str, destination: str, payload: bytes = b"") -> bytes:
    return (
        b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\x3b\x40" + packed(source) + packed(destination) + payload
    )


def test_the_longest_prefix_wins_whatever_the_order_of_insertion() -> None:
    for order in (("wide", "narrow", "host"), ("host", "narrow", "wide"), ("narrow", "host", "wide")):
        networks = {"wide": "0.0.0.0/0 ::/0", "narrow": "10.1.0.0/16 fd00::/16", "host": "10.1.2.3/32 fd00::3/128"}
        peers = table(**{name: networks[name] for name in order})
        for address, expected in (
            ("10.1.2.3", "host"),
            ("10.1.2.4", "narrow"),
            ("10.2.0.1", "wide"),
            ("fd00::3", "host"),
            ("fd00::4", "narrow"),
            ("fd01::3", "wide"),
        ):
            assert peers.lookup(packed(address)) == expected


def test_ipv4_and_ipv6_addresses_are_looked_up_apart() -> None:
    peers = table(six="::/0")
    assert peers.lookup(packed("10.0.0.1")) is None
    assert peers.lookup(packed("::10.0.0.1")) == "six"


def test_an_address_of_another_size_has_no_value() -> None:
    peers = table(all="0.0.0.0/0 ::/0")
    for size in (0, 3, 5, 15, 17):
        assert peers.lookup(bytes(size)) is None


def test_a_lookup_sees_every_insertion_at_once() -> None:
    peers = table(a="10.0.0.0/8")
    address = packed("10.0.0.1")
    assert peers.lookup(address) == "a"
    peers.insert(ip_network("10.0.0.0/24"), "b")
    assert peers.lookup(address) == "b"
    peers.insert(ip_network("10.0.0.0/24"), "c")  # a network has one value
    assert peers.lookup(address) == "c"
    peers.insert(ip_network("10.0.0.1/32"), "d")
    assert peers.lookup(address) == "d"


def test_items_lists_every_network_with_longer_prefixes_first() -> None:
    peers = table(a="10.0.0.0/8 fd00::/64", b="10.0.0.1/32 ::/0 0.0.0.0/0")
    assert list(peers.items()) == [
        (IPv4Network("10.0.0.1/32"), "b"),
        (IPv4Network("10.0.0.0/8"), "a"),
        (IPv4Network("0.0.0.0/0"), "b"),
        (IPv6Network("fd00::/64"), "a"),
        (IPv6Network("::/0"), "b"),
    ]


def test_the_cache_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed_ips, "CACHED_ADDRESSES_MAX", 10)
    peers = table(a="10.0.0.0/8")
    for number in range(1000):
        assert peers.lookup(packed("10.0.0.0")[:2] + number.to_bytes(2, "big")) == "a"
        assert peers.lookup(packed("11.0.0.0")[:2] + number.to_bytes(2, "big")) is None
        assert len(peers._cache) <= 10


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview, lambda packet: memoryview(bytearray(packet))])
def test_packets_are_looked_up_by_their_addresses(buffer: type) -> None:
    peers = table(a="10.0.0.0/8 fd00::/64", b="192.168.0.0/16 fd01::/64")
    for packet in (ipv4("10.0.0.1", "192.168.0.1"), ipv6("fd00::1", "fd01::1")):
        assert peers.lookup_packet_source(buffer(packet)) == "a"
        assert peers.lookup_packet_destination(buffer(packet)) == "b"


def test_bytes_that_are_not_an_ip_packet_belong_to_no_peer() -> None:
    peers = table(all="0.0.0.0/0 ::/0")
    four, six = ipv4("10.0.0.1", "10.0.0.2"), ipv6("fd00::1", "fd00::2")
    malformed = [four[:end] for end in range(20)] + [six[:end] for end in range(40)]
    malformed += [bytes([version << 4]) + bytes(60) for version in range(16) if version not in (4, 6)]
    for packet in malformed:
        assert peers.lookup_packet_source(packet) is None
        assert peers.lookup_packet_destination(packet) is None
        assert inner_length(packet) == 0


@pytest.mark.parametrize("padding", [0, 1, 15])
def test_the_inner_length_excludes_padding(padding: int) -> None:
    for packet in (
        ipv4("10.0.0.1", "10.0.0.2"),
        ipv4("10.0.0.1", "10.0.0.2", b"payload"),
        ipv6("fd00::1", "fd00::2"),
        ipv6("fd00::1", "fd00::2", b"payload"),
    ):
        assert inner_length(packet + bytes(padding)) == len(packet)
        assert inner_length(memoryview(packet + bytes(padding))) == len(packet)


def test_a_header_that_claims_more_than_the_packet_has_no_inner_length() -> None:
    four, six = ipv4("10.0.0.1", "10.0.0.2", b"payload"), ipv6("fd00::1", "fd00::2", b"payload")
    assert inner_length(four[:-1]) == 0
    assert inner_length(six[:-1]) == 0
    assert inner_length(b"\x44" + four[1:]) == 0  # a header of 16 bytes
    assert inner_length(b"\x47" + four[1:]) == 0  # a header of 28 bytes in a packet of 27
    assert inner_length(b"\x46" + four[1:]) == len(four)  # four bytes of options
    assert inner_length(four[:2] + (19).to_bytes(2, "big") + four[4:]) == 0
    assert inner_length(four[:2] + (20).to_bytes(2, "big") + four[4:]) == 20


def test_the_destinations_of_a_batch_are_those_of_its_packets() -> None:
    peers = table(a="10.0.0.0/8 fd00::/64", b="192.168.0.0/16 fd01::/64")
    four, other_four = ipv4("10.9.9.9", "10.0.0.1"), ipv4("10.9.9.9", "192.168.0.1")
    six, other_six = ipv6("fd00::9", "fd00::1"), ipv6("fd00::9", "fd01::1")
    batches = [[four] * 3, [four, other_four], [six] * 2, [six, other_six], [six, four], [four, six]]
    batches += [[four, b""], [b"", four], [four, four[:19]], [six, six[:39]], [four, b"\x05" + four[1:]], [b"?"] * 2]
    for batch in batches:
        assert peers.lookup_packet_destinations(batch) == list(map(peers.lookup_packet_destination, batch))
