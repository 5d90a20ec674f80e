"""Which release a rollback goes to, and which releases are kept.

The rule: to go back is to go to what served before, and then further back: never to a release that was left because it
was bad, unless it is deployed anew. Told from the log of deployments; where that says nothing, by age.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile

from oxidize.deploy.history import DEPLOY, FAILED, LOST, ROLLBACK, ROLLED_BACK, SUCCESS, Deployment
from oxidize.deploy.releases import Release

KEPT = 3  # besides the one that runs
BAD_RESULTS = frozenset({FAILED, ROLLED_BACK, LOST})  # whose target is not gone back to


def release_before(running: str, releases: Sequence[Release], entries: Iterable[Deployment]) -> Release | None:
    """Return the release that a rollback from `running` goes to; None where there is none.

    releases: those installed, newest first. entries: of the log, oldest first.
    """
    before = _way_back(running, releases, entries)
    return before[0] if before else None


def left_behind(entries: Iterable[Deployment]) -> Collection[str]:
    """Return the names of what was left because it was bad, and is never gone back to."""
    return _replay(entries)[1]


def removable(
    running: str, in_use: Collection[str], releases: Sequence[Release], entries: Iterable[Deployment]
) -> list[Release]:
    """Return the releases that go: all but KEPT that one may go back to, and those that are in use.

    in_use: names besides `running`. What was left because it was bad goes first; what was built since the one that runs
    and never served is still to be shipped, and stays.
    """
    entries = list(entries)
    back = _way_back(running, releases, entries)
    newer = {release.name for release in takewhile(lambda release: release.name != running, releases)}
    spared = {running, *in_use, *newer.difference(left_behind(entries), _served(entries))}
    others = [release for release in releases if release not in back]
    kept = [release for release in (*back, *others) if release.name not in spared][:KEPT]
    return [release for release in releases if release not in kept and release.name not in spared]


def _way_back(running: str, releases: Sequence[Release], entries: Iterable[Deployment]) -> list[Release]:
    """Return the releases that one goes back to, one after the other."""
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
    """Return the names of what has ever served."""
    return {name for entry in entries if entry.result == SUCCESS for name in (entry.source, entry.target)}


def _replay(entries: Iterable[Deployment]) -> tuple[list[str], set[str]]:
    """Return the names of what has served, one upon the other, and those that were left because they were bad."""
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
                stack.clear()  # further back than what is known to have served
            _cut_or_push(stack, entry.target)
        elif entry.result in BAD_RESULTS:
            left.add(entry.target)
    return stack, left


def _cut_or_push(stack: list[str], name: str) -> None:
    """Make this the top: by going back to it, or as a new one that was switched to by hand."""
    if name in stack:
        del stack[stack.index(name) + 1 :]
    else:
        stack.append(name)
