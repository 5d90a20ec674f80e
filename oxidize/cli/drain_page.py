"""`oxidize drain`, and its progress.

Rule: the server drains by itself and this module only polls it, so that Ctrl-C does not end the drain.
"""

import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from oxidize import config
from oxidize.cli.common import SERVER_CONFIG, config_option
from oxidize.cli.lines import echo
from oxidize.control import query
from oxidize.text import counted

POLL_SECS = 0.25


@click.command(short_help="Refuse new sessions and wait for the old ones to end.")
@config_option(SERVER_CONFIG)
@click.option("--cancel", is_flag=True, help="Accept new sessions again.")
def drain(config_path: Path, cancel: bool) -> None:
    """Refuse new sessions and wait until the old ones are no longer used, for example before a reboot.

    The wait is limited to drain_timeout_secs. Afterwards the server still runs and still refuses new sessions, also
    after a reload or a crash, until it is stopped or restarted, or told to accept them again (--cancel).
    """
    takeover_socket = config.takeover_socket_of(config_path, "server")
    if cancel:
        found = query.fetch(takeover_socket, query.ACCEPT)
        echo(f"generation {found['generation']}, pid {found['pid']}, accepts new sessions")
    else:
        _watch_drain(takeover_socket)


def _watch_drain(takeover_socket: Path) -> None:
    """Begin a drain and return when it has ended; raises OxidizeError if the server does not answer."""
    found = query.fetch(takeover_socket, query.DRAIN)
    timeout_secs = found["drain_timeout_secs"]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    console = Console(file=sys.stderr, highlight=False)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("draining", total=max(timeout_secs, POLL_SECS))
        left_secs = timeout_secs
        while found["drain_left_secs"]:
            left_secs = found["drain_left_secs"]
            sessions = counted(found["sessions"], "session")
            progress.update(task, completed=timeout_secs - found["drain_left_secs"], description=f"{sessions} left")
            time.sleep(POLL_SECS)
            found = query.fetch(takeover_socket, query.IDENTITY)
        outcome = "drained" if found["drain_left_secs"] is not None else "ended early"
        progress.update(task, completed=max(timeout_secs, POLL_SECS), description=outcome)
    if found["drain_left_secs"] is None:
        echo("oxidize: the drain was ended by --cancel or by a restart: new sessions are accepted", err=True)
        sys.exit(1)
    echo(
        f"drained: {_outcome(found['sessions'], is_out_of_time=left_secs <= 2 * POLL_SECS)}; new sessions are refused. "
        "Stop the server now, or accept new sessions again with `oxidize drain --cancel`."
    )


def _outcome(sessions: int, *, is_out_of_time: bool) -> str:
    if not sessions:
        return "no session is open"
    still_open = f"{counted(sessions, 'session')} still open"
    return f"time limit reached with {still_open}" if is_out_of_time else f"{still_open}, none of them in use"
