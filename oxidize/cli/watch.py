"""`oxidize watch`: sessions, rates and takeovers as they happen.

The rule: it only reads. A process that ends and comes back is part of what it shows, so a missing answer is an error
for the first poll only.
"""

import gc
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from oxidize import config
from oxidize.cli.common import role_options
from oxidize.cli.lines import echo
from oxidize.cli.watch_history import History, Sample
from oxidize.cli.watch_lines import json_lines, text_lines
from oxidize.cli.watch_screen import live_screen
from oxidize.control import query
from oxidize.deploy.vitals import Vitals
from oxidize.errors import OxidizeError, TakeoverError, reason_of
from oxidize.terminal.keys import quit_key
from oxidize.terminal.screen import can_draw

Poll = Callable[[], Vitals | None]


@click.command(short_help="Show sessions, rates and takeovers as they happen.")
@role_options("Watch a client instead of a server.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECS",
    help="Seconds between two polls.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this number of polls.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def watch(config_path: Path, role: config.Role, interval: float, count: int | None, as_json: bool) -> None:
    """Show the running process until `q` or Ctrl-C: sessions, rates, drops and takeovers as they happen.

    In a terminal it draws sparklines, a column for each poll, and marks where the process was replaced; elsewhere it
    prints a line for each poll and for each takeover. If the process ends, it waits until one answers again.
    """
    takeover_socket = config.takeover_socket_of(config_path, role)
    history, console = History(), Console(highlight=False)
    history.add(time.time(), _first_poll(takeover_socket))

    poll = partial(_poll, takeover_socket)
    lines = json_lines if as_json else text_lines

    def print_sample(sample: Sample) -> None:
        for line in lines(sample):
            echo(line)

    try:
        if not as_json and can_draw(console):
            signal.signal(signal.SIGTERM, _end)
            with quit_key(sys.stdin) as sleep, live_screen(role, console, history, sleep) as screen:
                follow(history, poll, screen.show, screen.wait, interval, count)
        else:
            follow(history, poll, print_sample, time.sleep, interval, count)
    except KeyboardInterrupt:
        pass


def follow(
    history: History,
    poll: Poll,
    show: Callable[[Sample], None],
    wait: Callable[[float], None],
    interval: float,
    polls_max: int | None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Show the first sample of a history, then poll at each interval.

    wait: returns after the given seconds. polls_max: includes the first sample.
    """
    gc.enable()  # which the command line leaves to what runs for long
    show(history.samples[-1])
    due, polls = monotonic(), 1
    while polls != polls_max:
        # A poll that is late is skipped: a server that hung must not get many queries at once.
        due = max(due + interval, monotonic())
        wait(due - monotonic())
        vitals, reason = None, None
        try:
            vitals = poll()
        except OxidizeError as error:
            reason = " ".join(reason_of(error).split())
        show(history.add(time.time(), vitals, reason))
        polls += 1


def _first_poll(takeover_socket: Path) -> Vitals:
    """Return the vitals; raises OxidizeError if no process listens."""
    try:
        return Vitals.of(query.fetch(takeover_socket, query.VITALS))
    except TakeoverError as error:
        if not error.reason.startswith(f"query {query.VITALS!r}"):
            raise
        found = query.fetch(takeover_socket, query.IDENTITY)
        raise OxidizeError(
            f"generation {found['generation']}, pid {found['pid']}, of release {found['release']} cannot be watched: "
            f"it does not know the query {query.VITALS!r}; reload it to this release, or see `oxidize status`"
        ) from error


def _poll(takeover_socket: Path) -> Vitals | None:
    answer = query.find(takeover_socket, query.VITALS)
    return Vitals.of(answer) if answer is not None else None


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Restore the terminal, then end with the exit status of the signal."""
    sys.exit(128 + number)
