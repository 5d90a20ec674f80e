"""`oxidize watch`: the first poll must be answered, later ones need not be."""

import json
import signal
import time
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
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def answers(monkeypatch: pytest.MonkeyPatch, *found: Found) -> list[tuple[Path, str]]:
    """Make a server give these answers, one after the other; return the list of its queries."""
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


def test_watch_polls_as_often_as_count_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, answer(), answer(1), answer(2))
    result = run("--count", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 3
    assert asked == [(Path("/run/server.sock"), VITALS)] * 3


def test_watch_follows_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, answer())
    assert run("--client", "--count", "1").exit_code == 0
    assert asked == [(Path("/run/client.sock"), VITALS)]


def test_watch_prints_one_json_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, answer(), None, None, answer(3))
    result = run("--json", "--count", "4")
    assert result.exit_code == 0
    assert [json.loads(line)["type"] for line in result.stdout.splitlines()] == ["sample", "lost", "back", "sample"]


def test_watch_continues_after_errors_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = TakeoverError(Phase.QUERYING, "pid 4242 gives no answer:\n does it hang?")
    answers(monkeypatch, answer(), hangs, hangs, answer(1), {"state": "healthy"}, answer(2))
    result = run("--count", "6")
    lines = [line[10:] for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert lines[1] == "no answer: pid 4242 gives no answer: does it hang?"
    assert lines[2].startswith("answers again")
    assert lines[4].startswith("no answer: the server's vitals cannot be read")
    assert len(lines) == 7


def test_a_missing_process_at_the_first_poll_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, None)
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("oxidize: nothing runs: no process listens at /run/server.sock")


def test_a_server_that_does_not_know_the_query_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = TakeoverError(Phase.QUERYING, "query 'vitals': expected one of status, identity")
    asked = answers(monkeypatch, refused, {"generation": 4, "pid": 4242, "release": "0.0.9"})
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "oxidize: generation 4, pid 4242, of release 0.0.9 cannot be watched: it does not know the query 'vitals'; "
        "reload it to this release, or see `oxidize status`\n"
    )
    assert [what for _, what in asked] == [VITALS, IDENTITY]


def test_another_refusal_is_printed_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, TakeoverError(Phase.QUERYING, "another user's"))
    result = run()
    assert (result.exit_code, result.stderr) == (1, "oxidize: failed while querying: another user's\n")


def test_ctrl_c_ends_watch_with_status_0(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, answer(), KeyboardInterrupt())
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("--interval", "0.05"), ("--interval", "61"), ("--count", "0"), ("extra",)])
def test_watch_refuses_invalid_options(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


# --- The pace ---


class Paced:
    """A screen with a clock that advances by the time waited."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited: list[float] = []
        self.shown: list[Sample] = []

    def show(self, sample: Sample) -> None:
        self.shown.append(sample)

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


def slow_poll(screen: Paced, seconds: list[float]) -> Callable[[], Any]:
    """Return a poll that takes these times, one after the other."""
    left = iter(seconds)

    def poll() -> Any:
        screen.now += next(left)
        return vitals()

    return poll


def test_a_slow_poll_does_not_shift_the_next_ones_and_late_polls_are_skipped() -> None:
    screen, history = Paced(), History()
    history.add(NOON, vitals())
    watch.follow(
        history, slow_poll(screen, [0.25, 3.0, 0.0, 0.0]), screen.show, screen.wait, 1.0, 5, lambda: screen.now
    )
    assert screen.waited == [1.0, 0.75, 0.0, 1.0]
    assert len(screen.shown) == len(history.samples) == 5


def test_a_signal_ends_watch_by_an_exception_that_restores_the_terminal() -> None:
    with pytest.raises(SystemExit) as raised:
        watch._end(signal.SIGTERM, None)
    assert raised.value.code == 143
