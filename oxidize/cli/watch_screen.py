"""What `oxidize watch` draws in a terminal.

The rule: a frame is a function of the history, the time and the size of the terminal, and never larger than the
terminal; the most important lines come first, because the rest is cut. No information is in the colour alone.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.text import Text

from oxidize.cli.watch_history import ASCII_BLOCKS, BLOCKS, History, Sample, sparkline
from oxidize.cli.watch_lines import rate_text
from oxidize.deploy.vitals import Takeover
from oxidize.terminal.screen import LiveScreen
from oxidize.terminal.table import table
from oxidize.terminal.units import byte_count, clock, duration, milliseconds, short_duration
from oxidize.text import counted, release_name

DAY_SECS = 86_400
ROOMY_LINES = 20  # with fewer there are no empty lines
MAXIMUM_COLUMNS = 60  # with fewer the maximum is left out
WIDE_COLUMNS = 68  # with fewer a takeover's sessions are left out; its release is where it fits
NOW_WIDTH, MAXIMUM_WIDTH = 12, 10  # "1023.9 KiB/s", "1023.9 KiB"
WIDE_HEADINGS = ("takeovers", "generation", "release", "sessions", "blackout", "")
RELEASE_COLUMN = WIDE_HEADINGS.index("release")
RIGHT_HEADINGS = {"sessions", "blackout"}
NARROW_HEADINGS = ("takeovers", "generation", "")

_STATE_STYLES = {"healthy": "bold green", "starting": "bold yellow", "draining": "bold yellow"}
_FAILED, _SUCCEEDED = "bold red", "bold cyan"


@dataclass(frozen=True, slots=True)
class Row:
    """A row with a sparkline: its name, its value in a sample, how that is formatted, and its unit."""

    name: str
    read: Callable[[Sample], float | None]
    text: Callable[[float], str] = rate_text
    unit: str = "/s"


ROWS = (
    Row("sessions", lambda sample: sample.vitals.sessions if sample.vitals else None, "{:,}".format, ""),
    Row("packets received", lambda sample: sample.flow.received if sample.flow else None),
    Row("packets sent", lambda sample: sample.flow.sent if sample.flow else None),
    Row("bytes received", lambda sample: sample.flow.received_bytes if sample.flow else None, byte_count),
    Row("bytes sent", lambda sample: sample.flow.sent_bytes if sample.flow else None, byte_count),
    Row("dropped", lambda sample: sample.drops_rate),
)
NAME_WIDTH = max(len(row.name) for row in ROWS)


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of sparklines and takeover marks."""

    blocks: str
    succeeded: str
    failed: str


GLYPHS = Glyphs(BLOCKS, "▼", "✗")
ASCII_GLYPHS = Glyphs(ASCII_BLOCKS, "v", "x")


def frame(role: str, history: History, now: float, size: tuple[int, int], glyphs: Glyphs = GLYPHS) -> Iterator[Text]:
    """Yield the lines of one frame, at most as many and as wide as `size` (columns, lines) allows.

    now: seconds since the epoch. At least one sample was answered.
    """
    width, height = size
    space = [Text()] if height >= ROOMY_LINES else []
    lines = [*_head(role, history, now, width), *space, *_sparklines(history, width, glyphs), *space]
    lines += _takeovers(history, now, width)
    for line in lines[:height]:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
        yield line


def _head(role: str, history: History, now: float, width: int) -> Iterator[Text]:
    last, vitals = history.samples[-1], history.last_vitals
    assert vitals is not None, "the first poll was answered"  # noqa: S101 - for mypy
    is_there = last.vitals is not None
    if is_there:
        state = Text(vitals.state, style=_STATE_STYLES.get(vitals.state, "bold yellow"))
    else:
        away = short_duration(max(now - history.answered_unix, 0.0))
        state = Text(f"no answer since {clock(history.answered_unix)}, for {away}", style=_FAILED)
    yield Text.assemble((role, "bold"), "  ", state)
    uptime = vitals.uptime_secs + (max(now - history.answered_unix, 0.0) if is_there else 0.0)
    parts = [
        f"generation {vitals.generation}",
        f"release {release_name(vitals.release, vitals.release_folder)}",
        f"pid {vitals.pid}",
    ]
    parts += [f"up {duration(uptime)}", counted(vitals.peers, "peer")]
    style = "" if is_there else "dim"
    for number, line in enumerate(_wrapped(parts if is_there else ["last seen:", *parts], width)):
        yield Text(line if number else line.replace(":,", ":"), style=style)
    if not is_there and last.reason:
        yield Text(last.reason, style="yellow")


