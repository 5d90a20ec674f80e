"""Run many worlds, count what happened in them, and tell a failure so that it can be replayed."""

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.sim.install import installed
from tests.support.sim.kernel import Violation
from tests.support.sim.world import Plan, World

SEEDS = Path(__file__).parents[2] / "simulation" / "seeds.txt"
TRACE_LINES = 60


class BrokenError(Exception):
    """A world that broke a promise."""

    def __init__(self, seed: int, violation: Violation) -> None:
        super().__init__(str(violation))
        self.seed = seed


class _LinesOfTheProduct(logging.Handler):
    """Adds what the product logs to the trace of a world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "oxidize_fields", None) or ""
        error = f" {record.exc_info[1]!r:.200}" if record.exc_info else ""
        self._world.kernel.note(f"logs: {record.getMessage():.200} {fields!s:.200}{error}")


def run_one(seed: int, counts: Counter[str], plan: Plan | None = None) -> None:
    """Run a world inside `installed`; raises Violation."""
    world = World(seed, plan)
    try:
        world.live()
    finally:
        counts.update(world.kernel.counts)
        counts.update({"worlds": 1, "system calls": world.kernel.calls, "restarts": world.manager.restarts})


def replay(seed: int) -> str:
    """Return the last lines of a world's trace, and what is wrong with it."""
    with installed(verbose=True):
        world = World(seed, verbose=True)
        handler = _LinesOfTheProduct(world)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            world.live()
            broken = "nothing: the world passes"
        except Violation as violation:
            broken = str(violation)
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
    lines = [line[:240] for line in list(world.kernel.trace)[-TRACE_LINES:]]
    about = f"seed {seed}, manager {world.manager.kind!r}, families {', '.join(world.families) or 'none'}"
    return "\n".join([*lines, about, f"broken: {broken}", f"replay it with: make sim WORLDS=1 SEED={seed}"])


def run_worlds(seeds: Iterable[int]) -> Counter[str]:
    """Run a world for each seed and return the counts; raises AssertionError with the trace of one that fails."""
    try:
        with installed(), rare_collections():
            return _run_all(seeds)
    except BrokenError as broken:
        raise AssertionError(f"{replay(broken.seed)}\nat first: {broken}") from broken


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage seldom: a world leaves much of it, and few megabytes. What is there before stays frozen."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _run_all(seeds: Iterable[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            run_one(seed, counts)
        except Violation as broken:
            raise BrokenError(seed, broken) from broken
    return counts


def failed_seeds() -> list[int]:
    """Return the seeds that have failed once, which are run again each time."""
    lines = (line.partition("#")[0].strip() for line in SEEDS.read_text().splitlines())
    return [int(line) for line in lines if line]
