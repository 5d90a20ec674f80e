"""One deployment from its beginning to its end.

The rule: before the switch nothing is changed; from the switch on, everything that goes wrong ends with the release
before serving, by takeover. What is about to be done is in the history before it is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oxidize.deploy import history, retention
from oxidize.deploy.commands import Commands, Owner
from oxidize.deploy.history import Deployment, History, UnderWay
from oxidize.deploy.interrupts import Interrupts
from oxidize.deploy.progress import Done, Progress, Step
from oxidize.deploy.releases import Release, Releases, is_in_use
from oxidize.deploy.server import Clock, Server
from oxidize.deploy.verdict import STALL_SECS, Baseline, Judge, Observation, missing_sessions
from oxidize.deploy.vitals import Vitals
from oxidize.errors import DeployError, OxidizeError
from oxidize.text import counted

SETTLE_SECS = 10.0
SAMPLE_SECS = 0.5
BASELINE_SECS = 2.0
ROLL_BACK_SECS = 60.0  # a release that hangs is ended by the watchdog first
RETRY_SECS = 0.25
RELOAD_SECS = 95.0  # more than TimeoutStartSec= of the unit
COME_UP_SECS = 12.0  # for a server that crashes again and again: more than it waits in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator chose. forced: go on although sessions would be lost."""

    who: str
    settle_secs: float = SETTLE_SECS
    forced: bool = False
    minds_traffic: bool = True


@dataclass(frozen=True, slots=True)
class _Before:
    """What served before the switch."""

    release: Release
    baseline: Baseline
    peers: Sequence[Any]


