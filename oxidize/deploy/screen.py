"""What the operator sees of a deployment: its steps and the server's pulse on a terminal, plain lines elsewhere.

Rule: a screen shows and decides nothing, and nobody waits for it: a terminal that hangs or is closed in the middle must
not hold up a deployment, least of all its way back.
"""

import contextlib
import queue
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
from oxidize.text import counted, printable

REFRESH_PER_SECOND = 8
LOOK_SECS = 1.0
TEXTS_MAX = 10_000  # that wait to be written; a picture of the terminal is some ten of them
CLOSE_SECS = 2.0
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

    def close(self) -> None:
        """Do nothing: lines stay."""

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
        self._feeling.join(CLOSE_SECS)
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
    text = printable(text)
    first, *more = text.splitlines() or [""]
    return f"{first} ..." if more else first


class Writer:
    """A stream that never blocks nor raises: a thread of its own writes, and what cannot be written is lost.

    A terminal may hang, by Ctrl-S or because its connection leads over the very server that is replaced, and it may be
    closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self.encoding = stream.encoding or "utf-8"
        self._stream = stream
        self._texts: queue.Queue[str | None] = queue.Queue(TEXTS_MAX)
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor, from which the size of the terminal is known."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Have it written, or lose it."""
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every text is flushed."""

    def close(self) -> None:
        """Wait until all is written, for CLOSE_SECS at most."""
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(None)
        self._thread.join(CLOSE_SECS)

    def _write_all(self) -> None:
        while (text := self._texts.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
                self._stream.flush()


@contextlib.contextmanager
def open_screen(stream: TextIO, look: Look, **console_options: Any) -> Iterator[Recorder]:
    """Yield the screen that fits the stream, until the deployment has ended. look: as of LiveScreen."""
    writer = Writer(stream)
    console = Console(file=cast(TextIO, writer), highlight=False, **console_options)
    screen: PlainScreen | LiveScreen
    screen = LiveScreen(console, look) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(console)
    try:
        yield screen
    finally:
        screen.close()
        writer.close()
