"""The display of a run: a live table on a terminal, plain lines elsewhere, and the verdict at the end.

Rule: a screen displays and decides nothing. Numbers during the run are preliminary; those of the verdict are final.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from demo.verdict import Action, Judged, Verdict
from oxidize.terminal.screen import LiveScreen, can_draw, print_line

PLAIN_WIDTH = 132
WIDE_COLUMNS = 100  # with fewer the counters of the live table take two rows, and its columns stand closer together
LIVE_RESULTS_COLUMNS = 76  # with fewer its events have no results
RESULTS_WIDTH_MIN = 110  # with fewer columns the results stand below their table, uncut
PLAIN_INTERVAL_SECS = 1.0
REFRESH_PER_SECOND = 8

_ACTION_STYLES = {Action.RELOAD: "bold blue", Action.REFUSED: "bold yellow", Action.KILL: "bold red"}


@dataclass(frozen=True, slots=True)
class View:
    """The state of a run at one moment; rates per second, times in seconds since the start of the schedule."""

    elapsed: float
    seconds: float
    sent_rate: float
    reply_rate: float
    sent: int
    replies: int
    lost: int  # so far: without a reply for OVERDUE_SECS
    duplicated: int
    handshakes: int
    generation: int | None
    pid: int | None
    doing: str  # the current action on the server, empty if there is none
    events: tuple[tuple[float, Judged], ...]


class _Lines:
    """Prints the new actions on the server, and once per second the counters."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at = 0.0
        self._shown = 0

    def show(self, view: View) -> None:
        """Print what is new in a view."""
        for at, judged in view.events[self._shown :]:
            print_line(self._console, f"{view.elapsed:6.1f} s  at {at:.1f} s: {event_text(judged)}")
        self._shown = len(view.events)
        if view.elapsed >= self._next_at:
            self._next_at = view.elapsed + PLAIN_INTERVAL_SECS
            print_line(
                self._console,
                f"{view.elapsed:6.1f} s  {view.sent_rate:7,.0f} sent/s  {view.reply_rate:7,.0f} replies/s  "
                f"{view.lost} lost  generation {_or_dash(view.generation)}  pid {_or_dash(view.pid)}",
            )


@contextmanager
def open_screen(console: Console, *, table: bool) -> Iterator[Callable[[View], None]]:
    """Yield what shows a view: a live table, or plain lines where it is no terminal or no table is wanted."""
    if table and can_draw(console):

        def draw(view: View) -> RenderableType:
            return _live_table(view, console.width)

        with LiveScreen(console, draw) as screen:
            yield screen.show
    else:
        yield _Lines(console).show


def event_text(judged: Judged) -> str:
    """Return one line about an action on the server and its result."""
    replacement = judged.replacement
    parts = [replacement.action.value if replacement.succeeded else f"{replacement.action.value} FAILED"]
    if replacement.blackout_ms is not None:
        parts.append(f"blackout {replacement.blackout_ms:.1f} ms")
    parts.append(f"longest silence {judged.gap_ms:.1f} ms")
    return f"{', '.join(parts)}: {replacement.detail}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _live_table(view: View, width: int) -> RenderableType:
    gap = 3 if width >= WIDE_COLUMNS else 1
    has_results = width >= LIVE_RESULTS_COLUMNS
    names = ("time", "sent/s", "replies/s", "sent", "lost so far", "duplicated", "handshakes", "generation", "pid")
    values = (
        f"{view.elapsed:.1f} s",
        f"{view.sent_rate:,.0f}",
        f"{view.reply_rate:,.0f}",
        f"{view.sent:,}",
        f"{view.lost:,}",
        f"{view.duplicated:,}",
        f"{view.handshakes:,}",
        _or_dash(view.generation),
        _or_dash(view.pid),
    )
    per_row = len(names) if width >= WIDE_COLUMNS else 5
    head = Table.grid(*(Column(justify="right") for _ in range(per_row)), padding=(0, gap))
    cells = [Text(value, style="bold red" if _is_bad(n, value) else "bold") for n, value in enumerate(values)]
    for start in range(0, len(names), per_row):
        head.add_row(*(Text(name, style="dim") for name in names[start : start + per_row]))
        head.add_row(*cells[start : start + per_row])
    events = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim", expand=True)
    events.add_column("at", justify="right", no_wrap=True, min_width=7)
    events.add_column("what", no_wrap=True, min_width=15)
    for name in ("blackout", "longest silence"):
        events.add_column(name, justify="right", no_wrap=True)
    if has_results:
        events.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
    for at, judged in view.events:
        replacement = judged.replacement
        mark = Text(replacement.action.value, style=_ACTION_STYLES[replacement.action])
        if not replacement.succeeded:
            mark.append(" FAILED", style="bold red")
        blackout = "none" if replacement.blackout_ms is None else f"{replacement.blackout_ms:.1f} ms"
        result = [Text(replacement.detail)] if has_results else []
        events.add_row(f"{at:.1f} s", mark, blackout, f"{judged.gap_ms:.1f} ms", *result)
    if view.doing:
        events.add_row(f"{view.elapsed:.1f} s", Text(f"{view.doing} ...", style="italic"))
    bar = ProgressBar(total=view.seconds, completed=min(max(view.elapsed, 0.0), view.seconds), width=min(60, width))
    return Group(Text("A WireGuard server, replaced under traffic", style="bold"), bar, Text(), head, Text(), events)


