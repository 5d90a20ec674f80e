"""The schedule of a run, and the parsing of command output."""

from itertools import pairwise

import pytest

from demo.plan import BURSTS, choose_burst, plan, read_answer
from demo.verdict import Action


@pytest.mark.parametrize("reloads", [0, 1, 2, 5, 50])
@pytest.mark.parametrize("seconds", [1.0, 20.0])
def test_the_schedule_has_each_action_and_equal_intervals(seconds: float, reloads: int) -> None:
    steps = plan(seconds, reloads)
    actions = [step.action for step in steps]
    assert actions.count(Action.RELOAD) == reloads
    assert actions.count(Action.REFUSED) == actions.count(Action.KILL) == 1
    assert {round(b.at - a.at, 9) for a, b in pairwise(steps)} == {round(steps[0].at, 9)}
    assert seconds - steps[-1].at == pytest.approx(steps[0].at)


def test_the_usual_run_ends_with_planned_replacements() -> None:
    actions = [step.action for step in plan(20.0, 5)]
    assert actions[-1] is Action.RELOAD
    assert actions[actions.index(Action.REFUSED) + 1] is Action.RELOAD
    assert actions[actions.index(Action.KILL) + 1] is Action.RELOAD


def test_the_output_of_a_reload_is_parsed() -> None:
    output = (
        "2026-01-01 INFO oxidize: restored\n"
        "reloaded: generation 12, pid 4711: 20 sessions moved, blackout 3.1 ms, 0.41 s in all\n"
        "INFO serving\n"
    )
    answer = read_answer(output)
    assert answer.line == "generation 12, pid 4711: 20 sessions moved, 0.41 s in all"
    assert (answer.blackout_ms, answer.generation) == (3.1, 12)


def test_the_output_of_a_refused_reload_is_parsed() -> None:
    said = (
        "oxidize: reload failed while preparing: this release cannot read the sessions\n"
        "oxidize: not reloaded: pid 1 still serves\n"
    )
    answer = read_answer(f"log line\n{said}\n")
    assert answer.line == "reload failed while preparing: this release cannot read the sessions"
    assert (answer.blackout_ms, answer.generation) == (None, None)


@pytest.mark.parametrize(("output", "line"), [("", "it printed nothing"), ("Traceback\nKeyError: 1\n", "KeyError: 1")])
def test_other_output_is_shown_unchanged(output: str, line: str) -> None:
    assert read_answer(output).line == line


@pytest.mark.parametrize(
    ("buffer_bytes", "rate", "start_secs", "burst"),
    [
        (8 << 20, 2000.0, 0.5, 1),
        (2 * 212_992, 2000.0, 0.5, 8),
        (2 * 212_992, 200.0, 0.5, 1),
        (2 * 212_992, 2000.0, 0.25, 4),
        (2 * 212_992, 2000.0, 5.0, BURSTS[-1]),
        (16 << 20, 2000.0, 4.0, 1),
        (16 << 20, 2000.0, 6.0, 2),
        (2 * 212_992, 20_000.0, 0.5, BURSTS[-1]),
    ],
)
def test_bursts_grow_with_the_time_that_a_start_took_where_the_buffer_is_too_small(
    buffer_bytes: int, rate: float, start_secs: float, burst: int
) -> None:
    assert choose_burst(buffer_bytes, rate, start_secs) == burst
