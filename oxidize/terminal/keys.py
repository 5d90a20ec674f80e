"""Key presses in a terminal, as they come.

Rule: the terminal is left as it was found, whatever ends the block, and a process in the background of its terminal
never asks for keys, which would stop it. Sources: termios(3), tcgetpgrp(3).
"""

import contextlib
import os
import select
import termios
import time
from collections.abc import Callable, Iterator
from typing import TextIO

QUIT = b"qQ"


@contextlib.contextmanager
def quit_key(stream: TextIO) -> Iterator[Callable[[float], None]]:
    """Yield what waits for so many seconds, and raises KeyboardInterrupt when `q` is pressed in this terminal.

    stream: standard input; where it is no terminal, or not this process's to read, the wait only waits.
    """
    if not _is_readable(stream):
        yield time.sleep
        return
    fd = stream.fileno()
    before = termios.tcgetattr(fd)
    each_key = list(before)
    each_key[3] &= ~(termios.ICANON | termios.ECHO)  # the local modes; Ctrl-C and Ctrl-Z stay signals
    termios.tcsetattr(fd, termios.TCSADRAIN, each_key)
    try:
        yield lambda seconds: _wait(fd, seconds)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _is_readable(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _wait(fd: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([fd], [], [], max(until - time.monotonic(), 0.0))
        if not ready:
            return
        pressed = os.read(fd, 64)
        if not pressed or any(key in QUIT for key in pressed):
            raise KeyboardInterrupt
