"""The userspace network against any bytes, and echo against any payload."""

import struct
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.allowed_ips import inner_length

SERVER4, CLIENT4 = ip_address("10.0.0.1").packed, ip_address("10.0.0.2").packed
SERVER6, CLIENT6 = ip_address("fd00::1").packed, ip_address("fd00::2").packed

payloads = st.one_of(st.binary(max_size=64), st.integers(0, 1400).map(bytes), st.integers(0, 1400).map(b"\xff".__mul__))


def ones_sum(data: bytes) -> int:
    """Return the one's complement sum of RFC 1071; 0xFFFF for data with a correct checksum."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp_request(version: int, source_port: int, payload: bytes) -> bytes:
    addresses = CLIENT4 + SERVER4 if version == 4 else CLIENT6 + SERVER6
    length = 8 + len(payload)
    segment = struct.pack(">HHHH", source_port, 7, length, 0) + payload
    value = ones_sum(addresses + struct.pack(">HH", 17, length) + segment) ^ 0xFFFF or 0xFFFF
    segment = segment[:6] + struct.pack(">H", value) + payload
    if version == 6:
        return struct.pack(">IHBB", 0x6000_0000, length, 17, 64) + addresses + segment
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + addresses
    return header[:10] + struct.pack(">H", ones_sum(header) ^ 0xFFFF) + header[12:] + segment


def icmp_request(version: int, identifier: int, payload: bytes) -> bytes:
    message = struct.pack(">BBHI", 8 if version == 4 else 128, 0, 0, identifier) + payload
    addresses = CLIENT4 + SERVER4 if version == 4 else CLIENT6 + SERVER6
    pseudo_header = b"" if version == 4 else addresses + struct.pack(">II", len(message), 58)
    value = ones_sum(pseudo_header + message) ^ 0xFFFF
    message = message[:2] + struct.pack(">H", value) + message[4:]
    if version == 6:
        return struct.pack(">IHBB", 0x6000_0000, len(message), 58, 64) + addresses + message
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0) + addresses
    return header[:10] + struct.pack(">H", ones_sum(header) ^ 0xFFFF) + header[12:] + message


requests = st.one_of(
    st.builds(udp_request, st.sampled_from([4, 6]), st.integers(8, 0xFFFF), payloads),
    st.builds(icmp_request, st.sampled_from([4, 6]), st.integers(0, 0xFFFF_FFFF), payloads),
)


def check_reply(reply: bytes) -> bytes:
    """Check that a packet is complete with correct checksums; return the part after its IP header."""
    assert inner_length(reply) == len(reply)
    if reply[0] >> 4 == 4:
        assert ones_sum(reply[:20]) == 0xFFFF
        payload, addresses, protocol = reply[20:], reply[12:20], reply[9]
        assert addresses[:4] == SERVER4
    else:
        payload, addresses, protocol = reply[40:], reply[8:40], reply[6]
        assert addresses[:16] == SERVER6
    pseudo_header = b"" if protocol == 1 else addresses + struct.pack(">HH", protocol, len(payload))
    if protocol != 17 or payload[6:8] != b"\0\0":
        assert ones_sum(pseudo_header + payload) == 0xFFFF
    return payload


def new_network() -> UserspaceNetwork:
    return UserspaceNetwork([ip_address(SERVER4), ip_address(SERVER6)])


@settings(max_examples=300)
@given(requests)
def test_every_echo_reply_has_the_payload_of_its_request(request: bytes) -> None:
    network = new_network()
    assert network.write_packets([request]) == 0
    (reply,) = network.read_packets(2)
    assert len(reply) == len(request)
    header_size = 20 if request[0] >> 4 == 4 else 40
    payload = check_reply(reply)
    if request[9 if header_size == 20 else 6] == 17:
        assert payload[:4] == request[header_size + 2 : header_size + 4] + request[header_size : header_size + 2]
        assert payload[8:] == request[header_size + 8 :]
    else:
        assert payload[:2] in (b"\0\0", b"\x81\0")
        assert payload[4:] == request[header_size + 4 :]


def damaged(packet: bytes, at: int, junk: bytes, end: int) -> bytes:
    """Overwrite some bytes of a packet and cut off its end."""
    at %= len(packet)
    return (packet[:at] + junk + packet[at + len(junk) :])[:end]


@settings(max_examples=500)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.builds(bytes.__add__, st.sampled_from([b"\x45", b"\x4f", b"\x60"]), st.binary(max_size=100)),
            st.builds(damaged, requests, st.integers(0, 1500), st.binary(max_size=4), st.integers(0, 1500)),
        ),
        max_size=6,
    )
)
def test_no_bytes_raise_and_every_reply_is_a_valid_packet(packets: list[bytes]) -> None:
    network = new_network()
    unanswered = network.write_packets(packets)
    replies = network.read_packets(len(packets))
    assert unanswered + len(replies) == len(packets)
    assert network.pending == 0
    for reply in replies:
        check_reply(reply)