class Deployer:
    """Replaces the release that runs, and writes down what came of it. The caller holds the lock."""

    def __init__(
        self,
        releases: Releases,
        history: History,
        server: Server,
        commands: Commands,
        progress: Progress,
        options: Options,
        clock: Clock,
        interrupts: Interrupts,
    ) -> None:
        self._releases = releases
        self._history = history
        self._server = server
        self._commands = commands
        self._progress = progress
        self._options = options
        self._clock = clock
        self._interrupts = interrupts
        self._began = clock.now()
        self._action = ""
        self._source = self._target = ""
        self._has_served = False

    def deploy(self, name: str | None) -> Deployment:
        """Ship the release of that name, or with None one that is built now."""

        def choose(_: Release) -> Release:
            if name is not None:
                return self._releases.find(name)
            built: Release = self._step(Step.BUILD, self._commands.build, lambda release: str(release.name))
            return built

        return self._run(history.DEPLOY, choose)

    def rollback(self) -> Deployment:
        """Go back to the release that served before the one that runs."""

        def choose(running: Release) -> Release:
            found = retention.release_before(running.name, self._releases.all(), self._history.entries())
            if found is None:
                raise DeployError(f"no release is left that served before {running.name}; `oxidize releases` lists all")
            return found

        return self._run(history.ROLLBACK, choose)

    # --- The way forward ---

    def _run(self, action: str, choose: Callable[[Release], Release]) -> Deployment:
        self._action = action
        try:
            entry = self._prepare_and_switch(choose)
        except OxidizeError as error:
            entry = self._entry(history.REFUSED, str(error))
        except KeyboardInterrupt:
            entry = self._entry(history.REFUSED, "interrupted before anything was switched")
        with self._interrupts.ignored():
            try:
                self._history.append(entry)
            except DeployError as error:  # what serves is as it is
                self._progress.note(f"not written down: {error}")
            if action == history.DEPLOY:
                self._tidy()
        return entry

    def _prepare_and_switch(self, choose: Callable[[Release], Release]) -> Deployment:
        vitals = self._server.vitals()
        source = self._running(vitals)
        self._source = source.name
        target = choose(source)
        self._target = target.name
        if target == source and vitals is not None:
            return self._entry(history.SUCCESS, f"{target.name} serves already: nothing was done", vitals)
        owner = self._server.owner()
        self._step(Step.CHECK, lambda: self._commands.check(target, owner))
        if vitals is None:
            return self._place(target)
        try:
            self._step(Step.REHEARSAL, lambda: self._rehearse(target, owner))
            before = self._step(Step.TRAFFIC, lambda: self._measure(source), lambda before: _flowing(before.baseline))
        except OxidizeError:
            # What one goes back from may be down as often as it is up.
            if self._action == history.ROLLBACK and self._look() is None:
                return self._place(target)
            raise
        return self._replace(before, target)

    def _running(self, vitals: Vitals | None) -> Release:
        if vitals is None:
            current = self._releases.current()
            if current is None:
                raise DeployError(
                    f"nothing runs, and {self._releases.prefix}/current leads to no release; `sudo make install`"
                )
            return current
        running = self._releases.of_process(vitals.release_folder)
        if running is None:
            raise DeployError(
                f"pid {vitals.pid} runs from {vitals.release_folder}; expected a release below "
                f"{self._releases.prefix}/releases, to which one could go back: `sudo make install`, then "
                "`systemctl reload oxidize-daemon`, once"
            )
        return running

    def _rehearse(self, target: Release, owner: Owner) -> str:
        found = self._commands.rehearse(target, owner)
        refused = "; ".join(f"{number} {reason}" for reason, number in found.refused.items())
        text = f"{found.sessions} of {counted(found.now, 'session')}" + (f" ({refused})" if refused else "")
        if found.sessions < found.now:
            if not self._options.forced:
                raise DeployError(f"it would keep {text}; --force goes on all the same")
            self._progress.note(f"it keeps {text}: forced")
        return text

    def _measure(self, source: Release) -> _Before:
        seen = [self._sample()]
        while seen[-1].at - seen[0].at < BASELINE_SECS:
            self._clock.sleep(SAMPLE_SECS)
            seen.append(self._sample())
        return _Before(source, Baseline(tuple(seen)), self._server.peers())

    def _sample(self) -> Vitals:
        vitals = self._server.vitals()
        if vitals is None:
            raise DeployError("nobody serves any more: the process has ended, or is being replaced by somebody else")
        return vitals

    def _place(self, target: Release) -> Deployment:
        """Make a release the one that the next start runs: nothing runs that could be replaced."""
        self._step(Step.SWITCH, lambda: self._releases.point_current_at(target), lambda _: f"current -> {target.name}")
        deadline = self._clock.now() + (COME_UP_SECS if self._action == history.ROLLBACK else 0.0)
        while self._clock.now() < deadline:
            vitals = self._look()
            if vitals is not None and vitals.release_folder == str(target.folder):
                return self._entry(history.SUCCESS, "nothing ran before; it serves now", vitals)
            self._clock.sleep(SAMPLE_SECS)
        self._progress.note("nothing runs: start it with `systemctl start oxidize-daemon`")
        return self._entry(history.SUCCESS, "nothing ran, and nothing runs")

    def _replace(self, before: _Before, target: Release) -> Deployment:
        try:
            self._step(Step.SWITCH, lambda: self._switch(target), lambda vitals: _switched(before, vitals))
            vitals = self._step(Step.WATCH, lambda: self._watch(before, target), _watched)
        except OxidizeError as error:
            return self._go_back(before, str(error))
        except KeyboardInterrupt:
            return self._go_back(before, "interrupted")
        except Exception as error:  # noqa: BLE001 - whatever it is, what served before is to serve again
            return self._go_back(before, f"{type(error).__name__}: {error}; this is a bug of the deployment")
        return self._entry(history.SUCCESS, "", vitals)

    def _switch(self, target: Release) -> Vitals:
        with self._interrupts.deferred():
            self._releases.point_current_at(target)
            self._server.reload(target.program)
            self._has_served = True
        return self._sample()

    def _watch(self, before: _Before, target: Release) -> Vitals:
        options = self._options
        judge = Judge(
            before.baseline,
            str(target.folder),
            stall_secs=min(STALL_SECS, options.settle_secs / 2),
            minds_traffic=options.minds_traffic,
        )
        began = self._clock.now()
        self._check_sessions(before)
        while True:
            vitals = self._judge(judge)
            passed = self._clock.now() - began
            self._progress.show(f"{passed:.0f} of {options.settle_secs:.0f} s")
            if passed >= options.settle_secs:
                self._check_sessions(before)
                return vitals
            self._clock.sleep(SAMPLE_SECS)

    def _judge(self, judge: Judge) -> Vitals:
        vitals = self._server.vitals()
        unready = self._server.unready(vitals) if vitals is not None else ""
        reasons = judge.judge(Observation(vitals, unready, self._server.main_pid()))
        if reasons or vitals is None:
            raise DeployError("\n".join(reasons))
        return vitals

    def _check_sessions(self, before: _Before) -> None:
        missing = missing_sessions(
            before.peers, self._server.peers(), self._clock.unix(), may_leave=self._options.forced
        )
        if missing and not self._options.forced:
            raise DeployError(
                f"{counted(len(missing), 'session')} lost: {', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
            )

    # --- The way back ---

    def _go_back(self, before: _Before, reason: str) -> Deployment:
        """Let the release before serve again, by takeover; where it still serves, only `current` changes."""
        source = before.release
        with self._interrupts.ignored():
            try:
                vitals = self._step(
                    Step.ROLL_BACK, lambda: self._return_to(source), lambda vitals: _back(source, vitals)
                )
            except OxidizeError as error:
                return self._entry(history.LOST, f"{reason}\nand could not go back to {source.name}: {error}")
            missing = self._missing_after(before)
        if missing:
            reason += f"\n{counted(len(missing), 'session')} lost on the way"
        return self._entry(history.ROLLED_BACK if self._has_served else history.FAILED, reason, vitals)

    def _return_to(self, source: Release) -> Vitals:
        return return_to(source, self._releases, self._server, self._clock, self._note_target)

    def _note_target(self, vitals: Vitals) -> None:
        self._has_served |= vitals.release_folder.endswith(f"/{self._target}")

    def _missing_after(self, before: _Before) -> list[str]:
        try:
            return missing_sessions(before.peers, self._server.peers(), self._clock.unix(), may_leave=True)
        except OxidizeError:
            return []

    # --- Besides ---

    def _look(self) -> Vitals | None:
        try:
            return self._server.vitals()
        except OxidizeError:
            return None

    def _tidy(self) -> None:
        """Remove the releases that nobody goes back to; what cannot be is left for the next time."""
        vitals = self._look()
        current = self._releases.current()
        running = self._releases.of_process(vitals.release_folder) if vitals is not None else current
        if running is None or current is None:
            return
        releases = self._releases.all()
        in_use = {current.name, *(release.name for release in releases if is_in_use(release.folder))}
        gone = retention.removable(running.name, in_use, releases, self._history.entries())
        for release in gone:
            self._releases.remove(release)
        if gone:
            names = ", ".join(release.name for release in gone)
            self._progress.end(Done(Step.TIDY, True, f"removed {names}", 0.0))

    def _step(self, step: Step, work: Callable[[], Any], text: Callable[[Any], str] = str) -> Any:
        """Do one step, and tell of it before and afterwards; `text` makes a line of what it returns."""
        try:
            self._note_step(step)
        except DeployError as error:
            if step not in {Step.WATCH, Step.ROLL_BACK}:
                raise
            self._progress.note(f"not written down: {error}")  # to go on matters more by now
        self._progress.begin(step)
        began = self._clock.now()
        try:
            result = work()
        except (OxidizeError, KeyboardInterrupt) as error:
            said = str(error) or "interrupted"
            self._progress.end(Done(step, False, said, self._clock.now() - began))
            raise
        self._progress.end(Done(step, True, text(result), self._clock.now() - began))
        return result

    def _note_step(self, step: Step) -> None:
        self._history.begin(
            UnderWay(
                at_unix=self._clock.unix(),
                who=self._options.who,
                action=self._action,
                source=self._source,
                target=self._target,
                step=step.value,
            )
        )

    def _entry(self, result: str, reason: str, vitals: Vitals | None = None) -> Deployment:
        return Deployment(
            at_unix=self._clock.unix(),
            who=self._options.who,
            action=self._action,
            source=self._source,
            target=self._target,
            result=result,
            reason=reason,
            sessions=vitals.sessions if vitals is not None else None,
            blackout_ms=vitals.blackout_ms if vitals is not None else None,
            seconds=round(self._clock.now() - self._began, 3),
        )


