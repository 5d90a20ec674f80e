"""Keys that end a picture: each is read at once, and the terminal is left as it was found."""

import io
import os
import pty
import termios
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest

from oxidize.terminal import keys
from oxidize.terminal.keys import quit_key


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """Yield the keyboard of a terminal, and what a process in its foreground reads."""
    leader, follower = pty.openpty()
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    with os.fdopen(follower) as stream:
        yield leader, stream
    os.close(leader)


def test_q_ends_the_wait_and_other_keys_do_not(terminal: tuple[int, TextIO]) -> None:
    keyboard, stream = terminal
    before = termios.tcgetattr(stream)
    with quit_key(stream) as wait:
        os.write(keyboard, b"xyz")
        wait(0.0)
        os.write(keyboard, b"q")
        with pytest.raises(KeyboardInterrupt):
            wait(3600.0)
    assert termios.tcgetattr(stream) == before


def test_a_terminal_that_is_gone_ends_the_wait() -> None:
    read, write = os.pipe()
    os.close(write)
    try:
        with pytest.raises(KeyboardInterrupt):
            keys._wait(read, 3600.0)
    finally:
        os.close(read)


def test_keys_are_neither_shown_nor_left_for_the_shell(terminal: tuple[int, TextIO]) -> None:
    keyboard, stream = terminal
    with quit_key(stream) as wait:
        os.write(keyboard, b"x")
        wait(0.0)
        assert not termios.tcgetattr(stream)[3] & (termios.ECHO | termios.ICANON)
    os.set_blocking(keyboard, False)
    with pytest.raises(BlockingIOError):
        os.read(keyboard, 1)


@pytest.mark.parametrize("owner", [0, -1])
def test_a_process_in_the_background_does_not_touch_the_terminal(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: owner)
    before = termios.tcgetattr(terminal[1])
    with quit_key(terminal[1]):
        assert termios.tcgetattr(terminal[1]) == before
    with quit_key(io.StringIO()):
        assert threading.active_count() >= 1
