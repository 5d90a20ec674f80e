"""What only a process knows is recorded in slices, so that a freeze has little left to record, and nothing is lost."""

import pytest

from oxidize.protocol import unrecorded as unrecorded_module
from oxidize.protocol.changes import Change, PeerEndpoint, PeerStaged, PeerStagedMore
from oxidize.protocol.constants import STAGED_PACKETS_MAX
from oxidize.protocol.counters import DropReason
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.unrecorded import FREEZE_BYTES_MAX, FREEZE_PACKETS_MAX, SLICE_RECORDS_MAX
from tests.support.network import Host, World, connected, packet

SIZE = 1000


def offline(world: World, count: int) -> tuple[Host, list[Host]]:
    """Return a hub that knows `count` peers, none of which answers."""
    hub, *others = hosts = [world.host() for _ in range(count + 1)]
    for host in others:
        hub.know(host)
        host.know(hub)
    for host in hosts:
        host.start()
    return hub, others


def fill(hub: Host, others: list[Host], each: int, payload: bytes = bytes(SIZE)) -> None:
    for host in others:
        for first in range(0, each, 64):
            hub.send(host, payload, min(64, each - first))


def is_small(hub: Host) -> bool:
    return hub.device.unrecorded.is_small


def record_until_small(hub: Host) -> int:
    slices = 0
    while not hub.device.unrecorded.is_small:
        hub.device.unrecorded.record_slice(hub.world.now)
        slices += 1
    return slices


def recorded_in_freeze(hub: Host) -> list[Change]:
    before = len(hub.journal)
    hub.freeze()
    return hub.journal[before:]


def packets_of(changes: list[Change]) -> list[bytes]:
    return [each for c in changes if isinstance(c, PeerStaged | PeerStagedMore) for each in c.packets]


def test_a_freeze_records_little_after_the_rest_was_recorded_in_slices() -> None:
    hub, others = offline(World(), 20)
    fill(hub, others, STAGED_PACKETS_MAX)
    assert not hub.device.unrecorded.is_small
    assert record_until_small(hub) > 2
    fill(hub, others[:3], 2)
    changes = recorded_in_freeze(hub)
    assert [type(change) for change in changes] == [PeerStagedMore] * 3
    assert len(packets_of(changes)) == 6


def test_a_slice_is_bounded() -> None:
    hub, others = offline(World(), 2 * SLICE_RECORDS_MAX)
    fill(hub, others, 2, b"")
    before = len(hub.journal)
    hub.device.unrecorded.record_slice(hub.world.now)
    assert len(hub.journal) - before == SLICE_RECORDS_MAX


@pytest.mark.parametrize(("packets", "size", "small"), [(128, 100, True), (129, 100, False), (99, 1500, False)])
def test_little_is_a_number_of_packets_and_of_bytes(packets: int, size: int, small: bool) -> None:
    assert (FREEZE_PACKETS_MAX, FREEZE_BYTES_MAX) == (128, 128 << 10)
    hub, others = offline(World(), 3)
    for number in range(packets):
        hub.send(others[number % 3], bytes(size))
    assert hub.device.unrecorded.is_small is small


def test_packets_that_come_while_others_are_recorded_arrive_in_order_and_once() -> None:
    world = World()
    client, server = world.pair()
    for number in range(10):
        client.send(server, bytes([number]))
    client.device.unrecorded.record_slice(world.now)
    client.offer()
    for number in range(10, 14):
        client.send(server, bytes([number]))
        client.device.unrecorded.record_slice(world.now)  # each time the packets since the first slice
    client.freeze()
    predecessor = client.commit()
    world.exchange()
    assert server.delivered == [packet(client.inner, server.inner, bytes([number])) for number in range(14)]
    client.thaw(predecessor)
    world.run(60)
    assert len(server.delivered) == 14


def test_the_oldest_packets_are_dropped_by_the_successor_as_by_the_predecessor() -> None:
    hub, (peer, *_) = offline(World(), 2)
    fill(hub, [peer], STAGED_PACKETS_MAX)
    hub.device.unrecorded.record_slice(hub.world.now)
    for number in range(9):
        hub.send(peer, bytes([number]))
    expected = list(hub.peer(peer).staged)
    assert isinstance(recorded_in_freeze(hub)[-1], PeerStagedMore)
    hub.replace()
    assert list(hub.peer(peer).staged) == expected
    fill(hub, [peer], STAGED_PACKETS_MAX, b"new")
    expected = list(hub.peer(peer).staged)
    assert isinstance(recorded_in_freeze(hub)[-2], PeerStaged)  # more than half of them are new: all are recorded
    hub.replace()
    assert list(hub.peer(peer).staged) == expected


