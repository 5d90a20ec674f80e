"""Echo inside the process: ICMP (RFC 792), ICMPv6 (RFC 4443) and UDP port 7 (RFC 862)."""

import struct
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import pytest

from oxidize.net import userspace
from oxidize.net.data_path import Tunnel
from oxidize.net.userspace import UserspaceNetwork

SERVER4, CLIENT4 = ip_address("10.0.0.1"), ip_address("10.0.0.2")
SERVER6, CLIENT6 = ip_address("fd00::1"), ip_address("fd00::2")

ICMP, UDP, ICMPV6 = 1, 17, 58


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, **addresses: str) -> bytes:
    source = ip_address(addresses.get("source", str(CLIENT4))).packed
    destination = ip_address(addresses.get("destination", str(SERVER4))).packed
    size = 20 + len(options)
    fields = (0x40 | size // 4, 0xB9, size + len(payload), 0x1234, fragment, 3, protocol)
    header = struct.pack(">BBHHHBBH", *fields, 0) + source + destination + options
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def ipv6(next_header: int, payload: bytes, **addresses: str) -> bytes:
    source = ip_address(addresses.get("source", str(CLIENT6))).packed
    destination = ip_address(addresses.get("destination", str(SERVER6))).packed
    return struct.pack(">IHBB", 0x6B91_2345, len(payload), next_header, 3) + source + destination + payload


def pseudo_header(packet: bytes) -> bytes:
    """RFC 768 and RFC 8200, section 8.1; of a packet without options or extension headers."""
    if packet[0] >> 4 == 4:
        return packet[12:20] + struct.pack(">BBH", 0, packet[9], len(packet) - 20)
    return packet[8:40] + struct.pack(">IHBB", len(packet) - 40, 0, 0, packet[6])


def with_checksum(packet: bytes, at: int) -> bytes:
    """Fill in the checksum of the payload, `at` bytes into it, pseudo-header included."""
    start = 20 if packet[0] >> 4 == 4 else 40
    value = checksum(pseudo_header(packet) + packet[start:]) or 0xFFFF
    return packet[: start + at] + struct.pack(">H", value) + packet[start + at + 2 :]


def icmp_echo(body: bytes, kind: int = 8) -> bytes:
    message = struct.pack(">BBH", kind, 0, 0) + body
    return message[:2] + struct.pack(">H", checksum(message)) + message[4:]


def udp(payload: bytes, source_port: int = 40_000, destination_port: int = 7) -> bytes:
    return struct.pack(">HHHH", source_port, destination_port, 8 + len(payload), 0) + payload


def ping4(body: bytes = b"\x12\x34\0\x01payload") -> bytes:
    return ipv4(ICMP, icmp_echo(body))


def ping6(body: bytes = b"\x12\x34\0\x01payload") -> bytes:
    return with_checksum(ipv6(ICMPV6, struct.pack(">BBH", 128, 0, 0) + body), at=2)


def udp4(payload: bytes = b"payload", **ports: int) -> bytes:
    return with_checksum(ipv4(UDP, udp(payload, **ports)), at=6)


def udp6(payload: bytes = b"payload", **ports: int) -> bytes:
    return with_checksum(ipv6(UDP, udp(payload, **ports)), at=6)


REQUESTS = {"icmp": ping4(), "icmpv6": ping6(), "udp over ipv4": udp4(), "udp over ipv6": udp6()}


def new_network() -> UserspaceNetwork:
    return UserspaceNetwork([IPv4Interface("10.0.0.1/24"), IPv6Interface("fd00::1/64")])


def ask(packet: bytes | bytearray | memoryview) -> bytes | None:
    network = new_network()
    unanswered = network.write_packets([packet])
    replies = network.read_packets(10)
    assert unanswered + len(replies) == 1
    return replies[0] if replies else None


def check_ipv4_header(reply: bytes, protocol: int) -> None:
    version, service, length, _, fragment, ttl, found, _, source, destination = struct.unpack_from(
        ">BBHHHBBH4s4s", reply
    )
    assert (version, length, ttl, found) == (0x45, len(reply), 64, protocol)
    assert service == 0xB8  # the request's class, without its congestion mark
    assert fragment == 0x4000
    assert (source, destination) == (SERVER4.packed, CLIENT4.packed)
    assert checksum(reply[:20]) == 0


def check_ipv6_header(reply: bytes, next_header: int) -> None:
    flow, length, found, hop_limit, source, destination = struct.unpack_from(">IHBB16s16s", reply)
    assert flow == 0x6B80_0000
    assert (length, found, hop_limit) == (len(reply) - 40, next_header, 64)
    assert (source, destination) == (SERVER6.packed, CLIENT6.packed)


BODIES = [bytes(4), b"\x12\x34\0\x01", b"\x12\x34\0\x01odd", bytes(100), b"\xff" * 1392, bytes(range(256)) * 5]


@pytest.mark.parametrize("body", BODIES)
def test_icmp_echo_is_answered(body: bytes) -> None:
    reply = ask(ping4(body))
    assert reply is not None
    check_ipv4_header(reply, ICMP)
    assert reply[20:22] == b"\0\0"
    assert reply[24:] == body
    assert checksum(reply[20:]) == 0


@pytest.mark.parametrize("body", BODIES)
def test_icmpv6_echo_is_answered(body: bytes) -> None:
    reply = ask(ping6(body))
    assert reply is not None
    check_ipv6_header(reply, ICMPV6)
    assert reply[40:42] == b"\x81\0"
    assert reply[44:] == body
    assert checksum(pseudo_header(reply) + reply[40:]) == 0


@pytest.mark.parametrize("payload", [b"", *BODIES])
def test_udp_echo_is_answered(payload: bytes) -> None:
    for request, start in ((udp4(payload), 20), (udp6(payload), 40)):
        reply = ask(request)
        assert reply is not None
        if start == 20:
            check_ipv4_header(reply, UDP)
        else:
            check_ipv6_header(reply, UDP)
        assert struct.unpack_from(">HHH", reply, start) == (7, 40_000, 8 + len(payload))
        assert reply[start + 8 :] == payload
        assert reply[start + 6 : start + 8] != b"\0\0"
        assert checksum(pseudo_header(reply) + reply[start:]) == 0


def test_udp_over_ipv4_may_have_no_checksum_and_over_ipv6_must() -> None:
    reply = ask(ipv4(UDP, udp(b"payload")))
    assert reply is not None
    assert reply[26:] == b"\0\0payload"
    assert ask(ipv6(UDP, udp(b"payload"))) is None


def test_ipv4_options_are_skipped_and_not_sent_back() -> None:
    for options in (b"\x01\x01\x01\0", b"\x07\x27\x04" + bytes(37)):
        reply = ask(ipv4(ICMP, icmp_echo(b"\x12\x34\0\x01payload"), options=options))
        assert reply is not None
        check_ipv4_header(reply, ICMP)
        assert reply[24:] == b"\x12\x34\0\x01payload"


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("buffer", [bytearray, memoryview, lambda packet: memoryview(bytearray(packet))])
def test_a_request_may_be_any_buffer_and_have_padding(name: str, buffer: type) -> None:
    expected = ask(REQUESTS[name])
    assert expected is not None
    assert ask(buffer(REQUESTS[name] + bytes(13))) == expected


def test_a_reply_outlives_the_buffer_of_its_request() -> None:
    network = new_network()
    buffer = bytearray(REQUESTS["icmp"])
    network.write_packets([memoryview(buffer)])
    buffer[:] = bytes(len(buffer))
    assert network.read_packets(1) == [ask(REQUESTS["icmp"])]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_with_a_flipped_bit_is_not_answered_unless_no_checksum_covers_it(name: str) -> None:
    request = REQUESTS[name]
    # What no checksum of IPv6 covers and no answer depends on: traffic class, flow label and hop limit.
    uncovered = set(range(4, 32)) | set(range(56, 64)) if request[0] >> 4 == 6 else set()
    for bit in range(8 * len(request)):
        if bit in uncovered:
            continue
        damaged = bytearray(request)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        assert ask(damaged) is None, f"bit {bit}"


@pytest.mark.parametrize("name", REQUESTS)
def test_truncated_requests_are_not_answered(name: str) -> None:
    for end in range(len(REQUESTS[name])):
        assert ask(REQUESTS[name][:end]) is None


def test_a_short_message_in_a_valid_header_is_not_answered() -> None:
    for size in range(8):
        assert ask(ipv4(ICMP, icmp_echo(b"")[:size])) is None
        assert ask(ipv4(UDP, udp(b"")[:size])) is None
        assert ask(ipv6(UDP, udp(b"")[:size])) is None
        if size >= 4:
            assert ask(with_checksum(ipv6(ICMPV6, b"\x80" + bytes(size - 1)), at=2)) is None


@pytest.mark.parametrize("fragment", [0x2000, 0x0001, 0x1FFF, 0x6001])
def test_fragments_are_not_answered(fragment: int) -> None:
    assert ask(ipv4(ICMP, icmp_echo(b"\x12\x34\0\x01"), fragment=fragment)) is None


def test_a_packet_with_dont_fragment_is_answered() -> None:
    assert ask(ipv4(ICMP, icmp_echo(b"\x12\x34\0\x01"), fragment=0x4000)) is not None


@pytest.mark.parametrize("next_header", [0, 43, 44, 60])
def test_extension_headers_are_not_answered(next_header: int) -> None:
    extension = struct.pack(">BB", ICMPV6, 0) + bytes(6)
    assert ask(ipv6(next_header, extension + ping6()[40:])) is None


def test_other_messages_are_not_answered() -> None:
    for kind in (0, 3, 11, 13):
        assert ask(ipv4(ICMP, icmp_echo(b"\x12\x34\0\x01", kind))) is None
    for kind in (1, 129, 133, 135):
        assert ask(with_checksum(ipv6(ICMPV6, struct.pack(">BBHI", kind, 0, 0, 1)), at=2)) is None
    for protocol in (0, 6, ICMPV6, 255):
        assert ask(ipv4(protocol, icmp_echo(b"\x12\x34\0\x01"))) is None
    for next_header in (ICMP, 6, 59):
        assert ask(ipv6(next_header, icmp_echo(b"\x12\x34\0\x01"))) is None
    code = struct.pack(">BBHI", 8, 1, 0, 1)
    assert ask(ipv4(ICMP, code[:2] + struct.pack(">H", checksum(code)) + code[4:])) is None


@pytest.mark.parametrize("ports", [(40_000, 8), (40_000, 0), (0, 7), (7, 7), (7, 40_000)])
def test_only_the_echo_port_answers_and_never_to_another_echo_service(ports: tuple[int, int]) -> None:
    assert ask(udp4(source_port=ports[0], destination_port=ports[1])) is None
    assert ask(udp6(source_port=ports[0], destination_port=ports[1])) is None


def test_a_udp_reply_has_the_payload_within_the_udp_length() -> None:
    longer = bytearray(ipv4(UDP, udp(b"payload") + b"trailer"))
    reply = ask(longer)
    assert reply is not None
    assert reply[28:] == b"payload"
    for length in (0, 7, 8 + 7 + 7 + 1):
        assert ask(ipv4(UDP, struct.pack(">HHHH", 40_000, 7, length, 0) + b"payloadtrailer")) is None


@pytest.mark.parametrize("destination", ["10.0.0.0", "10.0.0.3", "10.0.0.255", "224.0.0.1", "255.255.255.255"])
def test_other_addresses_do_not_answer(destination: str) -> None:
    assert ask(ipv4(ICMP, icmp_echo(b"\x12\x34\0\x01"), destination=destination)) is None


def test_other_ipv6_addresses_do_not_answer() -> None:
    for destination in ("fd00::", "fd00::3", "ff02::1"):
        packet = ipv6(ICMPV6, struct.pack(">BBHI", 128, 0, 0, 1), destination=destination)
        assert ask(with_checksum(packet, at=2)) is None


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_an_ipv4_source_that_is_not_a_single_host_is_not_answered(source: str) -> None:
    assert ask(ipv4(ICMP, icmp_echo(b"\x12\x34\0\x01"), source=source)) is None


@pytest.mark.parametrize("source", ["::", "ff02::1"])
def test_an_ipv6_source_that_is_not_a_single_host_is_not_answered(source: str) -> None:
    packet = ipv6(ICMPV6, struct.pack(">BBHI", 128, 0, 0, 1), source=source)
    assert ask(with_checksum(packet, at=2)) is None


def test_replies_are_read_in_order_up_to_the_limit() -> None:
    network = new_network()
    requests = [udp4(bytes([number])) for number in range(10)]
    assert network.write_packets([*requests, b"no packet", b""]) == 2
    assert network.pending == 10
    replies = network.read_packets(3) + network.read_packets(0) + network.read_packets(100)
    assert [reply[28] for reply in replies] == list(range(10))
    assert network.pending == 0
    assert network.read_packets(1) == []
    assert network.replies_dropped == 0


def test_unread_replies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "PENDING_REPLIES_MAX", 4)
    network = new_network()
    assert network.write_packets([udp4(bytes([number])) for number in range(10)]) == 0
    assert network.pending == 4
    assert network.replies_dropped == 6
    assert [reply[28] for reply in network.read_packets(10)] == [6, 7, 8, 9]


def test_a_userspace_network_has_no_descriptor_to_poll() -> None:
    network: Tunnel = new_network()
    assert network.fileno() is None


def test_an_address_may_be_given_as_a_host_or_as_an_interface() -> None:
    interfaces: list[IPv4Interface | IPv6Interface] = [IPv4Interface("10.0.0.1/24"), IPv6Interface("fd00::1/64")]
    for network in (UserspaceNetwork([SERVER4, SERVER6]), UserspaceNetwork(interfaces)):
        assert network.write_packets(list(REQUESTS.values())) == 0
    assert UserspaceNetwork([]).write_packets(list(REQUESTS.values())) == len(REQUESTS)
