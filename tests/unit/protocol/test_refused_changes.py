"""A recorder that cannot take a change: that costs the change, and neither the device nor any of its sessions."""

from collections.abc import Callable

import pytest

from oxidize.errors import StorageError
from oxidize.protocol.changes import (
    Change,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerTimestamp,
)
from oxidize.protocol.constants import (
    ENDPOINT_RECORD_INTERVAL,
    REKEY_AFTER_TIME,
    STAGED_PACKETS_MAX,
    ZERO_KEYS_AFTER_TIME,
)
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.device import STORAGE_RETRY_SECS
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.session_table import UNKNOWN_PEERS_PER_SLICE, UnknownPeer
from tests.support.counters import ArraySlots
from tests.support.network import Host, World, packet

SCENARIO_CHANGES = 20  # more than one side of the scenario records
CALLS_MAX = 2000  # of timers in the scenario, where a refusal is tried again in every second


class ThriftyHost(Host):
    """A host whose recorder refuses some changes, and whose slots are checked against the records."""

    refuses: Callable[[int, Change], bool] = staticmethod(lambda number, change: False)
    changes = 0
    timeouts = 0

    def record(self, change: Change) -> None:
        self.changes += 1
        if self.refuses(self.changes, change):
            raise StorageError("the journal is full")
        super().record(change)

    def handle_timeout(self) -> None:
        self.timeouts += 1
        assert self.timeouts < CALLS_MAX, "a timer that cannot be handled leaves the loop no time"
        super().handle_timeout()

    def make_slots(self) -> ArraySlots:
        self.own_slots = super().make_slots()
        return self.own_slots


def thrifty_pair() -> tuple[World, ThriftyHost, ThriftyHost]:
    world = World()
    client, server = (world.add(ThriftyHost(world, number)) for number in (1, 2))
    client.know(server)
    server.know(client, reachable=False)
    client.start()
    server.start()
    return world, client, server


def talk(world: World, client: Host, server: Host) -> None:
    client.send(server)
    world.exchange()
    server.send(client)
    world.exchange()


def live_through_everything(world: World, client: Host, server: Host) -> None:
    """Shake hands in both directions, move, be replaced with packets staged, and forget all keys."""
    talk(world, client, server)
    world.run(REKEY_AFTER_TIME + 1)
    talk(world, client, server)
    world.move(client, Endpoint(b"\xcb\0\x71\1", 7))
    talk(world, client, server)
    world.run(ZERO_KEYS_AFTER_TIME)
    for host, other in ((client, server), (server, client)):
        host.send(other)
        host.hand_over()
        world.exchange()
        world.run(20.0)
    world.run(2 * ZERO_KEYS_AFTER_TIME)


def assert_works(world: World, client: Host, server: Host) -> None:
    world.run(60.0)
    client.delivered.clear()
    server.delivered.clear()
    client.send(server, b"after")
    world.exchange()
    world.run(10.0)
    server.send(client, b"after")
    world.exchange()
    world.run(10.0)
    assert packet(client.inner, server.inner, b"after") in server.delivered
    assert packet(server.inner, client.inner, b"after") in client.delivered


def assert_no_slot_is_lost_or_shared(host: ThriftyHost) -> None:
    slots = [peer.slot for peer in host.device.peers.values() if peer.slot]
    slots += [keypair.state.slot for peer in host.device.peers.values() for keypair in peer.keypairs]
    assert sorted(slots) == sorted(set(slots)) == sorted(host.own_slots.used)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("refused", [1, 2, 5, SCENARIO_CHANGES], ids=lambda refused: f"{refused} in a row")
def test_whichever_changes_are_refused_the_device_serves_on(side: str, refused: int) -> None:
    for first in range(1, SCENARIO_CHANGES):
        world, client, server = thrifty_pair()
        host = client if side == "client" else server

        def refuses(number: int, _: Change, first: int = first) -> bool:
            return first <= number < first + refused

        host.refuses = refuses
        live_through_everything(world, client, server)
        host.refuses = lambda number, change: False
        assert_works(world, client, server)
        for each in (client, server):
            assert_no_slot_is_lost_or_shared(each)
            each.replace()
        assert_works(world, client, server)


