"""`oxidize watch`: the first look must be answered, later ones need not be."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from oxidize import config
from oxidize.cli import watch
from oxidize.cli.commands import main
from oxidize.cli.watch_history import History, Sample
from oxidize.control import query as query_module
from oxidize.control.query import IDENTITY, VITALS
from oxidize.errors import OxidizeError, Phase, TakeoverError
from tests.support.vitals import NOON, answer, vitals

Found = dict[str, Any] | OxidizeError | BaseException | None


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "takeover_socket_of", lambda path, role: Path(f"/run/{role}.sock"))
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)


def answers(monkeypatch: pytest.MonkeyPatch, *found: Found) -> list[tuple[Path, str]]:
    """Let a server answer this, one after the other, and return what it is asked."""
    asked: list[tuple[Path, str]] = []
    left: Iterator[Found] = iter(found)

    def find(takeover_socket: Path, what: str) -> dict[str, Any] | None:
        asked.append((takeover_socket, what))
        one = next(left)
        if isinstance(one, BaseException):
            raise one
        return one

    monkeypatch.setattr(query_module, "find", find)
    return asked


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["watch", *arguments])


def test_it_looks_as_often_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, answer(), answer(1), answer(2))
    result = run("--count", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 3
    assert asked == [(Path("/run/server.sock"), VITALS)] * 3


def test_a_client_is_watched_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, answer())
    assert run("--client", "--count", "1").exit_code == 0
    assert asked == [(Path("/run/client.sock"), VITALS)]


def test_json_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, answer(), None, None, answer(3))
    result = run("--json", "--count", "4")
    assert result.exit_code == 0
    assert [json.loads(line)["type"] for line in result.stdout.splitlines()] == ["sample", "lost", "back", "sample"]


def test_whoever_hangs_or_talks_nonsense_for_a_while_is_watched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = TakeoverError(Phase.QUERYING, "pid 4242 gives no answer:\n does it hang?")
    answers(monkeypatch, answer(), hangs, hangs, answer(1), {"state": "healthy"}, answer(2))
    result = run("--count", "6")
    lines = [line[10:] for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert lines[1] == "no answer: failed while querying: pid 4242 gives no answer: does it hang?"
    assert lines[2].startswith("answers again")
    assert lines[4].startswith("no answer: the server's vitals cannot be read")
    assert len(lines) == 7


def test_nobody_at_the_first_look_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, None)
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("oxidize: nothing runs: no process listens at /run/server.sock")


def test_a_server_that_does_not_know_the_query_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = TakeoverError(Phase.QUERYING, "query 'vitals': expected one of status, identity")
    asked = answers(monkeypatch, refused, {"generation": 4, "pid": 4242, "release": "0.0.9"})
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "oxidize: generation 4, pid 4242, of release 0.0.9 cannot be watched: it does not know the query 'vitals'; "
        "reload it to this release, or see `oxidize status`\n"
    )
    assert [what for _, what in asked] == [VITALS, IDENTITY]


def test_another_refusal_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, TakeoverError(Phase.QUERYING, "another user's"))
    result = run()
    assert (result.exit_code, result.stderr) == (1, "oxidize: failed while querying: another user's\n")


def test_ctrl_c_ends_it_well(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, answer(), KeyboardInterrupt())
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("--interval", "0.05"), ("--interval", "61"), ("--count", "0"), ("extra",)])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


# --- The pace ---


class Paced:
    """A screen with a clock that goes on by what is waited for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited: list[float] = []
        self.shown: list[Sample] = []

    def show(self, sample: Sample) -> None:
        self.shown.append(sample)

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


def looking(screen: Paced, seconds: list[float]) -> Callable[[], Any]:
    """Looks that take so long, one after the other."""
    left = iter(seconds)

    def look() -> Any:
        screen.now += next(left)
        return vitals()

    return look


def test_a_slow_look_does_not_shift_the_next_ones_and_what_is_late_is_left_out() -> None:
    screen, history = Paced(), History()
    history.add(NOON, vitals())
    watch.follow(history, looking(screen, [0.25, 3.0, 0.0, 0.0]), screen, 1.0, 5, lambda: screen.now)
    assert screen.waited == [1.0, 0.75, 0.0, 1.0]
    assert len(screen.shown) == len(history.samples) == 5


def test_a_signal_ends_it_by_an_exception_that_leaves_the_terminal_well() -> None:
    with pytest.raises(SystemExit) as raised:
        watch._end(signal.SIGTERM, None)
    assert raised.value.code == 143
