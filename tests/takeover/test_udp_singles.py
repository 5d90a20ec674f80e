"""Datagrams that come singly are collected in rows, in order, and never more packets than one batch may hold."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.udp_cmsg import UDP_SEGMENT
from oxidize.protocol.constants import BATCH_PACKETS_MAX, DATA_OVERHEAD
from oxidize.protocol.rows import ROW_BYTES, ReceivedRows

RECEIVES_MAX = 1000


class Stand:
    """A socket that receives, and senders."""

    def __init__(self, undo: ExitStack) -> None:
        self.bound = undo.enter_context(bind_udp("127.0.0.1", 0))
        self.udp = UdpSocket(self.bound)
        self.udp.take_ownership()
        self.rows = ReceivedRows()
        self.senders = [undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)]
        for sender in self.senders:
            sender.connect(self.bound.getsockname())

    def send_joined(self, datagrams: list[bytes]) -> None:
        """Send datagrams of one size that arrive as one batch."""
        segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))
        self.senders[0].sendmsg([b"".join(datagrams)], [segment])

    def receive(self) -> list[tuple[int, bytes]]:
        """Return the port of the sender, and the datagram, of all that one receive brings."""
        batch = self.udp.receiver.receive(self.rows)
        found = [(self.rows.endpoints[row].port, bytes(self.rows.datagram(row))) for row in range(len(self.rows.sizes))]
        if batch is not None:
            found += [(batch.endpoint.port, bytes(datagram)) for datagram in batch.datagrams]
        return found

    def receive_all(self) -> list[list[tuple[int, bytes]]]:
        receives = []
        for _ in range(RECEIVES_MAX):
            receives.append(self.receive())
            if self.udp.receiver.is_empty and not receives[-1]:
                return receives
        raise AssertionError("the socket is never empty")


@pytest.fixture
def stand() -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(undo)


def numbered(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "big").ljust(size, b".") for number in range(count)]


def test_singles_of_several_senders_come_in_one_receive_in_order(stand: Stand) -> None:
    sent = []
    for number, datagram in enumerate(numbered(30, 60)):
        sender = stand.senders[number % 3]
        sender.send(datagram)
        sent.append((sender.getsockname()[1], datagram))
    assert stand.receive() == sent
    assert stand.udp.receiver.is_empty


@pytest.mark.parametrize("size", [DATA_OVERHEAD, 100, 1344, ROW_BYTES])
def test_no_receive_brings_more_packets_than_a_batch_even_if_a_batch_comes_behind_singles(
    size: int, stand: Stand
) -> None:
    sent = []
    for singles in (1, 20, 40, BATCH_PACKETS_MAX):
        datagrams = numbered(singles, size)
        for datagram in datagrams:
            stand.senders[0].send(datagram)
        joined = [bytes([singles]) * DATA_OVERHEAD] * 60  # shorter than a row, all together
        stand.send_joined(joined)
        sent += datagrams + joined
    receives = stand.receive_all()
    assert [datagram for receive in receives for _, datagram in receive] == sent
    assert max(map(len, receives)) <= BATCH_PACKETS_MAX


def test_a_short_batch_comes_with_the_singles_before_it(stand: Stand) -> None:
    singles, joined = numbered(5, 60), numbered(4, 40)
    for datagram in singles:
        stand.senders[0].send(datagram)
    stand.send_joined(joined)
    assert [datagram for _, datagram in stand.receive()] == singles + joined


def test_joined_datagrams_are_followed_by_no_receive_where_nothing_waits(stand: Stand) -> None:
    joined = numbered(45, 1452)
    for more in (True, False):
        stand.send_joined(joined)
        if more:
            stand.send_joined(joined)
            assert [datagram for _, datagram in stand.receive()] == joined
            assert not stand.udp.receiver.is_empty
        assert [datagram for _, datagram in stand.receive()] == joined
        assert stand.udp.receiver.is_empty


def test_datagrams_of_all_sizes_come_in_order(stand: Stand) -> None:
    sent = [
        bytes([number]) * size
        for number, size in enumerate((60, ROW_BYTES + 1, 60, 0, 60, 9000, ROW_BYTES, 0, 0, 33, 65_507, 1))
    ]
    for datagram in sent:
        stand.senders[0].send(datagram)
    receives = stand.receive_all()
    found = [datagram for receive in receives for _, datagram in receive]
    assert found == sent
