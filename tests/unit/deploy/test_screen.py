"""The screens of a deployment, and its interruptions."""

import io
import os
import re
import signal
import threading

import pytest
from rich.console import Console

from oxidize.deploy.interrupts import Interrupts
from oxidize.deploy.progress import Progress, Step, StepResult
from oxidize.deploy.screen import LiveSteps, open_screen
from oxidize.terminal import screen as screen_module
from tests.support.traffic.server import wait_for
from tests.unit.deploy.test_health_check import FIRST

ERASE_LINE = "\x1b[2K"  # ECMA-48, EL: rich erases a picture line by line before it draws the next


def console(file: io.StringIO, *, terminal: bool, width: int = 100) -> Console:
    return Console(file=file, force_terminal=terminal, width=width, height=30, color_system=None, highlight=False)


def go_through(screen: Progress) -> None:
    screen.begin(Step.BUILD)
    screen.end(StepResult(Step.BUILD, True, "0.1.0-x", 21.0))
    screen.note("a unit differs")
    screen.begin(Step.WATCH)
    screen.show("3 of 10 s")


def test_without_a_terminal_a_deployment_prints_lines() -> None:
    file = io.StringIO()
    with open_screen(file, lambda: FIRST, width=100) as screen:
        go_through(screen)
        screen.end(StepResult(Step.WATCH, False, "it drops packets\nand more", 3.0))
    assert [re.sub(r"^ +[0-9.]+ s  ", "", line) for line in file.getvalue().splitlines()] == [
        "build ...",
        "build ok, 21.0 s: 0.1.0-x",
        "note: a unit differs",
        "watch ...",
        "watch FAILED, 3.0 s: it drops packets ...",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_the_steps_and_the_server(width: int) -> None:
    file = io.StringIO()
    progress = Progress()
    with LiveSteps(console(file, terminal=True, width=width), progress, lambda: FIRST, now=lambda: 7.0) as screen:
        go_through(progress)
        wait_for("the statistics to be shown", lambda: screen._statistics is not None)
        progress.begin(Step.WATCH)
        progress.show("3 of 10 s")
        progress.note("the end")
        shown = file.getvalue()
    for words in ("0.1.0-x", "21.0 s", "a unit differs", "3 of 10 s", "generation 4", "3 sessions"):
        assert words in " ".join(shown.split()), words


def test_the_last_picture_stays_without_the_statistics() -> None:
    file = io.StringIO()
    progress = Progress()
    with LiveSteps(console(file, terminal=True), progress, lambda: FIRST):
        go_through(progress)
        progress.end(StepResult(Step.WATCH, True, "3 sessions", 10.0))
    last = file.getvalue().rpartition(ERASE_LINE)[2]  # a picture is drawn over the one before
    assert "generation 4" not in last
    assert "0.1.0-x" in last


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


class Latin(io.StringIO):
    """A terminal that cannot show everything."""

    encoding = "latin-1"

    def write(self, text: str) -> int:
        return super().write(text.encode("latin-1").decode("latin-1"))


class Hanging(io.StringIO):
    """A terminal that accepts no output until it is `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait()
        return super().write(text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", [Gone, Latin, Hanging])
def test_a_bad_terminal_does_not_hold_up_a_deployment(
    terminal: bool, kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen_module, "CLOSE_SECS", 0.01)
    stream = kind()
    with open_screen(stream, lambda: None, force_terminal=terminal, _environ={"TERM": "xterm"}) as screen:
        go_through(screen)
        screen.end(StepResult(Step.WATCH, True, "3 sessions", 10.0))
    assert [result.step for result in screen.results] == [Step.BUILD, Step.WATCH]
    if isinstance(stream, Hanging):
        stream.released.set()


# --- Interruptions ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_recorded_while_it_cannot_be_handled(number: int) -> None:
    interrupts = Interrupts()
    before = signal.getsignal(number)
    with interrupts.listening():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        interrupts.ignore()
        interrupts.raise_pending()
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interrupts.raise_pending()
        interrupts.raise_pending()
    assert signal.getsignal(number) is before


def test_a_terminal_that_hangs_up_interrupts_nothing() -> None:
    with Interrupts().listening():
        os.kill(os.getpid(), signal.SIGHUP)