def recorded_in_two() -> tuple[Host, Host]:
    """Return a hub and a peer of which it has staged 11 packets, recorded in two records."""
    hub, (peer, *_) = offline(World(), 2)
    fill(hub, [peer], 10)
    hub.device.unrecorded.record_slice(hub.world.now)
    hub.send(peer, b"more")
    hub.device.unrecorded.record_slice(hub.world.now)
    return hub, peer


def test_packets_recorded_after_those_of_another_record_are_void() -> None:
    hub, peer = recorded_in_two()
    more = next(change for change in hub.journal if isinstance(change, PeerStagedMore))
    fill(hub, [peer], 30)
    hub.device.unrecorded.record_slice(hub.world.now)
    expected = list(hub.peer(peer).staged)
    hub.record(more)  # left behind by a process that was killed between the two records
    hub.replace()
    assert list(hub.peer(peer).staged) == expected


def test_a_reader_that_knows_one_kind_of_record_gets_all_packets_in_it() -> None:
    hub, peer = recorded_in_two()
    hub.device.unrecorded.record_whole(True)
    hub.send(peer, b"last")
    hub.freeze()
    old = [change for change in hub.folded() if not isinstance(change, PeerStagedMore)]
    device = hub.make_device()
    device.restore(old, hub.world.now)
    assert list(device.peers[peer.public_key].staged) == list(hub.peer(peer).staged)
    assert len(device.peers[peer.public_key].staged) == 12


def test_packets_leave_the_records_in_slices_where_no_successor_came() -> None:
    world = World()
    hub, others = offline(world, SLICE_RECORDS_MAX + 5)
    fill(hub, others, 5)
    hub.device.unrecorded.record_slice(world.now)
    fill(hub, others, 2)
    record_until_small(hub)
    hub.device.freeze()
    assert hub.device.unrecorded.retire_slice()
    assert not hub.device.unrecorded.retire_slice()
    assert packets_of(hub.folded()) == []
    assert all(len(hub.peer(other).staged) == 7 for other in others)
    recorded_in_freeze(hub)
    assert len(packets_of(hub.folded())) == 7 * len(others)


def test_what_is_too_much_for_a_freeze_is_dropped_and_counted_and_the_rest_is_handed_over() -> None:
    hub, others = offline(World(), 4)
    fill(hub, others, 10, b"recorded")
    hub.device.unrecorded.record_slice(hub.world.now)
    fill(hub, others, 60, b"too many")
    waiting = sum(len(hub.peer(other).staged) for other in others)
    hub.device.unrecorded.shrink()
    assert hub.device.unrecorded.is_small
    dropped = hub.dropped(DropReason.STAGED_OVERFLOW)
    expected = {other.public_key: list(hub.peer(other).staged) for other in others}
    assert dropped == waiting - sum(map(len, expected.values()))
    assert sum(map(len, expected.values())) == 4 * 10 + 60  # of one peer all, since most of its packets are new
    assert len(packets_of(recorded_in_freeze(hub))) <= FREEZE_PACKETS_MAX
    hub.replace()
    assert {other.public_key: list(hub.peer(other).staged) for other in others} == expected
    assert hub.device._staging._bytes_total == sum(len(each) for staged in expected.values() for each in staged)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Host, Host]:
    """Return a world where a client has moved twice, once unrecorded, which is more than a freeze may record."""
    monkeypatch.setattr(unrecorded_module, "FREEZE_MOVES_MAX", 0)
    world = World()
    client, server = connected(world)
    for number in (1, 2):
        world.move(client, Endpoint(bytes([198, 51, 100, number]), 4242))
        client.send(server)
        world.exchange()
    return world, client, server


def test_moves_are_recorded_in_slices_too(moved: tuple[World, Host, Host]) -> None:
    world, client, server = moved
    assert server.device._table.moved
    assert not is_small(server)
    server.device.unrecorded.record_slice(world.now)
    assert server.journal[-1] == PeerEndpoint(client.public_key, client.endpoint)
    assert is_small(server)
    assert recorded_in_freeze(server) == []


def test_a_move_that_is_too_much_for_a_freeze_is_found_again_by_the_next_packet(
    moved: tuple[World, Host, Host],
) -> None:
    world, client, server = moved
    server.device.unrecorded.shrink()
    assert recorded_in_freeze(server) == []
    server.replace()
    assert server.peer(client).endpoint != client.endpoint
    client.send(server)
    world.exchange()
    assert server.peer(client).endpoint == client.endpoint
