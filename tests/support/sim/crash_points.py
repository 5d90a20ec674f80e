"""A crash of each process before each of its system calls and each of its stores to shared memory, in one scenario.

The rule: a scenario is a world without chance but its seed's. It runs once without a crash, to count the calls and the
stores of each process from its beginning to its end, and then once for each of them, up to which it is the same. A
crash before a call is a crash after the one before, so every message and every effect has both.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.support.sim.install import installed
from tests.support.sim.kernel import Fault, Process, Violation
from tests.support.sim.runner import rare_collections
from tests.support.sim.world import Plan, World

SEED = 11
TAKEOVER_SECS = 0.05  # from its beginning until it has ended, or failed
BATCH_CALLS = 25  # of a successor, from COMMIT to the end of its first batch

Scenario = Callable[[World], None]


@dataclass(frozen=True)
class Point:
    """Where a process dies: the `process`-th that is started, before its `number`-th call or store."""

    process: int
    number: int
    is_store: bool


def reload(world: World) -> None:
    """Replace the server."""
    world.manager.reload()


def thaw(world: World) -> None:
    """Let the successor die in its first batch, so that the predecessor serves again."""
    world.at_step["commit"] = lambda successor: successor.plan(BATCH_CALLS, Fault("crash"))
    world.manager.start_beside()


def inherit(world: World) -> None:
    """Let the predecessor die after its offer, so that the successor serves without COMMIT."""
    owner = world.model.owner
    if owner is not None:
        world.at_step["offer"] = lambda _successor: world.kernel.at(0.0, partial(world.kernel.end, owner, "killed"))
    world.manager.reload()


SCENARIOS: dict[str, Scenario] = {"reload": reload, "thaw": thaw, "inherit": inherit}


def points_of(scenario: Scenario) -> list[Point]:
    """Return every point of a scenario; raises Violation."""
    points: list[Point] = []

    def script(world: World) -> None:
        before = {process: (process.calls, process.stores) for process in world.kernel.processes}
        _play(world, scenario)
        for number, process in enumerate(world.kernel.processes):
            calls, stores = before.get(process, (0, 0))
            points.extend(Point(number, call, is_store=False) for call in range(calls + 1, process.calls + 1))
            points.extend(Point(number, store, is_store=True) for store in range(stores + 1, process.stores + 1))

    _run(script)
    return points


def crash_everywhere(scenario: Scenario) -> Counter[str]:
    """Run a scenario once for each of its points; return what happened. Raises AssertionError at the first failure."""
    counts: Counter[str] = Counter()
    with installed(), rare_collections():
        for point in points_of(scenario):
            try:
                counts.update(_run(partial(_crash, scenario=scenario, point=point)).kernel.counts)
            except Violation as broken:
                raise AssertionError(f"a crash at {point}: {broken}") from broken
            counts["points"] += 1
    return counts


def _crash(world: World, *, scenario: Scenario, point: Point) -> None:
    def plan(process: Process) -> None:
        if process is not world.kernel.processes[-1] or len(world.kernel.processes) != point.process + 1:
            return
        _plan(process, point)

    world.kernel.on_spawn = plan
    if point.process < len(world.kernel.processes):
        _plan(world.kernel.processes[point.process], point)
    _play(world, scenario)


def _plan(process: Process, point: Point) -> None:
    if point.is_store:
        process.stores_left = point.number - process.stores - 1
    else:
        process.plan(point.number - process.calls, Fault("crash"))


def _play(world: World, scenario: Scenario) -> None:
    """Run a scenario while packets come and all clients shake hands."""
    world.is_calm = False
    for client in world.clients:
        client.rekey()
        for number in range(2):
            world.kernel.at(number * 0.0005, partial(world.send, client, None))
            world.kernel.at(number * 0.0005, partial(world.send, None, client))
    scenario(world)
    world.kernel.run(TAKEOVER_SECS)


def _run(script: Scenario) -> World:
    world = World(SEED, Plan(kind="systemd", clients=2, families=(), script=script, are_stores_fatal=True))
    world.live()
    return world
