"""The lines that commands print.

The rule: all text is printed by `echo` and what calls it, or by `oxidize.terminal`: file names, reasons and names may
come from others, and a terminal must not execute what is in them. Nothing here imports the command line, which takes as
long as a whole reload of an unchanged configuration.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from oxidize.config.paths import Role
from oxidize.text import printable, wrapped

COLUMNS = 80  # of a terminal that does not say


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a text, without what a terminal executes, to standard output or standard error.

    A terminal, which would break a line within a word, gets lines that fit.
    """
    write_line(_fitted(printable(text, characters_max=None), sys.stderr if err else sys.stdout), err=err)


def write_line(text: str, *, err: bool = False) -> None:
    """Write a printable text; a character that the stream's encoding does not have is escaped."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:  # else it was closed
        encoding = stream.encoding or "utf-8"
        stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def _fitted(text: str, stream: TextIO | None) -> str:
    return text if stream is None or not stream.isatty() else wrapped(text, _columns_of(stream))


def _columns_of(terminal: TextIO) -> int:
    """Return the width of a terminal; as for every program, COLUMNS comes first."""
    with suppress(KeyError, ValueError):
        return max(int(os.environ["COLUMNS"]), 1)
    with suppress(OSError):  # of the stream's own terminal: the other one may be a file
        return os.get_terminal_size(terminal.fileno()).columns or COLUMNS
    return COLUMNS


def fail(status: int, *lines: str) -> NoReturn:
    """Print lines as errors and exit."""
    for line in lines:
        echo(f"oxidize: {line}", err=True)
    sys.exit(status)


def print_line(line: str) -> None:
    """Print a line about what was done to standard error, apart from the command's output."""
    echo(line, err=True)


def print_warning(line: str) -> None:
    """Print a warning to standard error."""
    echo(f"oxidize: warning: {line}", err=True)


def announce_key_change(role: Role, takeover_socket: Path, public_key: bytes) -> None:
    """Warn if the running process has another private key than a configuration: a reload ends its sessions."""
    from oxidize.control import key_change  # noqa: PLC0415  # the other commands need none of it

    announced = key_change.announcement(role, takeover_socket, public_key)
    if announced is not None:
        print_warning(announced)
