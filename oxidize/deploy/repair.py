"""Putting right what a deployment has left that was killed.

The rule: what serves is right, and `current` is made to lead to it; but a release that was being taken back, and still
serves, is. Nothing is guessed: a process that is being replaced just now is waited for. What cannot be put right is
said, and stands in nobody's way: the next release may be the one that mends it.
"""

from oxidize.deploy import history
from oxidize.deploy.history import Deployment, History, UnderWay
from oxidize.deploy.progress import Done, Progress, Step
from oxidize.deploy.releases import Releases
from oxidize.deploy.rollback import Returning
from oxidize.deploy.server import Clock, Server
from oxidize.errors import OxidizeError


def repair(releases: Releases, past: History, server: Server, clock: Clock, progress: Progress) -> None:
    """Do it, and tell of it; nothing where there is nothing to be put right. The caller holds the lock.

    Raises OxidizeError where it cannot be found out what serves, or be written down what was done.
    """
    for name in releases.remove_remains():
        progress.note(f"removed {name}, whose build was cut off")
    under_way = past.under_way()
    if under_way is None:
        return
    progress.begin(Step.REPAIR)
    began = clock.now()
    result, text = _put_right(under_way, releases, server, Returning(releases, server, clock))
    past.append(
        Deployment(
            at_unix=under_way.at_unix,
            who=under_way.who,
            action=under_way.action,
            source=under_way.source,
            target=under_way.target,
            result=result,
            reason=text,
        )
    )
    what = f"{under_way.action} to {under_way.target}" if under_way.target else under_way.action
    said = f"the {what} by {under_way.who} was interrupted at the step {under_way.step}: {text}"
    progress.end(Done(Step.REPAIR, result != history.LOST, said, clock.now() - began))


def _put_right(under_way: UnderWay, releases: Releases, server: Server, returning: Returning) -> tuple[str, str]:
    """Return how the deployment has ended, and what was done."""
    returning.wait_for_reload()
    serving = server.serving()
    running = releases.of_process(serving.folder) if serving is not None else None
    current = releases.current()
    source = next((release for release in releases.all() if release.name == under_way.source), None)
    is_target = running is not None and running.name == under_way.target
    if under_way.step == Step.ROLL_BACK.value and source is not None and (is_target or serving is None):
        if serving is None and not server.is_expected():  # somebody has stopped it
            releases.point_current_at(source)
            return history.ROLLED_BACK, f"nothing runs; current leads to {source.name} again"
        try:
            returning.to(source, needs_answer=False)
        except OxidizeError as error:
            return history.LOST, f"{source.name} was to serve again, and does not: {error}"
        return history.ROLLED_BACK, f"{source.name} serves again"
    if running is not None and running != current:
        releases.point_current_at(running)
        return history.INTERRUPTED, f"{running.name} serves, and current leads to it again"
    if running is not None:
        doubt = "; it was not watched: `oxidize rollback` goes back" if is_target else ", nothing was switched"
        return history.INTERRUPTED, f"{running.name} serves{doubt}"
    if serving is not None:
        return history.INTERRUPTED, f"pid {serving.pid} serves, which runs from none of the releases"
    if source is not None and current is not None and current.name == under_way.target:
        releases.point_current_at(source)
        return history.INTERRUPTED, f"nothing runs; current leads to {source.name} again"
    return history.INTERRUPTED, "nothing runs, nothing was switched"
