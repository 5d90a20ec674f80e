"""Staged packets leave in order, are limited, and are in the records until a process sends them."""

from collections.abc import Iterable

import pytest

from oxidize.protocol import staging as staging_module
from oxidize.protocol.changes import Change, PeerStaged
from oxidize.protocol.counters import DROPS_START, DropReason, Total
from oxidize.protocol.noise import LocalIdentity, RemoteIdentity
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.staging import Staging
from tests.support.counters import ArraySlots
from tests.support.link_policy import DEFAULT_POLICY

LIMIT = 5


class Scene:
    def __init__(self) -> None:
        self.slots = ArraySlots()
        self.records: list[Change] = []
        self.table = SessionTable(self.slots, self.records.append, bytes)
        self.staging = Staging(self.table)

    def peer(self, number: int = 1, limit: int = LIMIT) -> Peer:
        identity = LocalIdentity(bytes(31) + b"\7")
        settings = PeerSettings(number.to_bytes(32, "big"), link=DEFAULT_POLICY._replace(buffer_packets=limit))
        return Peer(settings, RemoteIdentity(identity, settings.public_key, bytes(32)))

    def dropped(self) -> int:
        return self.slots.counters[DROPS_START + DropReason.STAGED_OVERFLOW]

    def bytes_in_books(self) -> int:
        assert self.staging._bytes_total == sum(self.staging._bytes.values())
        return self.staging._bytes_total


def numbered(numbers: Iterable[int], size: int = 1) -> list[bytes]:
    return [bytes([number]) * size for number in numbers]


