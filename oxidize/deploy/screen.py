"""What the operator sees of a deployment: its steps and the server's pulse on a terminal, plain lines elsewhere.

Rule: a screen shows and decides nothing, and what it cannot write is lost: a terminal that is closed in the middle must
not end a deployment.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from oxidize.deploy.progress import Done, Recorder, Step
from oxidize.deploy.vitals import Rates, Vitals, rates
from oxidize.text import counted

REFRESH_PER_SECOND = 8
LOOK_SECS = 1.0
STEP_WIDTH = max(len(step.value) for step in Step)

Look = Callable[[], Vitals | None]


class PlainScreen(Recorder):
    """A line for each step as it begins and as it ends."""

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console = console
        self._now = now
        self._began = now()

    def begin(self, step: Step) -> None:
        """Print it."""
        self._print(f"{step.value} ...")

    def end(self, done: Done) -> None:
        """Print what came of it."""
        super().end(done)
        verdict = "ok" if done.ok else "FAILED"
        self._print(f"{done.step.value} {verdict}, {done.seconds:.1f} s: {_first_line(done.text)}")

    def note(self, text: str) -> None:
        """Print it."""
        super().note(text)
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        self._console.print(
            f"{self._now() - self._began:6.1f} s  {text}", highlight=False, markup=False, soft_wrap=True
        )


class LiveScreen(Recorder):
    """The steps below one another, the present one with a spinner, and the server below them.

    look: returns the server's vitals, None where it has none; called from a thread of its own.
    """

    def __init__(self, console: Console, look: Look, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._began = self._step_began = now()
        self._step: Step | None = None
        self._text = ""
        self._look = look
        self._pulse: tuple[Vitals, Rates] | None = None
        self._ended = threading.Event()
        self._feeling = threading.Thread(target=self._feel, daemon=True)
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=REFRESH_PER_SECOND, transient=False
        )
        self._live.start()
        self._feeling.start()

    def begin(self, step: Step) -> None:
        """Show it with a spinner."""
        self._step, self._step_began, self._text = step, self._now(), ""
        self._live.refresh()

    def show(self, text: str) -> None:
        """Show it beside the present step."""
        self._text = text

    def end(self, done: Done) -> None:
        """Show what came of it."""
        super().end(done)
        self._step = None
        self._live.refresh()

    def note(self, text: str) -> None:
        """Show it below the steps."""
        super().note(text)
        self._live.refresh()

    def close(self) -> None:
        """Leave the terminal as it was, with the last picture in it."""
        self._ended.set()
        self._feeling.join()
        self._pulse = None
        self._live.stop()

    def _feel(self) -> None:
        """Follow the server, whatever the deployment does meanwhile."""
        before: Vitals | None = None
        while not self._ended.wait(LOOK_SECS if before is not None else 0.0):
            now = self._look()
            self._pulse = (now, rates(before or now, now)) if now is not None else None
            before = now
            if now is None and self._ended.wait(LOOK_SECS):
                return

    def _render(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(width=1)
        rows.add_column(width=STEP_WIDTH)
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(overflow="fold")
        for done in self.done:
            mark = Text("✓", style="green") if done.ok else Text("✗", style="bold red")
            text = Text(_first_line(done.text), style="" if done.ok else "red")
            rows.add_row(mark, Text(done.step.value), Text(f"{done.seconds:.1f} s", style="dim"), text)
        if self._step is not None:
            seconds = f"{self._now() - self._step_began:.1f} s"
            rows.add_row(self._spinner, Text(self._step.value, style="bold"), seconds, self._text)
        below = [Text(f"note: {note}", style="yellow") for note in self.notes]
        return Group(rows, *below, *self._status())

    def _status(self) -> Iterator[Text]:
        if self._pulse is None:
            return
        vitals, passing = self._pulse
        passed, sessions = self._now() - self._began, counted(vitals.sessions, "session")
        yield Text(
            f"{passed:.0f} s   generation {vitals.generation}   {sessions}   "
            f"{passing.received:,.0f} packets/s received   {passing.sent:,.0f} sent",
            style="dim",
        )


def _first_line(text: str) -> str:
    """Return the first line of a reason, all of which is told at the end."""
    first, *more = text.splitlines() or [""]
    return f"{first} ..." if more else first


class Surviving:
    """A stream whose terminal may be closed: what cannot be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        """Return what the stream can write."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor, from which the size of the terminal is known."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, or lose it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose it."""
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def open_screen(stream: TextIO, look: Look, **console_options: Any) -> Iterator[Recorder]:
    """Yield the screen that fits the stream, until the deployment has ended. look: as of LiveScreen."""
    console = Console(file=cast(TextIO, Surviving(stream)), highlight=False, **console_options)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainScreen(console)
        return
    screen = LiveScreen(console, look)
    try:
        yield screen
    finally:
        screen.close()
