"""Output on a terminal: a picture that is redrawn in place, plain lines, and a stream that never blocks.

Rule: a screen shows and decides nothing, and it leaves the terminal as it found it.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, Self, TextIO, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

from oxidize.text import printable

REDRAW_SECS = 1.0  # while nothing new is shown: the terminal may have changed its size
TEXTS_MAX = 10_000  # texts that a NonBlockingWriter queues; one picture takes about ten
CLOSE_SECS = 2.0

View = TypeVar("View")


def can_draw(console: Console) -> bool:
    """Return whether the console is a terminal that can be drawn on. FORCE_COLOR alone does not make it one."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


class LiveScreen(Generic[View]):
    """Draws `render(view)` in place. is_fullscreen: on the alternate screen of the terminal, and once on its own.

    sleep: waits for so many seconds, or raises where a key ends the picture; None for one that only waits.
    """

    def __init__(
        self,
        console: Console,
        render: Callable[[View], RenderableType],
        *,
        is_fullscreen: bool = False,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._console = console
        self._is_fullscreen = is_fullscreen
        self._sleep = sleep or time.sleep
        self._view: View | None = None
        self._live = Live(console=console, auto_refresh=False, screen=is_fullscreen, transient=True)
        self._render = render

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._is_fullscreen and self._view is not None:  # the alternate screen is gone with all that it showed
            self._console.print(self._render(self._view))

    def show(self, view: View) -> None:
        """Draw a view in the place of the last one."""
        self._live.update(self._render(view), refresh=True)
        self._view = view

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, and redraw the last view every REDRAW_SECS."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > REDRAW_SECS:
            self._sleep(REDRAW_SECS)
            if self._view is not None:
                self.show(self._view)
        self._sleep(max(left, 0.0))


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: uncut, without markup or highlighting."""
    console.print(printable(text, None), highlight=False, markup=False, soft_wrap=True)


class NonBlockingWriter:
    """A text stream whose `write` neither blocks nor raises: a thread writes, and what cannot be written is dropped.

    A terminal can hang, by Ctrl-S or because its connection runs over the server that is being replaced, and it can be
    closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self.encoding = stream.encoding or "utf-8"
        self._stream = stream
        self._texts: queue.Queue[str | None] = queue.Queue(TEXTS_MAX)
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's descriptor, which tells the size of the terminal."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Queue the text for the writer thread; drop it when the queue is full."""
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread flushes every text."""

    def close(self) -> None:
        """Wait until everything queued is written, for CLOSE_SECS at most."""
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(None)
        self._thread.join(CLOSE_SECS)

    def _write_all(self) -> None:
        while (text := self._texts.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
                self._stream.flush()
