"""Roll back to a previous release, whatever is running now; and repair what a killed deployment has left.

The rule: `current` changes first, because a process that crashes is started again from there; then takeovers are tried
until the release serves. The kernel is asked which release serves: a release that is being rolled back need not answer,
and no answer of its ends the rollback.

The rule of a repair: the release that serves is right, and `current` is made to lead to it; but a rollback that was
interrupted is completed. Nothing is guessed: a reload that is under way is waited for. A problem that cannot be
repaired is reported and does not stop the next deployment, whose release may be the one that fixes it.
"""

from oxidize.deploy import history
from oxidize.deploy.history import Deployment, History, PendingDeployment
from oxidize.deploy.progress import Progress, Step, StepResult
from oxidize.deploy.releases import Release, Releases
from oxidize.deploy.server import Clock, Server, Serving
from oxidize.deploy.vitals import Vitals
from oxidize.errors import DeployError, OxidizeError

ROLL_BACK_SECS = 60.0  # a release that hangs is killed by the watchdog before that
RELOAD_SECS = 95.0  # more than TimeoutStartSec= of the unit
RETRY_SECS = 0.25


class Rollback:
    """Makes a given release serve. has_switched: whether another process was reloaded on the way."""

    def __init__(self, releases: Releases, server: Server, clock: Clock) -> None:
        self.has_switched = False
        self._releases = releases
        self._server = server
        self._clock = clock

    def to(self, release: Release, *, needs_answer: bool) -> Vitals | None:
        """Make a release serve; raises DeployError if it does not within ROLL_BACK_SECS.

        needs_answer: the server must also answer that it is ready. The answer is returned, None if there is none.
        """
        has_waited, problem = False, "no server is running"
        deadline = self._clock.now() + ROLL_BACK_SECS
        while self._clock.now() < deadline:
            try:
                if self._releases.current() != release:
                    self._releases.point_current_at(release)
                if not has_waited:
                    self.wait_for_reload()
                    has_waited, deadline = True, self._clock.now() + ROLL_BACK_SECS
                serving = self._server.serving()
                if serving is not None and serving.folder == str(release.folder):
                    return self._answer(needs_answer=needs_answer)
                if serving is not None:
                    problem = self._reload(release, serving)
            except Exception as error:  # noqa: BLE001 - whatever a bad release causes, the next attempt may succeed
                problem = str(error) or type(error).__name__
            self._clock.sleep(RETRY_SECS)
        raise DeployError(problem)

    def wait_for_reload(self) -> None:
        """Wait until no reload is under way, for RELOAD_SECS at most.

        Such a reload may still replace the process by the release that `current` led to.
        """
        deadline = self._clock.now() + RELOAD_SECS
        while self._server.is_reloading() and self._clock.now() < deadline:
            self._clock.sleep(RETRY_SECS)

    def _answer(self, *, needs_answer: bool) -> Vitals | None:
        try:
            vitals = self._server.vitals()
            unready = self._server.unready(vitals) if vitals is not None else "no server answers"
        except OxidizeError as error:
            vitals, unready = None, str(error)
        if needs_answer and unready:
            raise DeployError(unready)
        return vitals

    def _reload(self, release: Release, serving: Serving) -> str:
        """Replace the serving process; return what is wrong if it still serves."""
        self.has_switched = True
        self._server.reload(release.program)
        return f"{serving.folder or f'pid {serving.pid}'} still serves after a reload"


def repair(releases: Releases, past: History, server: Server, clock: Clock, progress: Progress) -> None:
    """Repair what a killed deployment has left, if there is anything. The caller holds the lock.

    Raises OxidizeError if the serving process cannot be found out, or the history cannot be written.
    """
    for name in releases.remove_remains():
        progress.note(f"removed {name}: its build was interrupted")
    under_way = past.under_way()
    if under_way is None:
        return
    progress.begin(Step.REPAIR)
    began = clock.now()
    result, text = _repair(under_way, releases, server, Rollback(releases, server, clock))
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
    told = f"the {what} by {under_way.who} was interrupted at the step {under_way.step}: {text}"
    progress.end(StepResult(Step.REPAIR, result != history.LOST, told, clock.now() - began))


def _repair(under_way: PendingDeployment, releases: Releases, server: Server, rollback: Rollback) -> tuple[str, str]:
    """Return how the deployment has ended, and what was done."""
    rollback.wait_for_reload()
    serving = server.serving()
    running = releases.of_process(serving.folder) if serving is not None else None
    current = releases.current()
    source = next((release for release in releases.all() if release.name == under_way.source), None)
    is_target = running is not None and running.name == under_way.target
    if under_way.step == Step.ROLL_BACK.value and source is not None and (is_target or serving is None):
        if serving is None and not server.is_expected():  # it was stopped
            releases.point_current_at(source)
            return history.ROLLED_BACK, f"no server is running; current leads to {source.name} again"
        try:
            rollback.to(source, needs_answer=False)
        except OxidizeError as error:
            return history.LOST, f"the rollback to {source.name} failed: {error}"
        return history.ROLLED_BACK, f"{source.name} serves again"
    if running is not None and running != current:
        releases.point_current_at(running)
        return history.INTERRUPTED, f"{running.name} serves, and current leads to it again"
    if running is not None:
        doubt = "; it was not watched: `oxidize rollback` goes back" if is_target else ", nothing was switched"
        return history.INTERRUPTED, f"{running.name} serves{doubt}"
    if serving is not None:
        return history.INTERRUPTED, f"pid {serving.pid} serves, but runs from none of the releases"
    if source is not None and current is not None and current.name == under_way.target:
        releases.point_current_at(source)
        return history.INTERRUPTED, f"no server is running; current leads to {source.name} again"
    return history.INTERRUPTED, "no server is running, nothing was switched"
