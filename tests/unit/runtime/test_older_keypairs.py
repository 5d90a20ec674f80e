"""An older keypair that a release without them has forgotten: its slot may be another keypair's by now."""

import pytest

from oxidize.protocol.changes import Change, KeypairState, PeerKeypairs
from tests.support.network import Host, World, packet


def hub_with_clients(world: World) -> tuple[Host, Host, Host]:
    """Return a hub with sessions with two clients."""
    hub, first, second = (world.host() for _ in range(3))
    for client in (first, second):
        client.know(hub)
        hub.know(client)
    for host in (hub, first, second):
        host.start()
    for client in (first, second):
        client.send(hub)
    world.exchange()
    hub.delivered.clear()
    return hub, first, second


def keypairs_of(hub: Host, client: Host) -> tuple[tuple[str, bytes], PeerKeypairs]:
    """Return the latest record of a client's keypairs, and its key."""
    for key, change in hub.live.items():
        if isinstance(change, PeerKeypairs) and change.peer == client.public_key:
            return key, change
    raise AssertionError("no record")


def reused(hub: Host, first: Host, second: Host, *, comes_last: bool) -> tuple[KeypairState, list[Change]]:
    """Return an older keypair of the first client in the slot of the second one's, and the records with it.

    comes_last: whether the record that names the older keypair comes after the other one.
    """
    _, of_second = keypairs_of(hub, second)
    key, of_first = keypairs_of(hub, first)
    assert of_second.current is not None
    older = of_second.current._replace(local_index=77)
    hub.live[key] = of_first._replace(older=older)
    changes = sorted(hub.folded(), key=lambda change: change == hub.live[key])  # stable, and the record last
    return older, changes if comes_last else changes[::-1]


@pytest.mark.parametrize("comes_last", [False, True])
def test_a_slot_that_was_allocated_again_is_the_new_keypairs_alone(comes_last: bool) -> None:
    world = World()
    hub, first, second = hub_with_clients(world)
    older, changes = reused(hub, first, second, comes_last=comes_last)
    hub.start()
    hub.device.restore(changes, world.now)
    hub.device.own()
    assert hub.peer(first).older is None
    assert hub.device._table.indices.get(older.local_index) is None
    for client in (first, second):
        client.send(hub, b"still here")
        world.exchange()
    assert hub.delivered == [packet(client.inner, hub.inner, b"still here") for client in (first, second)]


@pytest.mark.parametrize("comes_last", [False, True])
def test_the_older_keypair_of_an_unknown_peer_keeps_no_slot_of_another(comes_last: bool) -> None:
    world = World()
    hub, first, second = hub_with_clients(world)
    older, changes = reused(hub, first, second, comes_last=comes_last)
    hub.peers = [settings for settings in hub.peers if settings.public_key != first.public_key]
    hub.start()
    hub.device.restore(changes, world.now)
    hub.device.own()
    list(hub.device.forget_unknown_peers())
    assert hub.device._table._slot_owners[older.slot] is hub.peer(second).current
    assert hub.device._table.slots.allocate() != older.slot
