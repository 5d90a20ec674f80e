"""Putting right what a deployment has left that was killed.

The rule: what serves is right, and `current` is made to lead to it; but a release that was being taken back still is.
Nothing is guessed: a process that is being replaced just now is waited for.
"""

from oxidize.deploy import history
from oxidize.deploy.deployment import return_to, wait_for_reload
from oxidize.deploy.history import Deployment, History, UnderWay
from oxidize.deploy.progress import Step
from oxidize.deploy.releases import Release, Releases
from oxidize.deploy.server import Clock, Server
from oxidize.errors import DeployError, OxidizeError


def repair(releases: Releases, past: History, server: Server, clock: Clock) -> list[str]:
    """Return what was found and done, a line each; none where there was nothing. The caller holds the lock.

    Raises DeployError where it could not be put right.
    """
    lines = [f"removed {name}, whose build was cut off" for name in releases.remove_remains()]
    under_way = past.under_way()
    if under_way is None:
        return lines
    wait_for_reload(server, clock)
    text, serving = _put_right(under_way, releases, server, clock)
    past.append(
        Deployment(
            at_unix=under_way.at_unix,
            who=under_way.who,
            action=under_way.action,
            source=under_way.source,
            target=under_way.target,
            result=history.INTERRUPTED,
            reason=text,
        )
    )
    what = f"{under_way.action} to {under_way.target}" if under_way.target else under_way.action
    lines.append(f"the {what} by {under_way.who} was interrupted at the step {under_way.step}: {text}")
    if serving is None and releases.current() is None:
        raise DeployError(f"{releases.prefix}/current leads to no release, and nothing runs; `sudo make install`")
    return lines


def _put_right(under_way: UnderWay, releases: Releases, server: Server, clock: Clock) -> tuple[str, Release | None]:
    """Return what was done, and the release that serves."""
    by_name = {release.name: release for release in releases.all()}
    source = by_name.get(under_way.source)
    if under_way.step == Step.ROLL_BACK.value and source is not None:
        try:
            return_to(source, releases, server, clock)
        except OxidizeError as error:
            raise DeployError(
                f"{source.name} was to serve again after a failed deployment, and does not: {error}"
            ) from error
        return f"{source.name} serves again", source
    vitals = server.vitals()
    serving = releases.of_process(vitals.release_folder) if vitals is not None else None
    current = releases.current()
    if serving is not None and serving != current:
        releases.point_current_at(serving)
        return f"{serving.name} serves, and current leads to it again", serving
    if serving is not None:
        is_unwatched = serving.name == under_way.target
        doubt = "; it was not watched: `oxidize rollback` goes back" if is_unwatched else ", nothing was switched"
        return f"{serving.name} serves{doubt}", serving
    if source is not None and current is not None and current.name == under_way.target:
        releases.point_current_at(source)
        return f"nothing runs; current leads to {source.name} again", None
    return "nothing runs, nothing was switched", None
