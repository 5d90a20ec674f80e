"""The blackout that a reload reports is the longest time in which no process read, until it reports."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidize import clock
from oxidize.control.reload_channel import Control
from oxidize.net.event_loop import Loop
from oxidize.protocol.counters import Total
from oxidize.runtime.handover import Handover
from oxidize.runtime.node import Node
from oxidize.runtime.succession import Succession
from oxidize.service_manager import notify
from tests.support.traffic.clients import EchoClient
from tests.support.two_generations import Generations, two_generations

PAUSE_SECS = 7.0  # virtual: no machine of a test takes so long for a takeover
PAUSE_MS = PAUSE_SECS * 1000


class Reported(Control):
    """The channel to a coordinator, with the report that the successor sends."""

    def __init__(self) -> None:
        super().__init__(None)
        self.report: dict[str, Any] = {}

    def done(self, report: dict[str, Any]) -> None:
        self.report = report


class Pauses:
    """The successor's loop with a clock that a step can move on, and the number of its iterations."""

    def __init__(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed_secs = 0.0
        self.turns = 0
        monkeypatch.setattr(loop, "now", lambda: clock.boot_time() + self.passed_secs)
        run_once = loop.run_once

        def count(timeout_secs: float | None = None) -> None:
            self.turns += 1
            run_once(timeout_secs)

        monkeypatch.setattr(loop, "run_once", count)


@pytest.fixture
def generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Generations]:
    with two_generations(tmp_path, [EchoClient(2)], monkeypatch) as generations:
        yield generations


@pytest.fixture
def pauses(generations: Generations, monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return Pauses(generations.next_loop, monkeypatch)


def reported(generations: Generations) -> tuple[float, Node]:
    """Take over; return the blackout that is reported, in ms, and the node that serves."""
    control = Reported()
    generations.next_handover = generations.succession(control).run()
    return float(control.report["blackout_ms"]), generations.next_handover.node


def assert_agree(blackout_ms: float, node: Node) -> None:
    """Fail unless history and metrics have the blackout that the operator reads."""
    counters = node.counters
    assert node.session_state.takeovers()[-1]["blackout_ms"] == blackout_ms
    for total in (Total.BLACKOUT_NS_LAST, Total.BLACKOUT_NS_SUM, Total.BLACKOUT_NS_MAX):
        assert counters[total] / 1e6 == pytest.approx(blackout_ms, abs=1e-5)  # whole nanoseconds


def test_a_takeover_without_a_pause_reports_the_time_from_the_freeze_to_the_first_read(
    generations: Generations,
) -> None:
    blackout_ms, node = reported(generations)
    assert 0 < blackout_ms < PAUSE_MS
    assert_agree(blackout_ms, node)


@pytest.mark.parametrize("where", ["before the first read", "before TAKEN", "after TAKEN"])
def test_a_pause_in_any_step_of_the_takeover_counts_as_its_blackout(
    generations: Generations, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, name = {
        "before the first read": (Node, "serve"),
        "before TAKEN": (Handover, "__init__"),
        "after TAKEN": (Node, "notify_ready"),
    }[where]
    step = getattr(owner, name)

    def slow(*arguments: Any, **named: Any) -> None:
        step(*arguments, **named)
        pauses.passed_secs += PAUSE_SECS

    monkeypatch.setattr(owner, name, slow)
    blackout_ms, node = reported(generations)
    assert PAUSE_MS <= blackout_ms < 2 * PAUSE_MS
    assert_agree(blackout_ms, node)
    assert len(node.session_state.takeovers()) == 1


def test_steps_between_which_the_successor_reads_are_no_blackout_together(
    generations: Generations, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 5
    half = PAUSE_SECS / 2

    def slow() -> None:
        pauses.passed_secs += half

    monkeypatch.setattr(Succession, "_last_steps", lambda *_: [slow] * steps)
    blackout_ms, _ = reported(generations)
    assert half * 1000 <= blackout_ms < PAUSE_MS


def test_the_successor_reads_after_every_step_that_follows_the_hand_off(
    generations: Generations, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def note(*_: object) -> None:
        seen.append(pauses.turns)

    monkeypatch.setattr(generations.peering, "taken", note)
    monkeypatch.setattr(Node, "open_http", note)
    monkeypatch.setattr(notify, "notify", note)
    reported(generations)
    assert len(seen) >= 3
    assert all(earlier < later for earlier, later in itertools.pairwise(seen))


def test_pauses_are_measured_no_more_once_the_takeover_is_reported(generations: Generations, pauses: Pauses) -> None:
    blackout_ms, node = reported(generations)
    pauses.passed_secs += PAUSE_SECS
    generations.next_loop.run_once(0)
    assert generations.next_loop.longest_pause_secs == 0.0
    assert_agree(blackout_ms, node)
