"""The blackout of a takeover with many sessions, packets or an initiation that wait, and endpoints that moved.

The rule: all is in virtual time, and beside the system calls each call of a Python function takes some of it, so that
work without a system call counts, too. Nothing else happens during the takeover, so its cost is that of the hand-off
alone.
"""

import sys
from collections.abc import Callable
from types import FrameType

from oxidize.protocol.constants import REKEY_TIMEOUT
from tests.support.sim.install import installed
from tests.support.sim.kernel import Process
from tests.support.sim.world import Plan, World

SEED = 5
FUNCTION_SECS = 1e-6  # virtual time of a call of a Python function
PACKETS_PER_CLIENT = 4
EXPIRED_SECS = 200.0  # after so long without a packet no session is left


def sessions(world: World) -> None:
    """Have a session with each client, and nothing else."""


def waiting(world: World) -> None:
    """Let packets to every client wait for a session, with none of them reachable."""
    world.kernel.run(EXPIRED_SECS)
    world.loss, world.is_strict = 1.0, False
    for _ in range(PACKETS_PER_CLIENT):
        for client in world.clients:
            world.send(None, client)
    world.kernel.run(0.05)


def moved(world: World) -> None:
    """Let every client move to another address."""
    for client in world.clients:
        client.roam()
        world.send(client, None)
    world.kernel.run(0.05)


def initiated(world: World) -> None:
    """Let an initiation wait in the socket when the successor owns it."""

    client = world.clients[0]
    link = world.link
    world.kernel.run(REKEY_TIMEOUT)  # since the initiation of its session

    def on_step(step: str, _successor: Process) -> None:
        if step == "commit":
            world.__dict__["link"] = lambda arrive: arrive()  # at once, or the first batch may be without it
            client.rekey()
            world.__dict__["link"] = link

    world.model.on_step = on_step


SITUATIONS = (sessions, waiting, moved, initiated)


def blackout_ms(situation: Callable[[World], None], clients: int) -> float:
    """Return the blackout of one takeover in that situation; raises Violation."""
    measured: list[float] = []

    def script(world: World) -> None:
        world.model.on_step = lambda _step, _successor: None  # nothing comes
        world.model.blackout_ms_max = float("inf")
        situation(world)
        world.manager.reload()
        world.kernel.run(5.0)
        measured.extend(world.model.blackouts)

    with installed():
        world = World(SEED, Plan(kind="systemd", clients=clients, families=(), script=script))

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            if event == "call" and world.kernel.current is not None:
                world.kernel.now += FUNCTION_SECS

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            world.live()
        finally:
            sys.setprofile(before)
    (blackout,) = measured
    return blackout