def _is_bad(column: int, value: str) -> bool:
    return column in (4, 5) and value != "0"


def print_verdict(console: Console, verdict: Verdict, origin: float) -> None:
    """Print the verdict: the numbers, each replacement, and the reasons if it failed."""
    numbers = Table(title="What the clients saw", title_justify="left", show_header=False, title_style="bold")
    numbers.add_column()
    numbers.add_column(justify="right")
    beyond = verdict.lost - verdict.lost_in_hand
    for name, value in (
        ("requests sent", f"{verdict.sent:,}"),
        ("replies", f"{verdict.replies:,}"),
        ("lost", f"{beyond:,}"),
        ("lost with the kill (64 at most)", f"{verdict.lost_in_hand:,}"),
        ("duplicated", f"{verdict.duplicated:,}"),
        ("reordered", f"{verdict.reordered:,}"),
        (f"handshakes of {verdict.clients} clients", f"{verdict.handshakes:,}"),
        ("sessions lost", f"{verdict.sessions_lost:,}"),
        ("latency, median and longest", f"{verdict.latency_median_ms:.2f} / {verdict.latency_max_ms:.1f} ms"),
    ):
        numbers.add_row(name, value)
    console.print(numbers)
    has_results = console.width >= RESULTS_WIDTH_MIN
    title = Text("What was done to the server", style="bold")
    done = Table(title=title, title_justify="left", box=box.HEAVY_HEAD if has_results else box.SIMPLE_HEAD)
    done.add_column("what", no_wrap=True)
    for column in ("at", "blackout", "longest silence" if has_results else "longest\nsilence", "lost"):
        done.add_column(column, justify="right", no_wrap=True)
    if has_results:
        done.add_column("result")
    results = []
    for judged in verdict.replacements:
        replacement = judged.replacement
        action, at = replacement.action.value, f"{replacement.started_at - origin:.1f} s"
        blackout = "none" if replacement.blackout_ms is None else f"{replacement.blackout_ms:.1f} ms"
        result = [Text(replacement.detail)] if has_results else []
        mark = Text(action, style=_ACTION_STYLES[replacement.action])
        done.add_row(mark, at, blackout, f"{judged.gap_ms:.1f} ms", f"{judged.lost}", *result)
        results.append(Text(f"{at} {action}: {replacement.detail}"))
    console.print(done)
    if not has_results:
        console.print(*results, sep="\n")
    if verdict.ok:
        text = "passed: planned replacements lost no packet and no session, and nothing arrived twice"
        console.print(Text(text, style="bold green"))
        return
    console.print(Text("failed:", style="bold red"))
    for reason in verdict.reasons:
        console.print(Text(f"  {reason}", style="red"))
