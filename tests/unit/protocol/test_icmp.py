"""ICMP errors about packets that cannot be delivered: what they say, and which packets have none."""

import struct
from ipaddress import ip_address

import pytest

from oxidize.protocol.icmp import EXTENSION_HEADERS_MAX, internet_checksum, unreachable

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
ECHO4, ECHO6 = bytes((8, 0, 0, 0, 0, 1, 0, 1)), bytes((128, 0, 0, 0, 0, 1, 0, 1))


def ipv4(
    payload: bytes = b"",
    protocol: int = UDP,
    *,
    source: str = "10.0.0.2",
    destination: str = "10.0.0.7",
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    size = 20 + len(options)
    header = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), 7, fragment, 64, protocol, 0)
    return header + ip_address(source).packed + ip_address(destination).packed + options + payload


def ipv6(payload: bytes = b"", protocol: int = UDP, *, source: str = "fd00::2", destination: str = "fd00::7") -> bytes:
    header = struct.pack(">IHBB", 0x6000_0000, len(payload), protocol, 64)
    return header + ip_address(source).packed + ip_address(destination).packed + payload


def extension(next_header: int, size: int = 8) -> bytes:
    return bytes((next_header, size // 8 - 1)) + bytes(size - 2)


def fragment_header(next_header: int, offset: int = 0) -> bytes:
    return struct.pack(">BBHI", next_header, 0, offset << 3 | 1, 7)


def test_the_checksum_is_that_of_the_example_in_rfc_1071() -> None:
    assert internet_checksum(bytes((0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7))) == 0xFFFF - 0xDDF2


def test_an_ipv4_host_is_unreachable() -> None:
    packet = ipv4(b"question")
    answer = unreachable(packet)
    assert answer is not None
    version, service, length, _, fragment, ttl, protocol, _, source, destination = struct.unpack_from(
        ">BBHHHBBH4s4s", answer
    )
    assert (version, service, length, fragment, ttl, protocol) == (0x45, 0xC0, len(answer), 0x4000, 64, ICMP)
    assert (source, destination) == (ip_address("10.0.0.7").packed, ip_address("10.0.0.2").packed)
    assert internet_checksum(answer[:20]) == internet_checksum(answer[20:]) == 0
    assert answer[20:22] == bytes((3, 1))  # host unreachable
    assert answer[28:] == packet


def test_an_ipv6_address_is_unreachable() -> None:
    packet = ipv6(b"question")
    answer = unreachable(packet)
    assert answer is not None
    flow, length, protocol, hop_limit, source, destination = struct.unpack_from(">IHBB16s16s", answer)
    assert (flow, length, protocol, hop_limit) == (0x6000_0000, len(answer) - 40, ICMPV6, 64)
    assert (source, destination) == (ip_address("fd00::7").packed, ip_address("fd00::2").packed)
    pseudo_header = source + destination + struct.pack(">II", length, ICMPV6)
    assert internet_checksum(pseudo_header + answer[40:]) == 0
    assert answer[40:42] == bytes((1, 3))  # address unreachable
    assert answer[48:] == packet


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_packet_is_quoted_without_what_follows_it(kind: type[bytes | bytearray | memoryview]) -> None:
    for packet, quoted_at in ((ipv4(b"question"), 28), (ipv6(b"question"), 48)):
        answer = unreachable(kind(packet + bytes(16)))
        assert answer is not None
        assert answer[quoted_at:] == packet


def test_an_answer_is_no_longer_than_any_network_carries() -> None:
    for packet, longest in ((ipv4(bytes(1400)), 576), (ipv6(bytes(1400)), 1280)):
        answer = unreachable(packet)
        assert answer is not None
        assert len(answer) == longest


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.251", "240.0.0.1", "255.255.255.255"])
def test_only_single_hosts_have_ipv4_answers(address: str) -> None:
    assert unreachable(ipv4(source=address)) is None
    assert unreachable(ipv4(destination=address)) is None


@pytest.mark.parametrize("address", ["::", "ff02::2", "ff0e::1"])
def test_only_single_hosts_have_ipv6_answers(address: str) -> None:
    assert unreachable(ipv6(source=address)) is None
    assert unreachable(ipv6(destination=address)) is None


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_an_icmp_error_has_no_answer(kind: int) -> None:
    error = bytes((kind,)) + bytes(35)
    assert unreachable(ipv4(error, ICMP)) is None
    assert unreachable(ipv4(error, ICMP, options=bytes(8))) is None


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 100, 127, 137])
def test_an_icmpv6_error_or_redirect_has_no_answer(kind: int) -> None:
    error = bytes((kind,)) + bytes(47)
    assert unreachable(ipv6(error, ICMPV6)) is None
    for before in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
        assert unreachable(ipv6(extension(ICMPV6, 24) + error, before)) is None
    assert unreachable(ipv6(fragment_header(ICMPV6) + error, FRAGMENT)) is None


def test_an_answer_has_no_answer() -> None:
    for packet in (ipv4(b"question"), ipv6(b"question")):
        answer = unreachable(packet)
        assert answer is not None
        assert unreachable(answer) is None


def test_questions_have_answers() -> None:
    assert unreachable(ipv4(ECHO4, ICMP)) is not None
    assert unreachable(ipv4(ECHO4, ICMP, options=bytes(8))) is not None
    assert unreachable(ipv6(ECHO6, ICMPV6)) is not None
    assert unreachable(ipv6(extension(ICMPV6) + ECHO6, HOP_BY_HOP)) is not None
    assert unreachable(ipv6(extension(ICMPV6, 24) + ECHO6, ROUTING)) is not None
    assert unreachable(ipv6(extension(UDP) + b"question", DESTINATION_OPTIONS)) is not None


def test_only_the_first_fragment_has_an_answer() -> None:
    more, offset = 0x2000, 185
    assert unreachable(ipv4(b"question", fragment=more)) is not None
    assert unreachable(ipv4(b"question", fragment=more | offset)) is None
    assert unreachable(ipv4(b"question", fragment=offset)) is None
    assert unreachable(ipv6(fragment_header(UDP) + b"question", FRAGMENT)) is not None
    assert unreachable(ipv6(fragment_header(UDP, offset) + b"question", FRAGMENT)) is None
    behind = extension(FRAGMENT) + fragment_header(UDP, offset)
    assert unreachable(ipv6(behind + b"question", HOP_BY_HOP)) is None


def test_bytes_that_are_no_packet_have_no_answer() -> None:
    assert unreachable(b"") is None
    assert unreachable(b"\x45") is None
    assert unreachable(bytes(40)) is None
    assert unreachable(ipv4(b"question")[:-1]) is None


def test_a_header_that_is_cut_off_hides_what_it_may_be() -> None:
    assert unreachable(ipv4(b"", ICMP)) is None
    assert unreachable(ipv6(b"", ICMPV6)) is None
    for before in (HOP_BY_HOP, FRAGMENT):
        assert unreachable(ipv6(extension(UDP)[:7], before)) is None
    assert unreachable(ipv6(extension(ICMPV6, 2048)[:8], HOP_BY_HOP)) is None


def test_a_chain_of_extension_headers_is_followed_up_to_a_limit() -> None:
    chain = extension(DESTINATION_OPTIONS) * (EXTENSION_HEADERS_MAX - 2)
    assert unreachable(ipv6(chain + extension(UDP) + b"question", DESTINATION_OPTIONS)) is not None
    chain = extension(DESTINATION_OPTIONS) * (EXTENSION_HEADERS_MAX - 1)
    assert unreachable(ipv6(chain + extension(UDP) + b"question", DESTINATION_OPTIONS)) is None
