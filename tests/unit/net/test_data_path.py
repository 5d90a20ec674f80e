"""The data path processes a batch completely before it reads the next, and counts what it cannot deliver."""

from collections import deque
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from oxidize.net import data_path
from oxidize.net.data_path import BATCHES_PER_EVENT_MAX, DataPath
from oxidize.net.udp import UdpSocket
from oxidize.net.udp_cmsg import Datagram
from oxidize.net.udp_receiver import ReceivedBatch, UdpReceiver
from oxidize.protocol.admission import Admission
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.cookie import CookieChecker
from oxidize.protocol.counters import DROPS_START, DropReason, Total
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.fair_share import FairShare
from oxidize.protocol.inner_packets import Frame
from oxidize.protocol.rate_limiter import LoadMeter
from oxidize.protocol.row_sender import SealedBatch
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.session_table import SessionTable, Transmit
from oxidize.protocol.super_packets import SuperPacket
from oxidize.protocol.undelivered import Undelivered
from tests.support.counters import ArraySlots

HERE = Endpoint(bytes([192, 0, 2, 1]), 51820)


class FakeReceiver(UdpReceiver):
    """Brings what waits in `singles`, then a batch."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.singles: deque[list[bytes]] = deque()
        self.batches: deque[ReceivedBatch] = deque()
        self.unreachable: list[tuple[tuple[bytes, int, int], bool]] = []
        self.is_cut = False

    def receive(self, rows: ReceivedRows, *, parts_initiations: bool = False) -> ReceivedBatch | None:
        self.log.append("receive")
        rows.clear()
        for datagram in self.singles.popleft() if self.singles else []:
            rows.room[len(rows.sizes)][0][: len(datagram)] = datagram
            rows.sizes.append(len(datagram))
            rows.endpoints.append(HERE)
        batch = self.batches.popleft() if self.batches else None
        self.is_empty = batch is None and not rows.sizes
        return batch


class FakeUdp(UdpSocket):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.receiver: FakeReceiver = FakeReceiver(log)
        self.refused = 0

    def transmit(self, endpoint: Endpoint, datagrams: Sequence[Datagram], joined: memoryview | None = None) -> int:
        self.log.append(f"transmit {len(datagrams)}")
        return len(datagrams) - self.refused


class FakeDevice(Device):
    """Delivers every datagram unchanged, and sends every packet unchanged."""

    def __init__(self) -> None:
        self.mtu = 576
        self.fair_share = FairShare(bytes)
        self.queued: list[Transmit] = []
        self.timeouts: list[float] = []
        self.unreachable: list[tuple[tuple[bytes, int, int], float, bool]] = []
        table = SessionTable(ArraySlots(), lambda _: None, bytes)
        self.undelivered = Undelivered(table)
        self.admission = Admission(table, CookieChecker(bytes(32), bytes), LoadMeter())

    def on_unreachable(self, remote: tuple[bytes, int, int], now: float, *, refused: bool) -> None:
        self.unreachable.append((remote, now, refused))

    def receive_rows(self, rows: ReceivedRows, now: float, *, join_segments: bool = False) -> Iterator[list[Frame]]:
        yield [rows.datagram(row) for row in range(len(rows.sizes))]

    def receive_datagrams(self, datagrams: Sequence[bytes | memoryview], endpoint: Endpoint, now: float) -> list[bytes]:
        assert endpoint == HERE
        return [bytes(datagram) for datagram in datagrams if datagram]

    def send_rows(self, packets: Sequence[bytes | memoryview], now: float) -> list[SealedBatch]:
        if packets[0] == b"no session":
            self.send_packets(packets, now)
            return []
        return [SealedBatch(HERE, [memoryview(packet) for packet in packets])]

    def send_packets(self, packets: Sequence[bytes | memoryview], now: float) -> None:
        self.queued.append(Transmit(HERE, [bytes(packet) for packet in packets]))

    def take_transmits(self) -> list[Transmit]:
        queued, self.queued = self.queued, []
        return queued

    def next_deadline(self) -> float:
        return 7.0

    def handle_timeout(self, now: float) -> None:
        self.timeouts.append(now)
        self.send_packets([b"keepalive"], now)


class FakeTunnel:
    header_size = 0
    takes_super_packets = False

    def __init__(self, log: list[str], fd: int | None) -> None:
        self.log = log
        self.fd = fd
        self.waiting: list[bytes] = []
        self.refused = 0

    def fileno(self) -> int | None:
        return self.fd

    def read_packets(self, limit: int) -> list[bytes]:
        self.log.append("read")
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    def write_frames(self, frames: Sequence[Frame]) -> int:
        return self.write_packets([frame for frame in frames if not isinstance(frame, SuperPacket)])

    def write_packets(self, packets: Sequence[bytes | memoryview]) -> int:
        self.log.append(f"write {len(packets)}")
        if self.fd is None:
            self.waiting += map(bytes, packets)
        return self.refused


def make(fd: int | None = 9) -> SimpleNamespace:
    log: list[str] = []
    counters = ArraySlots().counters
    udp, device, tunnel = FakeUdp(log), FakeDevice(), FakeTunnel(log, fd)
    path = DataPath(device, udp, tunnel, counters, lambda: 5.0, DropReason.ROUTE_UNSUPPORTED)
    return SimpleNamespace(path=path, udp=udp, device=device, tunnel=tunnel, counters=counters, log=log)


def dropped(parts: SimpleNamespace, reason: DropReason) -> int:
    return int(parts.counters[DROPS_START + reason])


def batch(*datagrams: bytes, truncated: bool = False) -> ReceivedBatch:
    return ReceivedBatch(HERE, [memoryview(datagram) for datagram in datagrams], truncated)


def test_a_batch_is_written_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_path, "BATCHES_PER_EVENT_MAX", 3)
    parts = make()
    parts.udp.receiver.batches += [batch(b"a", b"b"), batch(b"c")]
    parts.path.from_udp()
    assert parts.log == ["receive", "write 2", "receive", "write 1", "receive"]


def test_singles_are_written_before_the_batch_behind_them() -> None:
    parts = make()
    parts.udp.receiver.singles.append([b"a", b"b"])
    parts.udp.receiver.batches.append(batch(b"c"))
    parts.path.from_udp()
    assert parts.log == ["receive", "write 2", "write 1", "receive"]


def test_other_event_sources_are_served_after_a_limit_of_batches() -> None:
    parts = make()
    parts.udp.receiver.batches += [batch(b"a")] * (BATCHES_PER_EVENT_MAX + 1)
    parts.path.from_udp()
    assert len(parts.udp.receiver.batches) == 1
    parts.tunnel.waiting = [b"x"] * (BATCH_PACKETS_MAX * (BATCHES_PER_EVENT_MAX + 1))
    parts.path.from_tunnel()
    assert len(parts.tunnel.waiting) == BATCH_PACKETS_MAX


def test_a_tunnel_that_replies_at_once_is_read_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_path, "BATCHES_PER_EVENT_MAX", 3)
    parts = make(fd=None)
    parts.udp.receiver.batches += [batch(b"a"), batch(b"b")]
    parts.path.from_udp()
    once = ["receive", "write 1", "read", "transmit 1"]
    assert parts.log == [*once, *once, "receive"]


def test_a_batch_without_packets_writes_nothing() -> None:
    parts = make()
    parts.udp.receiver.batches.append(batch(b""))
    parts.path.from_udp()
    assert parts.log == ["receive", "receive"]


def test_packets_and_datagrams_that_are_refused_are_counted() -> None:
    parts = make()
    parts.tunnel.refused = 2
    parts.udp.receiver.batches += [batch(b"a", b"b", b"c"), batch(truncated=True)]
    parts.path.from_udp()
    assert dropped(parts, DropReason.ROUTE_UNSUPPORTED) == 2
    assert dropped(parts, DropReason.TRUNCATED) == 1
    parts.udp.refused = 1
    parts.tunnel.waiting = [b"x", b"y"]
    parts.path.from_tunnel()
    assert dropped(parts, DropReason.SEND_FAILED) == 1


def test_datagrams_of_rows_are_sent_and_those_that_are_queued_too() -> None:
    parts = make()
    parts.tunnel.waiting = [b"x", b"y"]
    parts.path.from_tunnel()
    parts.tunnel.waiting = [b"no session"]
    parts.path.from_tunnel()
    assert parts.log == ["read", "transmit 2", "read", "transmit 1"]


def test_datagrams_that_a_timeout_queues_are_sent_at_once() -> None:
    parts = make()
    assert parts.path.next_deadline() == 7.0
    parts.path.handle_timeout(7.5)
    assert parts.device.timeouts == [7.5]
    assert parts.log == ["transmit 1"]
    assert parts.device.queued == []


def test_an_unreachable_peer_is_reported_once_for_each_flush() -> None:
    parts = make()
    other = (bytes([192, 0, 2, 9]), 1, 0)
    parts.udp.receiver.unreachable = [(HERE.remote, True)] * 1000 + [(other, False), (HERE.remote, False)]
    parts.path.from_udp()
    assert parts.device.unreachable == [(HERE.remote, 5.0, True), (other, 5.0, False), (HERE.remote, 5.0, False)]
    assert parts.udp.receiver.unreachable == []
    parts.udp.receiver.unreachable = [(HERE.remote, True)]
    parts.path.flush()
    assert len(parts.device.unreachable) == 4
    parts.path.flush()
    assert len(parts.device.unreachable) == 4


def test_senders_of_packets_that_no_peer_gets_are_told_once() -> None:
    parts = make()
    parts.device.undelivered.answers += [b"first", b"second"]
    parts.path.flush()
    parts.path.flush()
    assert parts.log == ["write 2"]
    assert parts.counters[Total.UNREACHABLES_SENT] == 2


def test_answers_that_the_tunnel_refuses_are_neither_sent_nor_dropped_packets() -> None:
    parts = make()
    parts.tunnel.refused = 1
    parts.device.undelivered.answers += [b"first", b"second"]
    parts.path.flush()
    assert parts.counters[Total.UNREACHABLES_SENT] == 1
    assert dropped(parts, DropReason.ROUTE_UNSUPPORTED) == 0
