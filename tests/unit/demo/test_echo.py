"""Echo requests and the check of their replies."""

from ipaddress import IPv4Address

import pytest

from demo.echo import EchoPath, checksum

CLIENT, SERVER = IPv4Address("10.77.0.2"), IPv4Address("10.77.0.1")


def reply_to(request: bytes) -> bytes:
    """Return the reply of a host by RFC 792: addresses exchanged, type 0, new checksums."""
    header = bytearray(request[:20])
    header[12:16], header[16:20] = header[16:20], header[12:16]
    message = bytearray(request[20:])
    message[0] = 0
    message[2:4] = bytes(2)
    message[2:4] = checksum(bytes(message)).to_bytes(2, "big")
    return bytes(header + message)


@pytest.fixture
def path() -> EchoPath:
    return EchoPath(CLIENT, SERVER, 7)


def test_the_checksum_matches_the_example_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@pytest.mark.parametrize("number", [0, 1, 65_535, 65_536, 2**63])
def test_a_reply_returns_number_and_time_of_its_request(path: EchoPath, number: int) -> None:
    request = path.request(number, 123_456_789)
    assert checksum(request[:20]) == 0
    assert checksum(request[20:]) == 0
    assert int.from_bytes(request[2:4], "big") == len(request)
    assert path.read_reply(reply_to(request)) == (number, 123_456_789)


def test_a_request_is_no_reply(path: EchoPath) -> None:
    assert path.read_reply(path.request(1, 2)) is None


def test_a_reply_to_another_client_is_refused(path: EchoPath) -> None:
    other = EchoPath(CLIENT, SERVER, 8)
    assert path.read_reply(reply_to(other.request(1, 2))) is None


def test_a_change_of_any_byte_is_noticed(path: EchoPath) -> None:
    reply = reply_to(path.request(300, 2**40))
    for position in range(len(reply)):
        damaged = bytearray(reply)
        damaged[position] ^= 0x21
        assert path.read_reply(bytes(damaged)) is None, position


@pytest.mark.parametrize("length", [0, 1, 19, 20, 27, 28, 59])
def test_a_short_packet_is_no_reply(path: EchoPath, length: int) -> None:
    assert path.read_reply(reply_to(path.request(1, 2))[:length]) is None
    assert path.read_reply(bytes(length)) is None


def test_a_long_packet_is_no_reply(path: EchoPath) -> None:
    assert path.read_reply(reply_to(path.request(1, 2)) + b"\0\0") is None