@pytest.mark.parametrize("kind", [PeerSeen, PeerTimestamp, PeerKeypairs])
def test_a_handshake_that_cannot_be_recorded_is_refused_and_counted(kind: type[Change]) -> None:
    world, client, server = thrifty_pair()
    server.refuses = lambda number, change: isinstance(change, kind)
    client.send(server)
    world.exchange()
    assert server.dropped(DropReason.NOT_RECORDED) == 1
    assert server.peer(client).keypairs == ()
    assert_no_slot_is_lost_or_shared(server)
    server.refuses = lambda number, change: False
    assert_works(world, client, server)


def test_a_session_works_on_while_nothing_can_be_recorded() -> None:
    world, client, server = thrifty_pair()
    talk(world, client, server)
    server.refuses = lambda number, change: True
    for port in range(10):
        world.move(client, Endpoint(b"\xcb\0\x71\1", 1000 + port))
        talk(world, client, server)
        world.run(2 * ENDPOINT_RECORD_INTERVAL)
    assert len(client.delivered) == len(server.delivered) == 11
    server.refuses = lambda number, change: False
    world.run(2 * ENDPOINT_RECORD_INTERVAL)
    server.replace()
    assert server.peer(client).endpoint == client.endpoint, "the move is recorded once the journal takes it"


def test_a_session_whose_confirmation_cannot_be_recorded_is_confirmed_by_a_later_message() -> None:
    world, client, server = thrifty_pair()
    client.send(server)
    world.carry()
    world.carry()
    server.refuses = lambda number, change: True
    world.exchange()
    assert server.delivered == [packet(client.inner, server.inner)]
    assert server.peer(client).current is None
    server.refuses = lambda number, change: False
    client.send(server)
    world.exchange()
    assert server.peer(client).current is not None
    assert server.total(Total.HANDSHAKES_RESPONDER) == 1


def test_recorded_packets_are_not_sent_before_they_have_left_the_records() -> None:
    world, client, server = thrifty_pair()
    client.send(server, count=3)
    client.hand_over()
    client.refuses = lambda number, change: isinstance(change, PeerStaged)
    world.exchange()
    world.run(1.5 * STORAGE_RETRY_SECS)
    assert server.delivered == [], "the next owner would send them again"
    client.refuses = lambda number, change: False
    world.run(10.0)
    assert server.delivered == [packet(client.inner, server.inner)] * 3


def test_packets_that_a_hand_off_cannot_record_are_counted_as_dropped() -> None:
    _, client, server = thrifty_pair()
    client.send(server, count=STAGED_PACKETS_MAX)
    client.refuses = lambda number, change: isinstance(change, PeerStaged)
    client.hand_over()
    assert client.dropped(DropReason.NOT_RECORDED) == STAGED_PACKETS_MAX


def test_an_unknown_peer_whose_removal_cannot_be_recorded_keeps_its_slots() -> None:
    world, client, server = thrifty_pair()
    talk(world, client, server)
    server.peers = []
    server.replace()
    used = set(server.own_slots.used)
    server.refuses = lambda number, change: isinstance(change, PeerRemoved)
    list(server.device.forget_unknown_peers())
    assert set(server.own_slots.used) == used
    server.refuses = lambda number, change: False
    list(server.device.forget_unknown_peers())
    assert not server.own_slots.used


def test_unknown_peers_are_forgotten_a_few_at_a_time() -> None:
    _, _, server = thrifty_pair()
    table = server.device._table
    for number in range(3 * UNKNOWN_PEERS_PER_SLICE + 1):
        table.unknown_peers[number.to_bytes(32, "big")] = UnknownPeer()
    left = [len(table.unknown_peers) for _ in table.forget_unknown_peers()]
    assert left == [2 * UNKNOWN_PEERS_PER_SLICE + 1, UNKNOWN_PEERS_PER_SLICE + 1, 1]
    assert not table.unknown_peers


def test_a_peer_that_another_generation_has_removed_between_two_slices_is_not_removed_again() -> None:
    _, _, server = thrifty_pair()
    table = server.device._table
    for number in range(UNKNOWN_PEERS_PER_SLICE + 1):
        table.unknown_peers[number.to_bytes(32, "big")] = UnknownPeer()
    slices = table.forget_unknown_peers()
    next(slices)
    table.unknown_peers.clear()
    before = len(server.journal)
    assert not list(slices)
    assert len(server.journal) == before
