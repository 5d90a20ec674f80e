"""`oxidize rehearse`: try a takeover by this release on a copy of the server's state."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from oxidize import config
from oxidize.cli.common import SERVER_CONFIG, config_option, json_option, print_json
from oxidize.cli.lines import echo, print_warning
from oxidize.cpu_priority import CpuPriority
from oxidize.oom_score import OomScore
from oxidize.text import counted

if TYPE_CHECKING:
    from oxidize.runtime.rehearsal import Rehearsal


@click.command(short_help="Try a takeover by this release on a copy of the server's state.")
@config_option(SERVER_CONFIG)
@json_option
def rehearse(config_path: Path, as_json: bool) -> None:
    """Restore a copy of the running server's state, and print how many sessions this release would keep.

    Nothing is changed. Exit status 0 if the state could be restored, even if fewer sessions would be kept; 1, with the
    reason, if it could not.
    """
    from oxidize.runtime.rehearsal import rehearse as run  # noqa: PLC0415  # the other commands need none of it
    from oxidize.settings import NodeSettings  # noqa: PLC0415  # the other commands need none of it

    loaded = config.load_server(config_path)
    for warning in loaded.warnings:
        print_warning(warning)
    with OomScore(), CpuPriority():  # it needs as much memory as the server, and much time
        outcome = run(NodeSettings.of_server(loaded))
    if as_json:
        print_json(dataclasses.asdict(outcome))
    else:
        for line in lines_of(outcome):
            echo(line)


def lines_of(outcome: "Rehearsal") -> list[str]:
    """Return the outcome of a rehearsal as lines for people."""
    kept = f"{outcome.sessions} of {counted(outcome.sessions_now, 'session')}"
    server = f"generation {outcome.generation}, pid {outcome.pid}"
    lines = [f"release {outcome.release} would keep {kept} ({server})"]
    lines += [f"{counted(number, 'session')}: {reason}" for reason, number in outcome.refused.items()]
    if outcome.unknown_fields or outcome.unknown_types:
        fields, records = counted(outcome.unknown_fields, "field"), counted(outcome.unknown_types, "record")
        lines.append(f"a newer release has written {fields} and {records} that this one ignores")
    return lines
