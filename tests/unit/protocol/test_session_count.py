"""The number of sessions is that of the peers that have one, and is found without a look at them all."""

from typing import Any

import pytest

from oxidize.protocol.constants import REJECT_AFTER_TIME, REKEY_TIMEOUT
from oxidize.protocol.peer import Peer
from tests.support.network import World, connected


def has_sessions(host: Any, now: float) -> int:
    return sum(peer.has_session(now) for peer in host.device.peers.values())


@pytest.mark.parametrize("later", [0.0, REKEY_TIMEOUT, REJECT_AFTER_TIME - 0.1, REJECT_AFTER_TIME, 500.0])
def test_the_count_is_that_of_the_peers_with_a_session_at_any_time(later: float) -> None:
    world = World()
    client, server = connected(world)
    for host in (client, server):
        assert host.device.live_sessions(world.now + later) == has_sessions(host, world.now + later)
        host.replace()
        assert host.device.live_sessions(world.now + later) == has_sessions(host, world.now + later)


def test_a_session_that_is_renewed_or_forgotten_leaves_its_group() -> None:
    world = World()
    client, server = connected(world)
    count = server.device._table.session_count
    world.now += 125.0
    client.send(server)
    world.exchange()
    assert server.device.live_sessions(world.now) == 1
    assert sum(map(len, count._ending.values())) == 1
    server.device._table.forget_keys(server.peer(client))
    assert count._ending == {}
    assert server.device.live_sessions(world.now) == 0


def test_a_count_looks_only_at_the_peers_of_the_second_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    client, server = connected(world)
    looked_at: list[Peer] = []
    has_session = Peer.has_session

    def noted(peer: Peer, now: float) -> bool:
        looked_at.append(peer)
        return has_session(peer, now)

    monkeypatch.setattr(Peer, "has_session", noted)
    assert server.device.live_sessions(world.now) == 1
    assert looked_at == []
    server.device.live_sessions(server.peer(client).counted_until + 0.5)
    assert looked_at == [server.peer(client)]
