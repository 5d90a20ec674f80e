"""Whole worlds on the real code: a server with its manager and clients, through takeovers and faults (support/sim)."""

from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

import pytest

from tests.support.sim.blackouts import FUNCTION_SECS, blackout_ms, initiated, moved, sessions, waiting
from tests.support.sim.crash_points import SCENARIOS, crash_everywhere
from tests.support.sim.install import installed
from tests.support.sim.kernel import Violation
from tests.support.sim.planted import PLANTED, planted, worlds_until_found
from tests.support.sim.runner import failed_seeds, run_worlds
from tests.support.sim.world import World

WORLDS = 2_000
SHARES = 4  # so that several processes may run the tests
HANDSHAKE_MS_MAX = 1.0  # of virtual time
CROWDED_BLACKOUT_MS_MAX = 5.0  # of virtual time, where each call of a function takes a microsecond
PLANTED_HERE = (
    "a frozen predecessor keeps its timers",
    "socket options are set before COMMIT",
    "the journal's end is stored before the bytes",
    "the predecessor reads on after COMMIT",
    "what the replay window refused is delivered",
    "the tail that came with COMMIT is not applied",
    "the predecessor's counters are not looked at after owning",
    "a thaw does not read what the successor recorded",
    "segments are joined over a gap",
    "the last segment's push is lost",
    "a super-packet has the payloads of the first rows",
    "the shorter last segment is written before its run",
    "a successor reads before it asks whether the predecessor is dead",
    "a successor that cannot be told WITHDRAWN lives",
)


@pytest.mark.parametrize("share", range(SHARES))
def test_every_world_keeps_every_promise(share: int) -> None:
    first = SystemRandom().randrange(1 << 40)
    worlds = WORLDS // SHARES
    print(f"share {share}: {worlds} worlds from seed {first} on")
    counts = run_worlds(range(first, first + worlds))
    print(dict(counts))
    for what in ("takeovers", "owners that died", "crashes at a call", "stops", "errors", "restarts", "super-packets"):
        assert counts[what] > worlds / 100, f"too few: {what}"


def test_a_world_that_failed_once_passes() -> None:
    run_worlds(failed_seeds())


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_at_any_call_and_any_store_breaks_no_promise(name: str) -> None:
    counts = crash_everywhere(SCENARIOS[name])
    print(dict(counts))
    assert counts["crashes at a call"] + counts["crashes at a store"] >= counts["points"] > 100


def test_the_blackout_does_not_grow_with_the_sessions() -> None:
    few, many = (blackout_ms(sessions, clients) for clients in (3, 150))
    assert many - few < (150 - 3) * FUNCTION_SECS * 1000, "not one call of a function for each further session"


@pytest.mark.parametrize("situation", [waiting, moved])
def test_the_blackout_is_bounded_however_much_waits_or_moved(situation: Callable[[World], None]) -> None:
    measured = [blackout_ms(situation, clients) for clients in (3, 200)]
    print(measured)
    assert max(measured) < CROWDED_BLACKOUT_MS_MAX


def test_an_initiation_that_waits_costs_the_blackout_one_handshake() -> None:
    without = blackout_ms(sessions, 3)
    few, many = (blackout_ms(initiated, clients) for clients in (3, 150))
    assert few > without, "it has come"
    assert few - without < HANDSHAKE_MS_MAX
    assert many - few < (150 - 3) * FUNCTION_SECS * 1000, "not one call of a function for each further session"


def test_a_seed_makes_the_same_world_again() -> None:
    traces = []
    for _ in range(2):
        with installed(verbose=True):
            worlds = [World(seed, verbose=True) for seed in range(1_000, 1_012)]
            for world in worlds:
                world.live()
            traces.append([list(world.kernel.trace) for world in worlds])
    assert traces[0] == traces[1]


def test_worlds_leave_the_rights_of_this_process_alone() -> None:
    """A simulated process gives up its rights; the test process runs all other tests."""

    def rights() -> list[str]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("Cap", "NoNewPrivs"))]

    before = rights()
    run_worlds(range(3))
    assert rights() == before


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_fits_the_code(name: str) -> None:
    with planted(PLANTED[name]):
        pass


@pytest.mark.parametrize("name", PLANTED_HERE)
def test_the_worlds_find_a_planted_bug(name: str) -> None:
    with installed():
        assert worlds_until_found(PLANTED[name]) is not None


def test_a_system_call_that_is_not_simulated_ends_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    from oxidize.runtime import parts

    with installed():
        monkeypatch.setattr(parts, "boot_id", lambda: str(vars(parts)["os"].getcwd()))
        with pytest.raises(Violation, match=r"os\.getcwd is not simulated"):
            World(0).live()