def return_to(
    source: Release,
    releases: Releases,
    server: Server,
    clock: Clock,
    note: Callable[[Vitals], None] | None = None,
) -> Vitals:
    """Let a release serve that served before; raises DeployError if it does not within ROLL_BACK_SECS.

    A reload that is under way is waited for: it may still replace the process by what `current` led to.
    A process that crashes meanwhile is started anew by the service manager, from where `current` leads to.
    note: is shown what else serves on the way.
    """
    releases.point_current_at(source)
    wait_for_reload(server, clock)
    deadline, problem = clock.now() + ROLL_BACK_SECS, "nobody serves"
    while clock.now() < deadline:
        try:
            vitals = server.vitals()
            if vitals is not None:
                is_back = vitals.release_folder == str(source.folder)
                if is_back and not server.unready(vitals):
                    return vitals
                if note is not None:
                    note(vitals)
                if not is_back:
                    server.reload(source.program)
                    problem = f"{vitals.release_folder} goes on serving, whatever is reloaded"
        except OxidizeError as error:
            problem = str(error)
        clock.sleep(RETRY_SECS)
    raise DeployError(problem)


def wait_for_reload(server: Server, clock: Clock) -> None:
    """Wait until nothing is being replaced; raises DeployError if that lasts for more than RELOAD_SECS."""
    deadline = clock.now() + RELOAD_SECS
    while server.is_reloading():
        if clock.now() >= deadline:
            raise DeployError("the service is being reloaded for too long; look at `systemctl status oxidize-daemon`")
        clock.sleep(RETRY_SECS)


def _flowing(baseline: Baseline) -> str:
    whole, sessions = baseline.whole, counted(baseline.last.sessions, "session")
    return f"{whole.received:,.0f} packets/s received, {whole.sent:,.0f} sent, {sessions}"


def _switched(before: _Before, vitals: Vitals) -> str:
    blackout = f", blackout {vitals.blackout_ms:.1f} ms" if vitals.blackout_ms is not None else ""
    return f"generation {before.baseline.last.generation} -> {vitals.generation}, pid {vitals.pid}{blackout}"


def _watched(vitals: Vitals) -> str:
    return f"{counted(vitals.sessions, 'session')}, nothing speaks against it"


def _back(source: Release, vitals: Vitals) -> str:
    return (
        f"{source.name} serves: generation {vitals.generation}, pid {vitals.pid}, {counted(vitals.sessions, 'session')}"
    )
