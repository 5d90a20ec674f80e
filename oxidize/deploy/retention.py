"""The target of a rollback, and which releases are kept.

The rule: a rollback goes to the release that served before, and the next one further back, but never to a release that
was left because it was bad, unless it has been deployed again. Read from the log of deployments, else from the age.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile

from oxidize.deploy.history import DEPLOY, FAILED, LOST, ROLLBACK, ROLLED_BACK, SUCCESS, Deployment
from oxidize.deploy.releases import Release

KEPT = 3  # in addition to the running one
BAD_RESULTS = frozenset({FAILED, ROLLED_BACK, LOST})  # whose target is no longer a rollback target


def release_before(running: str, releases: Sequence[Release], entries: Iterable[Deployment]) -> Release | None:
    """Return the target of a rollback from `running`; None if there is none.

    releases: those installed, newest first. entries: of the log, oldest first.
    """
    before = _targets(running, releases, entries)
    return before[0] if before else None


def left_behind(entries: Iterable[Deployment]) -> Collection[str]:
    """Return the names of releases that were left because they were bad: never a rollback target."""
    return _replay(entries)[1]


def removable(
    running: str, in_use: Collection[str], releases: Sequence[Release], entries: Iterable[Deployment]
) -> list[Release]:
    """Return the releases to remove: all except KEPT rollback targets and those in use.

    in_use: names in addition to `running`. Bad releases are removed first. A release that was built after the running
    one and has never served may still be deployed, and is kept.
    """
    entries = list(entries)
    back = _targets(running, releases, entries)
    newer = {release.name for release in takewhile(lambda release: release.name != running, releases)}
    spared = {running, *in_use, *newer.difference(left_behind(entries), _served(entries))}
    others = [release for release in releases if release not in back]
    kept = [release for release in (*back, *others) if release.name not in spared][:KEPT]
    return [release for release in releases if release not in kept and release.name not in spared]


def _targets(running: str, releases: Sequence[Release], entries: Iterable[Deployment]) -> list[Release]:
    """Return the rollback targets, in the order of successive rollbacks."""
    stack, left = _replay(entries)
    _cut_or_push(stack, running)
    by_name = {release.name: release for release in releases}
    served = [by_name[name] for name in reversed(stack[:-1]) if name in by_name and name not in left]
    oldest = served[-1] if served else by_name.get(running)
    older = [
        release
        for release in releases
        if release.name not in {*stack, *left}
        and oldest is not None
        and (release.built_unix, release.name) < (oldest.built_unix, oldest.name)
    ]
    return [*served, *older]


def _served(entries: Iterable[Deployment]) -> set[str]:
    """Return the names of the releases that have ever served."""
    return {name for entry in entries if entry.result == SUCCESS for name in (entry.source, entry.target)}


def _replay(entries: Iterable[Deployment]) -> tuple[list[str], set[str]]:
    """Return a stack of the names that have served, the present one on top, and the names of bad releases."""
    stack: list[str] = []
    left: set[str] = set()
    for entry in entries:
        if not entry.source:
            continue
        _cut_or_push(stack, entry.source)
        if entry.action == DEPLOY and entry.result == SUCCESS:
            if entry.target in stack:
                stack.remove(entry.target)
            stack.append(entry.target)
            left.discard(entry.target)
        elif entry.action == ROLLBACK and entry.result == SUCCESS:
            left.add(entry.source)
            if entry.target not in stack:
                stack.clear()  # further back than the log knows
            _cut_or_push(stack, entry.target)
        elif entry.result in BAD_RESULTS:
            left.add(entry.target)
    return stack, left


def _cut_or_push(stack: list[str], name: str) -> None:
    """Make this name the top of the stack: cut back to it, or push it if it is new."""
    if name in stack:
        del stack[stack.index(name) + 1 :]
    else:
        stack.append(name)
