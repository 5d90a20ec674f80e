"""What `oxidize releases` prints: the installed releases, which one serves, the rollback target, past deployments."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from oxidize.cli.common import echo
from oxidize.deploy.history import History
from oxidize.deploy.lock import lock_holder
from oxidize.deploy.releases import Release, Releases
from oxidize.deploy.retention import left_behind, release_before
from oxidize.terminal.table import print_lines, table
from oxidize.terminal.units import milliseconds

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
    if rows:
        print_lines(table(RELEASE_HEADINGS, rows))
    else:
        echo("no release is installed: `sudo make install` makes one")
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
        print_lines(table(DEPLOYMENT_HEADINGS, [_deployment_row(each) for each in deployments]))


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
