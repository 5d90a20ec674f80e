"""What the operator sees of a deployment: its steps and live server statistics on a terminal, plain lines elsewhere.

Rule: a screen shows and decides nothing, and the deployment never waits for it: a terminal that hangs or is closed must
not hold up a deployment, least of all its rollback.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from oxidize.deploy.progress import Progress, Step
from oxidize.deploy.vitals import Rates, Vitals, rates
from oxidize.terminal.screen import CLOSE_SECS, NonBlockingWriter, can_draw, print_line
from oxidize.text import counted

REFRESH_PER_SECOND = 8
POLL_SECS = 1.0
STEP_WIDTH = max(len(step.value) for step in Step)

Poll = Callable[[], Vitals | None]


class LiveSteps:
    """The steps below one another, the present one with a spinner, and the server's statistics below them.

    poll: returns the server's vitals, None where it has none; called from a separate thread.
    """

    def __init__(
        self, console: Console, progress: Progress, poll: Poll, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = progress
        self._step: Step | None = None
        self._now = now
        self._began = self._step_began = now()
        self._poll = poll
        self._statistics: tuple[Vitals, Rates] | None = None
        self._ended = threading.Event()
        self._polling = threading.Thread(target=self._poll_server, daemon=True)
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> Self:
        self._progress.on_event = self._on_event
        self._live.start()
        self._polling.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture in the terminal, without the statistics."""
        self._ended.set()
        self._polling.join(CLOSE_SECS)
        self._statistics = None
        self._live.stop()

    def _on_event(self, _line: str) -> None:
        if self._progress.step is not self._step:
            self._step, self._step_began = self._progress.step, self._now()
        self._live.refresh()

    def _poll_server(self) -> None:
        before: Vitals | None = None
        while not self._ended.wait(POLL_SECS if before is not None else 0.0):
            now = self._poll()
            self._statistics = (now, rates(before or now, now)) if now is not None else None
            before = now
            if now is None and self._ended.wait(POLL_SECS):
                return

    def _render(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(width=1)
        rows.add_column(width=STEP_WIDTH)
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(overflow="fold")
        progress = self._progress
        for result in progress.results:
            mark = Text("✓", style="green") if result.ok else Text("✗", style="bold red")
            text = Text(result.first_line, style="" if result.ok else "red")
            rows.add_row(mark, Text(result.step.value), Text(f"{result.seconds:.1f} s", style="dim"), text)
        if progress.step is not None:
            seconds = f"{self._now() - self._step_began:.1f} s"
            rows.add_row(self._spinner, Text(progress.step.value, style="bold"), seconds, Text(progress.detail))
        notes = [Text(f"note: {note}", style="yellow") for note in progress.notes]
        return Group(rows, *notes, *self._server_lines())

    def _server_lines(self) -> Iterator[Text]:
        if self._statistics is None:
            return
        vitals, flow = self._statistics
        passed, sessions = self._now() - self._began, counted(vitals.sessions, "session")
        yield Text(
            f"{passed:.0f} s   generation {vitals.generation}   {sessions}   "
            f"{flow.received:,.0f} packets/s received   {flow.sent:,.0f} sent",
            style="dim",
        )


@contextlib.contextmanager
def open_screen(stream: TextIO, poll: Poll, **console_options: Any) -> Iterator[Progress]:
    """Yield a deployment's progress, shown on the stream until the block ends. poll: as of LiveSteps."""
    writer = NonBlockingWriter(stream)
    console = Console(file=cast(TextIO, writer), highlight=False, **console_options)
    progress, began = Progress(), time.monotonic()
    try:
        if can_draw(console):
            with LiveSteps(console, progress, poll):
                yield progress
        else:
            progress.on_event = lambda line: print_line(console, f"{time.monotonic() - began:6.1f} s  {line}")
            yield progress
    finally:
        writer.close()