def record_all(scene: Scene) -> None:
    for peer in list(scene.staging.unrecorded):
        scene.staging.record(peer)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits in bytes that a test can reach: 100 for a peer, 250 for all."""
    monkeypatch.setattr(staging_module, "STAGED_PEER_BYTES_MAX", 100)
    monkeypatch.setattr(staging_module, "STAGED_BYTES_MAX", 250)


# --- Order and number ---


def test_packets_leave_in_the_order_in_which_they_came(scene: Scene) -> None:
    peer = scene.peer()
    scene.staging.add(peer, [memoryview(b"a"), b"b"])
    scene.staging.add(peer, [b"c"])
    assert scene.staging.peers == {peer}
    assert scene.staging.take(peer) == [b"a", b"b", b"c"]
    assert scene.staging.take(peer) == []
    assert scene.staging.peers == set()
    assert (scene.bytes_in_books(), scene.dropped()) == (0, 0)
    assert scene.slots.counters[Total.BUFFERED_PACKETS] == 3


def test_staged_packets_are_copies(scene: Scene) -> None:
    peer, buffer = scene.peer(), bytearray(b"old")
    scene.staging.add(peer, [memoryview(buffer)])
    buffer[:] = b"new"
    assert scene.staging.take(peer) == [b"old"]


def test_the_oldest_of_too_many_packets_are_dropped(scene: Scene) -> None:
    peer = scene.peer()
    scene.staging.add(peer, numbered(range(LIMIT + 3)))
    assert scene.dropped() == 3
    assert scene.bytes_in_books() == LIMIT
    assert scene.staging.take(peer) == numbered(range(3, LIMIT + 3))


def test_older_packets_are_staged_before_newer_ones(scene: Scene) -> None:
    peer = scene.peer()
    scene.staging.add(peer, numbered([3, 4]))
    scene.staging.add_older(peer, numbered([1, 2]))
    assert scene.staging.take(peer) == numbered([1, 2, 3, 4])


def test_older_packets_are_dropped_first_when_they_are_staged_before_newer_ones(scene: Scene) -> None:
    peer = scene.peer()
    scene.staging.add(peer, numbered([4, 5, 6]))
    scene.staging.add_older(peer, numbered([1, 2, 3]))
    assert scene.staging.take(peer) == numbered([2, 3, 4, 5, 6])
    assert (scene.dropped(), scene.bytes_in_books()) == (1, 0)
    scene.staging.add_older(peer, [])
    assert (scene.staging.take(peer), scene.staging.peers) == ([], set())


def test_staged_packets_can_be_taken_in_parts(scene: Scene) -> None:
    peer = scene.peer()
    scene.staging.add(peer, numbered(range(5), 10))
    assert scene.staging.take(peer, 2) == numbered([0, 1], 10)
    assert (scene.bytes_in_books(), scene.staging.peers) == (30, {peer})
    scene.staging.add(peer, numbered([5], 10))
    assert scene.staging.take(peer, 4) == numbered([2, 3, 4, 5], 10)
    assert (scene.bytes_in_books(), scene.staging.peers) == (0, set())


# --- Bytes ---


@pytest.mark.usefixtures("small")
def test_the_staged_bytes_of_one_peer_are_limited(scene: Scene) -> None:
    peer = scene.peer(limit=1000)
    scene.staging.add(peer, numbered(range(5), 30))
    assert scene.staging.take(peer) == numbered(range(3), 30)
    assert scene.dropped() == 2
    scene.staging.add(peer, [bytes(101)])
    assert scene.staging.peers == set()
    scene.staging.add(peer, [bytes(100)])
    assert scene.bytes_in_books() == 100


@pytest.mark.usefixtures("small")
def test_the_staged_bytes_of_all_peers_are_limited(scene: Scene) -> None:
    peers = [scene.peer(number, limit=1000) for number in range(1, 50)]
    for peer in peers:
        scene.staging.add(peer, numbered(range(9), 10))
    assert scene.bytes_in_books() == 250
    assert sum(len(packet) for peer in peers for packet in peer.staged) == 250
    assert scene.dropped() == 49 * 9 - 25
    assert scene.staging.peers == {peer for peer in peers if peer.staged}
    scene.staging.take(peers[0])
    scene.staging.add(peers[-1], numbered([7], 10))
    assert scene.staging.take(peers[-1]) == numbered([7], 10)


@pytest.mark.usefixtures("small")
def test_newer_packets_overflow_when_older_ones_are_staged_before_them(scene: Scene) -> None:
    peer = scene.peer(limit=1000)
    scene.staging.add(peer, numbered([4, 5, 6], 30))
    scene.staging.add_older(peer, numbered([1, 2], 30))
    assert scene.staging.take(peer) == numbered([1, 2, 4], 30)
    assert (scene.dropped(), scene.bytes_in_books()) == (2, 0)


# --- Records ---


def test_staged_packets_are_recorded_and_leave_the_records_before_they_are_sent(scene: Scene) -> None:
    first, second, idle = scene.peer(1), scene.peer(2), scene.peer(3)
    scene.staging.add(first, [b"a", b"b"])
    scene.staging.add(second, [b"c"])
    scene.staging.take(idle)
    assert scene.records == []
    record_all(scene)
    assert set(scene.records) == {
        PeerStaged(first.public_key, (b"a", b"b")),
        PeerStaged(second.public_key, (b"c",)),
    }
    scene.records.clear()
    assert scene.staging.take(first) == [b"a", b"b"]
    assert scene.records == [PeerStaged(first.public_key, ())]
    assert scene.staging.take(first) == []
    assert len(scene.records) == 1


def test_packets_taken_in_parts_leave_the_records_with_the_first_part(scene: Scene) -> None:
    peer = scene.peer()
    scene.staging.add(peer, numbered(range(4)))
    record_all(scene)
    scene.records.clear()
    scene.staging.take(peer, 1)
    scene.staging.take(peer, 1)
    assert scene.records == [PeerStaged(peer.public_key, ())]
    record_all(scene)
    assert scene.records[1:] == [PeerStaged(peer.public_key, tuple(numbered([2, 3])))]


def test_restored_packets_are_accounted_for(scene: Scene) -> None:
    peer, emptied = scene.peer(1), scene.peer(2)
    scene.staging.add(emptied, [b"sent by another owner"])
    record_all(scene)
    peer.staged.extend([b"ab", b"c"])
    emptied.staged.clear()
    scene.staging.on_restored([peer, emptied])
    assert scene.staging.peers == scene.staging.recorded == {peer}
    assert scene.bytes_in_books() == 3
    scene.records.clear()
    assert scene.staging.take(peer) == [b"ab", b"c"]
    assert scene.records == [PeerStaged(peer.public_key, ())]
    assert scene.bytes_in_books() == 0
