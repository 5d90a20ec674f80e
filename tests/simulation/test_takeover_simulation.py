"""Crashes, hangs and delays at every step of a takeover on either side: one owner as long as a process lives.

A failure prints its seed and the events.
"""

from functools import partial

import pytest

from oxidize.takeover.machine import (
    PREDECESSOR_TABLE,
    SUCCESSOR_TABLE,
    Do,
    Event,
    PredecessorState,
    SuccessorState,
)
from tests.support.takeover_world import HANGS, World, assert_settled, run, start, take_over


@pytest.mark.parametrize("seed", range(20))
def test_a_takeover_without_faults_ends_with_the_successor_alone(seed: int) -> None:
    world, first, second = start(seed)
    run(world, f"seed {seed}")
    assert second.serves
    assert not first.runs


def points_of(who: int) -> int:
    processes = start(0)
    run(processes[0], "seed 0")
    return (processes[1], processes[2])[who].points


def run_every_point(who: int, kind: float, seeds: range) -> None:
    for point in range(1, points_of(who) + 1):
        for seed in seeds:
            world, first, second = start(seed)
            world.lingering = (0.0, 0.3, 4.0)[seed % 3]
            (first, second)[who].faults = {point: kind}
            what = f"seed {seed}, {'PS'[who]}, point {point}, {kind:g}"
            run(world, what)
            assert_settled(world, what)
            if kind == 0:
                survives = (second.serves, first.serves or first.has_exited)[who]
                assert survives, "\n".join([what, *world.trace, "the survivor does not serve"])


@pytest.mark.parametrize("who", [0, 1], ids=["predecessor", "successor"])
@pytest.mark.parametrize("kind", [0.0, *HANGS], ids=lambda kind: f"hang-{kind:g}" if kind else "crash")
def test_one_fault_at_any_point_breaks_no_rule(who: int, kind: float) -> None:
    run_every_point(who, kind, range(8))


@pytest.mark.parametrize("fails_at", [SuccessorState.RESTORING, SuccessorState.OWNING])
@pytest.mark.parametrize("seed", range(10))
def test_a_successor_that_gives_up_leaves_the_predecessor_serving(seed: int, fails_at: SuccessorState) -> None:
    world, first, second = start(seed, fails_at=fails_at)
    world.lingering = (0.0, 0.3, 30.0)[seed % 3]
    run(world, f"seed {seed}")
    assert first.serves
    assert not second.runs


@pytest.mark.parametrize("seed", range(10))
def test_a_freeze_that_fails_leaves_the_predecessor_serving(seed: int) -> None:
    world, first, second = start(seed)
    world.refuses_freeze = True
    run(world, f"seed {seed}")
    assert first.serves
    assert not second.runs


def test_a_stopped_successor_that_even_sigkill_does_not_end_never_owns_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for point in range(1, points_of(1) + 1):
        for seed in range(10):
            world, _, second = start(seed)
            second.faults = {point: 500.0}
            monkeypatch.setattr(second, "kill", lambda: None)  # the signal is as stuck as the process
            world.spawn("T", take_over, at=60.0)
            what = f"seed {seed}, point {point}"
            run(world, what)
            assert_settled(world, what)


def random_world(seed: int) -> World:
    """Return a world with several successors, rivals and followers, each with up to two faults."""
    world, first, second = start(seed, hangs_up=seed % 50 == 0)
    chance = world.random
    world.lingering = chance.choice((0.0, 0.3, 4.0, 30.0))
    world.refuses_freeze = chance.random() < 0.1
    processes = [first, second]
    for name in "TUV"[: chance.randrange(4)]:
        fails_at = chance.choice((None, None, SuccessorState.RESTORING, SuccessorState.OWNING))
        points = chance.randrange(1, 6)
        processes.append(
            world.spawn(
                name,
                partial(take_over, restore_points=points, fails_at=fails_at),
                at=chance.choice((0.1, 0.102, 0.11, 1.0, 8.0, 45.0, 130.0)),
            )
        )
    for process in processes:
        for _ in range(chance.randrange(3)):
            # Around the predecessor's patience after COMMIT, where TAKEN and SIGKILL cross.
            process.faults[chance.randrange(1, 16)] = chance.choice((0.0, *HANGS[:-1], chance.uniform(4.9, 5.5)))
    return world


def run_seeds(seeds: range) -> None:
    for seed in seeds:
        world = random_world(seed)
        run(world, f"seed {seed}")
        assert_settled(world, f"seed {seed}")


@pytest.mark.parametrize("block", range(10))
def test_many_faults_and_rivals_break_no_rule(block: int) -> None:
    run_seeds(range(block * 300, (block + 1) * 300))


_P, _S, _E = PredecessorState, SuccessorState, Event
PLANTED = {
    "thaws although the successor lives": (PREDECESSOR_TABLE, _P.COMMITTED, _E.CLOSED, _P.LISTENING, "THAW RELEASE"),
    "thaws on FAILED": (PREDECESSOR_TABLE, _P.COMMITTED, _E.FAILED, _P.LISTENING, "THAW RELEASE"),
    "thaws at the deadline": (PREDECESSOR_TABLE, _P.COMMITTED, _E.DEADLINE, _P.LISTENING, "THAW RELEASE"),
    "exits after it has killed": (PREDECESSOR_TABLE, _P.KILLING, _E.TAKEN, _P.DONE, "FINISH"),
    "forgets before it withdraws": (
        PREDECESSOR_TABLE,
        _P.RESTORING,
        _E.DEADLINE,
        _P.WITHDRAWING,
        "FORGET_OFFER SEND_WITHDRAWN",
    ),
    "withdraws without a message": (PREDECESSOR_TABLE, _P.RESTORING, _E.DEADLINE, _P.LISTENING, "FORGET_OFFER RELEASE"),
    "owns at the deadline": (SUCCESSOR_TABLE, _S.READY_SENT, _E.DEADLINE, _S.OWNING, "INHERIT"),
    "gives up when the predecessor dies": (SUCCESSOR_TABLE, _S.READY_SENT, _E.GONE, _S.FAILED, "FAIL"),
    "owns after a withdrawal": (SUCCESSOR_TABLE, _S.READY_SENT, _E.WITHDRAWN, _S.OWNING, "INHERIT"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_the_simulation_finds_a_planted_bug(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, state, event, after, to_do = PLANTED[bug]
    monkeypatch.setitem(table, (state, event), (after, tuple(Do[name] for name in to_do.split())))  # type: ignore[arg-type]  # all of one table

    def everything() -> None:
        run_every_point(0, 0.0, range(4))
        run_seeds(range(3_000))

    with pytest.raises(AssertionError):
        everything()
