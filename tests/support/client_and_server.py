"""A client with a link to a server in a network in memory, with helpers for both."""

from oxidize.protocol.constants import (
    REKEY_TIMEOUT_JITTER_MAX,
)
from oxidize.protocol.counters import LinkState
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import (
    PROBE_SECS_MIN,
    LinkPolicy,
)
from oxidize.protocol.messages import message_type
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import Host, Wire, World

TICK = 0.01
NOTICED_SECS = PROBE_SECS_MIN * (1 + REKEY_TIMEOUT_JITTER_MAX) + TICK


def linked(world: World, policy: LinkPolicy | None = None, *, known: bool = False) -> tuple[Host, Host]:
    """Return a client with a connected link, and its server. known: whether the server has the client's endpoint."""
    client, server = world.host(), world.host()
    client.know(server, link=policy or DEFAULT_POLICY)
    server.know(client, reachable=known)
    client.start()
    server.start()
    client.device.begin_links(world.now)
    world.exchange()
    assert state(client, server) == LinkState.CONNECTED
    world.log.clear()
    return client, server


def state(client: Host, server: Host) -> LinkState | None:
    return client.device.link_state(client.peer(server))


def sent(world: World, host: Host, kind: int) -> int:
    return sum(source == host.endpoint and message_type(datagram) == kind for source, _, datagram in world.log)


def restart(server: Host) -> None:
    """Restart a server without its sessions and learned endpoints."""
    server.slots.counters[:] = memoryview(bytes(8 * len(server.slots.counters))).cast("Q")
    server.journal.clear()
    server.live.clear()
    server.start()


def payloads(host: Host) -> list[bytes]:
    return [delivered[20:] for delivered in host.delivered]


def talk(
    world: World,
    client: Host,
    server: Host,
    seconds: float,
    every: float,
    wire: Wire | None = None,
    first: int = 0,
    answered: bool = False,
) -> int:
    """Send a numbered packet every `every` seconds for `seconds`; return the next number."""
    end, number = world.now + seconds, first
    while world.now < end:
        client.send(server, number.to_bytes(4, "big"))
        number += 1
        world.exchange(wire)
        if answered:
            server.send(client)
            world.exchange(wire)
        world.run(every, wire)
    return number


def until_connected(world: World, client: Host, server: Host, seconds: float) -> None:
    """Let time pass until the link is connected and no packet is staged; fail after `seconds`."""
    end = world.now + seconds
    while state(client, server) != LinkState.CONNECTED or client.peer(server).staged:
        assert world.now < end
        world.run(TICK)


def hold(kind: int, held: list[bytes]) -> Wire:
    """Return a wire that keeps back messages of one kind and collects them in `held`."""

    def wire(source: Endpoint, destination: Endpoint, datagram: bytes) -> list[bytes]:
        if message_type(datagram) != kind:
            return [datagram]
        held.append(datagram)
        return []

    return wire
