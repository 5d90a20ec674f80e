"""Screens: a picture that is redrawn in place where there is a terminal, lines that stay elsewhere.

Rule: a screen shows and decides nothing, and it leaves the terminal as it found it.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, Self, TextIO, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

REDRAW_SECS = 1.0  # while nothing new is shown: the terminal may have changed its size
TEXTS_MAX = 10_000  # texts that a NonBlockingWriter queues; one picture takes about ten
CLOSE_SECS = 2.0

View = TypeVar("View")
View_contra = TypeVar("View_contra", contravariant=True)


def can_draw(console: Console) -> bool:
    """Return whether the console is a terminal that can be drawn on. FORCE_COLOR alone does not make it one."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


class Screen(Protocol[View_contra]):
    """Shows one view after the other, between `__enter__` and `__exit__`."""

    def __enter__(self) -> Self:
        """Start to show."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def show(self, view: View_contra) -> None:
        """Show a view."""

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, keeping the picture up to date."""


class LiveScreen(Generic[View]):
    """Draws `render(view)` in place. is_fullscreen: on the terminal's alternate screen."""

    def __init__(
        self, console: Console, render: Callable[[View], RenderableType], *, is_fullscreen: bool = False
    ) -> None:
        self._live = Live(console=console, auto_refresh=False, screen=is_fullscreen, transient=True)
        self._render = render

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        """Draw a view in the place of the last one."""
        self._live.update(self._render(view), refresh=True)
        self._view = view

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, and redraw the last view every REDRAW_SECS."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > REDRAW_SECS:
            time.sleep(REDRAW_SECS)
            self.show(self._view)
        time.sleep(max(left, 0.0))


class LineScreen(Generic[View]):
    """Prints `lines(view)` with `print_line`; what is printed stays."""

    def __init__(self, lines: Callable[[View], Iterable[str]], print_line: Callable[[str], None]) -> None:
        self._lines = lines
        self._print_line = print_line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: View) -> None:
        """Print the lines of a view."""
        for line in self._lines(view):
            self._print_line(line)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`."""
        time.sleep(seconds)


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: uncut, without markup or highlighting."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
