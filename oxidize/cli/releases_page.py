"""What `oxidize releases` prints: the installed releases, which one serves, the rollback target, past deployments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from oxidize.cli.lines import echo
from oxidize.deploy.history import History
from oxidize.deploy.lock import lock_holder
from oxidize.deploy.releases import Release, Releases, interpreter_problem
from oxidize.deploy.retention import left_behind, release_before
from oxidize.terminal.table import print_lines, table
from oxidize.terminal.units import milliseconds
from oxidize.text import one_line

RELEASE_HEADINGS = ("release", "version", "built", "revision", "")
DEPLOYMENT_HEADINGS = ("when", "who", "what", "from", "to", "blackout", "result")


def describe(releases: Releases, past: History, running_folder: str | None, problem: str) -> dict[str, Any]:
    """Return the releases and deployments as plain values; `_unix` is seconds since the epoch.

    running_folder: where the server runs from, None if none is running. problem: why that is unknown, else "".
    """
    installed, entries, current = releases.all(), past.entries(), releases.current()
    running = releases.of_process(running_folder) if running_folder is not None else None
    present = running or current
    left = left_behind(entries)
    before = release_before(present.name, installed, entries) if present is not None else None

    def marks(release: Release) -> Iterator[str]:
        for what, marked in (("running", running), ("current", current), ("rollback", before)):
            if release == marked:
                yield what
        if release.name in left and release != present:
            yield "left"

    under_way = past.under_way()
    return {
        "releases": [
            {
                "name": release.name,
                "version": release.version,
                "built_unix": release.built_unix,
                "revision": release.revision,
                "marks": list(marks(release)),
                "problem": interpreter_problem(release),
            }
            for release in installed
        ],
        "incomplete": [folder.name for folder in releases.incomplete()],
        "running_elsewhere": running_folder if running is None else None,
        "problem": problem,
        "under_way": asdict(under_way) if under_way is not None else None,
        "holder": lock_holder(releases.prefix),
        "deployments": [asdict(entry) for entry in entries],
    }


def render(found: dict[str, Any], deployments_shown: int) -> None:
    """Print a description for people."""
    rows = [
        (each["name"], each["version"], _when(each["built_unix"]), each["revision"], ", ".join(each["marks"]))
        for each in found["releases"]
    ]
    console = Console(highlight=False)
    if rows:
        _print_fitting(console, RELEASE_HEADINGS, rows, lambda row: _stacked(row[0], f"built {row[2]}", row[4]))
    else:
        echo("no release is installed: `sudo make install` makes one")
    for each in found["releases"]:
        if each["problem"]:
            echo(f"{each['name']}: cannot run: {each['problem']}")
    for name in found["incomplete"]:
        what = (
            "its build was interrupted; the next deployment removes it" if found["holder"] is None else "is being built"
        )
        echo(f"{name}: {what}")
    if found["running_elsewhere"]:
        echo(f"the server runs from {found['running_elsewhere']}, which is none of these releases")
    if found["problem"]:
        echo(f"the running release is unknown: {found['problem']}")
    if found["under_way"]:
        step, who = found["under_way"]["step"], found["under_way"]["who"]
        if found["holder"] is None:
            echo(f"a deployment by {who} was killed at the step {step}; the next one repairs this")
        else:
            echo(f"a deployment by {who} is at the step {step}")
    deployments = found["deployments"][-deployments_shown:]
    if deployments:
        echo()
        done = [_deployment_row(each) for each in deployments]
        _print_fitting(console, DEPLOYMENT_HEADINGS, done, _stacked_deployment)


def _print_fitting(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    stacked: Callable[[Sequence[str]], Iterator[str]],
) -> None:
    """Print a table; in a terminal that is too narrow for it, each row on lines of its own."""
    lines = list(table(headings, rows))
    if console.is_terminal and max(map(len, lines)) > console.width:
        lines = [Text(one_line(line)) for row in rows for line in stacked(row)]
    print_lines(lines, console)


def _stacked(head: str, *facts: str) -> Iterator[str]:
    yield head
    yield "  " + ", ".join(fact for fact in facts if fact)


def _stacked_deployment(row: Sequence[str]) -> Iterator[str]:
    when, who, action, source, target, blackout, result = row
    yield f"{when}  {action} by {who}"
    yield f"  {source} ->"
    yield f"  {target}"
    yield f"  {result}" + (f", blackout {blackout}" if blackout != "-" else "")


def _deployment_row(entry: dict[str, Any]) -> tuple[str, ...]:
    first_reason, *_ = entry["reason"].splitlines() or [""]
    result = f"{entry['result']}: {first_reason}" if first_reason else entry["result"]
    source, target = entry["source"] or "-", entry["target"] or "-"
    return (
        _when(entry["at_unix"]),
        entry["who"],
        entry["action"],
        source,
        target,
        milliseconds(entry["blackout_ms"]),
        result,
    )


def _when(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S")