def _wrapped(parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield the parts, separated by commas, on as few lines as possible."""
    line = ""
    for part in parts:
        if line and len(line) + len(part) + 2 > width:
            yield line
            line = part
        else:
            line = f"{line}, {part}" if line else part
    yield line


def _sparklines(history: History, width: int, glyphs: Glyphs) -> Iterator[Text]:
    has_maximum = width >= MAXIMUM_COLUMNS
    before = NAME_WIDTH + 1 + NOW_WIDTH + 2 + (MAXIMUM_WIDTH + 1 if has_maximum else 0)
    columns = max(width - before, 0)
    shown = history.last(columns)
    marks = [_mark(sample) for sample in shown]
    span = f"last {duration(shown[-1].at_unix - shown[0].at_unix)}" if shown else ""
    headings = f"{span:{NAME_WIDTH}} {'now':>{NOW_WIDTH}}" + ("max".rjust(MAXIMUM_WIDTH + 1) if has_maximum else "")
    pointers = {None: " ", _SUCCEEDED: glyphs.succeeded, _FAILED: glyphs.failed}
    line = Text.assemble((headings, "dim"), "  ")
    yield _marked(line, "".join(pointers[mark] for mark in marks), marks, columns)
    for row in ROWS:
        values = [row.read(sample) for sample in shown]
        now = row.read(history.samples[-1])
        line = Text(f"{row.name:{NAME_WIDTH}} ")
        line.append(("-" if now is None else row.text(now) + row.unit).rjust(NOW_WIDTH), style="bold")
        if has_maximum:
            highest = max((value for value in values if value is not None), default=None)
            line.append(("-" if highest is None else row.text(highest)).rjust(MAXIMUM_WIDTH + 1))
        style = "red" if row.name == "dropped" and any(values) else "green"
        line.append("  ")
        yield _marked(line, sparkline(values, len(shown), glyphs.blocks), marks, columns, style)


def _mark(sample: Sample) -> str | None:
    """Return the style of a sample's column if it has a takeover, else None."""
    if not sample.takeovers:
        return None
    return _SUCCEEDED if all(takeover.succeeded for takeover in sample.takeovers) else _FAILED


def _marked(line: Text, drawn: str, marks: Sequence[str | None], columns: int, style: str = "") -> Text:
    """Append a drawn line, right-aligned; the columns of takeovers have the style of their mark."""
    line.append(" " * (columns - len(drawn)))
    for character, mark in zip(drawn, marks, strict=True):
        line.append(character, style=mark or style)
    return line


def _takeovers(history: History, now: float, width: int) -> Iterator[Text]:
    is_wide = width >= WIDE_COLUMNS
    rows = [_takeover_row(takeover, now, is_wide) for takeover in history.takeovers]
    if not rows:
        yield Text("no takeovers yet", style="dim")
        return
    headings: tuple[str, ...] = WIDE_HEADINGS if is_wide else NARROW_HEADINGS
    if is_wide and max(map(len, table(headings, rows, right={3, 4}))) > width:
        headings, rows = _without(headings, RELEASE_COLUMN), [_without(row, RELEASE_COLUMN) for row in rows]
    right = {number for number, heading in enumerate(headings) if heading in RIGHT_HEADINGS}
    lines = table(headings, rows, right)
    yield next(lines)
    for line, takeover in zip(lines, history.takeovers, strict=True):
        if not takeover.succeeded:
            line.stylize("red")
        yield line


def _without(row: tuple[str, ...], column: int) -> tuple[str, ...]:
    return row[:column] + row[column + 1 :]


def _takeover_row(takeover: Takeover, now: float, is_wide: bool) -> tuple[str, ...]:
    is_recent = now - takeover.at_unix < DAY_SECS
    when = clock(takeover.at_unix) if is_recent else time.strftime("%Y-%m-%d", time.localtime(takeover.at_unix))
    what = takeover.what if takeover.succeeded else f"FAILED: {takeover.what}"
    blackout = milliseconds(takeover.blackout_ms)
    if not is_wide:
        return (when, takeover.generations, what if takeover.blackout_ms is None else f"{blackout}, {what}")
    sessions = "-" if takeover.sessions is None else str(takeover.sessions)
    return (when, takeover.generations, takeover.release or "-", sessions, blackout, what)


def live_screen(
    role: str, console: Console, history: History, sleep: Callable[[float], None] | None = None
) -> LiveScreen[Sample]:
    """Return a screen that draws the history on the whole terminal. sleep: as `LiveScreen` has it."""
    # The font of the Linux console has only two of the blocks.
    is_poor = console.options.ascii_only or os.environ.get("TERM") == "linux"
    glyphs = ASCII_GLYPHS if is_poor else GLYPHS

    def render(_sample: Sample) -> Group:
        return Group(*frame(role, history, time.time(), console.size, glyphs))

    return LiveScreen(console, render, is_fullscreen=True, sleep=sleep)
