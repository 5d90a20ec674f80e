"""Data messages of no session, many in a row: they cost little, and no other datagram is dropped with them.

On real sockets, with real devices.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from oxidize.net.data_path import DataPath
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.udp_cmsg import UDP_SEGMENT
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.inner_packets import Frame
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.super_packets import SuperPacket
from tests.support.network import Host, World, connected

STRAY = b"\4\0\0\0" + bytes(92)  # the index 0 names nothing
EVENTS_MAX = 1000


class Tunnel:
    header_size = 0
    takes_super_packets = False

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def fileno(self) -> int:
        return 9

    def read_packets(self, limit: int) -> list[bytes]:
        return []

    def write_frames(self, frames: Sequence[Frame]) -> int:
        return self.write_packets([frame for frame in frames if not isinstance(frame, SuperPacket)])

    def write_packets(self, packets: Sequence[bytes | memoryview]) -> int:
        self.packets += map(bytes, packets)
        return 0


class Stand:
    """A server with a real socket, one client of it that has a session, and a stranger."""

    def __init__(self, undo: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = World()
        self.client, self.server = connected(self.world)
        bound = undo.enter_context(bind_udp("127.0.0.1", 0))
        self.udp = UdpSocket(bound)
        self.udp.take_ownership()
        self.tunnel = Tunnel()
        counters = self.server.slots.counters
        self.path = DataPath(self.server.device, self.udp, self.tunnel, counters, lambda: self.world.now)
        self.peer, self.stranger = (undo.enter_context(self._connected(bound)) for _ in range(2))
        self.looked_into = self.batches = 0
        receive_slowly, receive_rows = Device._receive, Device.receive_rows

        def count(
            device: Device, datagrams: Sequence[bytes | memoryview], endpoint: Endpoint, now: float
        ) -> list[bytes]:
            self.looked_into += len(datagrams)
            return receive_slowly(device, datagrams, endpoint, now)

        def count_batch(
            device: Device, rows: ReceivedRows, now: float, *, join_segments: bool
        ) -> Iterator[list[Frame]]:
            self.batches += 1
            return receive_rows(device, rows, now, join_segments=join_segments)

        monkeypatch.setattr(Device, "_receive", count)
        monkeypatch.setattr(Device, "receive_rows", count_batch)

    def _connected(self, bound: socket.socket) -> socket.socket:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(bound.getsockname())
        return sender

    def messages(self, count: int) -> list[bytes]:
        """Return data messages of the client's session."""
        self.client.send(self.server, b"x" * 60, count)
        return [datagram for transmit in self.client.take_transmits() for datagram in transmit.datagrams]

    def carry(self, datagrams: int) -> None:
        """Let the server read until it has counted so many datagrams more."""
        wanted = self.received + datagrams
        for _ in range(EVENTS_MAX):
            self.path.from_udp()
            if self.received >= wanted:
                break
        assert self.received == wanted

    @property
    def received(self) -> int:
        return self.server.total(Total.RECEIVED_DATAGRAMS)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(undo, monkeypatch)


def test_strays_of_no_peer_are_counted_and_not_looked_into(stand: Stand) -> None:
    before = stand.server.total(Total.RECEIVED_BYTES)
    for _ in range(320):
        stand.stranger.send(STRAY)
    stand.carry(320)
    assert stand.looked_into == 0
    assert stand.server.dropped(DropReason.UNKNOWN_INDEX) == 320
    assert stand.server.total(Total.RECEIVED_BYTES) == before + 320 * len(STRAY)


def test_the_data_between_strays_is_delivered_in_order(stand: Stand) -> None:
    messages = stand.messages(64)
    for message in messages:
        for _ in range(3):
            stand.stranger.send(STRAY)
        stand.peer.send(message)
    stand.carry(4 * len(messages))
    assert len(stand.tunnel.packets) == len(messages)
    assert stand.server.drops() == {"UNKNOWN_INDEX": 3 * len(messages)}


def test_a_batch_behind_strays_is_delivered_even_if_it_begins_with_one(stand: Stand) -> None:
    messages = stand.messages(10)
    (size,) = {len(message) for message in messages}
    stray = STRAY[:8] + bytes(size - 8)
    for _ in range(5):
        stand.stranger.send(STRAY)
    segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))
    stand.peer.sendmsg([b"".join([stray, *messages])], [segment])
    stand.carry(5 + 11)
    assert len(stand.tunnel.packets) == 10


def test_a_datagram_that_is_no_data_message_is_looked_into_behind_strays(stand: Stand) -> None:
    others = [b"", b"\4\0\0\0", b"\1\0\0\0" + bytes(144), bytes(100), b"\3\0\0\0" + bytes(60)]
    for datagram in (STRAY, *others):
        stand.stranger.send(datagram)
    stand.carry(1 + len(others))
    assert stand.looked_into == len(others)


def remote_of(sender: socket.socket) -> Endpoint:
    host, port = sender.getsockname()
    return Endpoint(socket.inet_aton(host), port)


def lose_sessions(host: Host) -> None:
    """Let a host forget what it knows of its peer's session, but not where the peer is."""
    for peer in host.device.peers.values():
        host.device._table.forget_keys(peer)


def test_a_peer_that_uses_a_lost_session_is_asked_beside_strays(stand: Stand) -> None:
    lose_sessions(stand.server)
    (peer,) = stand.server.device.peers.values()
    stand.server.device._table.set_endpoint(peer, remote_of(stand.peer))
    stand.world.now += 60.0
    for sender, count in ((stand.stranger, 20), (stand.peer, 30)):
        for _ in range(count):
            sender.send(STRAY)
    stand.carry(20 + 30)
    assert stand.server.total(Total.UNKNOWN_INDEX_INITIATIONS) == 1
    assert stand.looked_into <= stand.batches, "one of each batch is enough"
