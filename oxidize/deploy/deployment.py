"""One deployment from its beginning to its end.

The rule: before the switch nothing is changed; after it, every failure ends with the previous release serving, by
takeover, whatever the new release answers. Each step is written to the history before it is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from oxidize.deploy import SETTLE_SECS, history, retention
from oxidize.deploy.commands import Commands, Owner
from oxidize.deploy.health_check import (
    STALL_SECS,
    Baseline,
    HealthCheck,
    Observation,
    Peers,
    missing_sessions,
    silenced_peers,
)
from oxidize.deploy.history import Deployment, History, PendingDeployment
from oxidize.deploy.interrupts import Interrupts
from oxidize.deploy.package import unpack
from oxidize.deploy.progress import Progress, Step, StepResult
from oxidize.deploy.releases import Release, Releases, is_in_use
from oxidize.deploy.rollback import Rollback
from oxidize.deploy.server import Clock, Server
from oxidize.deploy.vitals import Vitals
from oxidize.errors import DeployError, OxidizeError
from oxidize.text import counted

SAMPLE_SECS = 0.5
BASELINE_SECS = 2.0
MEASURE_SECS_MAX = 20.0  # by this process's clock, because the server's may be wrong

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """The operator's options. forced: continue even if sessions would be lost. check_traffic: see HealthCheck."""

    who: str
    settle_secs: float = SETTLE_SECS
    forced: bool = False
    check_traffic: bool = True


@dataclass(frozen=True, slots=True)
class _Before:
    """The server before the switch. baseline: None if it did not answer.

    peers: of its status, at the beginning and the end of the baseline. lost_sessions: as announced by the rehearsal.
    """

    release: Release
    baseline: Baseline | None = None
    peers: tuple[Peers, Peers] = ((), ())
    lost_sessions: int = 0
    was_ready: bool = False


@dataclass
class Deployer:
    """Replaces the running release and records the outcome. The caller holds the lock."""

    releases: Releases
    history: History
    server: Server
    commands: Commands
    progress: Progress
    options: DeployOptions
    clock: Clock
    interrupts: Interrupts

    def __post_init__(self) -> None:
        self._rollback = Rollback(self.releases, self.server, self.clock)
        self._began = self.clock.now()
        self._action = self._source = self._target = ""
        self._is_recorded = False  # a step was taken, or what the next rollback finds has changed

    def deploy(self, name: str | None) -> Deployment:
        """Deploy the release of that name, or with None one that is built now."""

        def choose() -> Release:
            if name is not None:
                return self.releases.find(name)
            return self._step(Step.BUILD, self.commands.build, lambda release: release.name)

        return self._run(history.DEPLOY, choose)

    def deploy_package(self, file: Path) -> Deployment:
        """Deploy the release in a package."""

        def choose() -> Release:
            return self._step(Step.UNPACK, lambda: unpack(file, self.releases), lambda release: release.name)

        return self._run(history.DEPLOY, choose)

    def rollback(self) -> Deployment:
        """Roll back to the release that served before the running one."""

        def choose() -> Release:
            running = self._running().name
            found = retention.release_before(running, self.releases.all(), self.history.entries())
            if found is None:
                raise DeployError(f"no release is left that served before {running}; `oxidize releases` lists all")
            return found

        return self._run(history.ROLLBACK, choose)

    # --- Up to the switch ---

    def _run(self, action: str, choose: Callable[[], Release]) -> Deployment:
        self._action = action
        try:
            entry = self._prepare_and_switch(choose)
        except OxidizeError as error:
            entry = self._entry(history.REFUSED, str(error))
        except KeyboardInterrupt:
            entry = self._entry(history.REFUSED, "interrupted before anything was switched")
        except Exception as error:  # noqa: BLE001 - a bug of the deployment before the switch: nothing is switched
            entry = self._entry(history.REFUSED, f"{type(error).__name__}: {error}; this is a bug of the deployment")
        self.interrupts.ignore()
        if self._is_recorded:  # else nothing was attempted: a name without a release, or the release that serves
            try:
                self.history.append(entry)
            except DeployError as error:  # the outcome does not change
                self.progress.note(f"not written down: {error}")
        if action == history.DEPLOY:
            self._tidy()
        return entry

    def _prepare_and_switch(self, choose: Callable[[], Release]) -> Deployment:
        target = choose()
        self._target = target.name
        source = self._running()  # the build takes a while, and another operator may have replaced it
        self._source = source.name
        serving = self.server.serving()
        if serving is not None and target == source:
            is_left = target.name in retention.left_behind(self.history.entries())
            self._is_recorded |= is_left or self.releases.current() != target
            self.releases.point_current_at(target)
            return self._entry(history.SUCCESS, f"{target.name} serves already: nothing was done")
        owner = self.server.owner()
        self._step(Step.CHECK, lambda: self.commands.check(target, owner))
        if serving is None and not self.server.is_expected():
            if unreached := self.server.unreached():
                raise DeployError(unreached)
            self.interrupts.ignore()
            return self._set_next(target)
        before = self._look_before(source, target, owner)
        # From here on an interruption is recorded, and handled where that is safe.
        self.interrupts.ignore()
        return self._replace(before, target)

    def _running(self) -> Release:
        """Return the release that serves, or the one that the next start would run if none does."""
        serving = self.server.serving()
        if serving is None:
            current = self.releases.current()
            if current is None:
                raise DeployError(
                    self.server.unreached()
                    or f"no server is running, and {self.releases.prefix}/current leads to no release; "
                    "`make install` makes one"
                )
            return current
        running = self.releases.of_process(serving.folder)
        if running is None:
            raise DeployError(
                f"pid {serving.pid} runs from {serving.folder or 'an unknown folder'}; expected a release below "
                f"{self.releases.prefix}/releases, which a rollback could return to: install one, and reload once"
            )
        return running

    def _look_before(self, source: Release, target: Release, owner: Owner) -> _Before:
        """Rehearse and measure. A rollback, or --force, continues without a server that answers."""
        must_answer = self._action == history.DEPLOY and not self.options.forced
        try:
            if must_answer and (unready := self.server.unready(self._vitals())):
                raise DeployError(
                    f"the server is not ready ({unready}); expected one that is neither starting nor draining"
                )
            _, lost = self._step(Step.REHEARSAL, lambda: self._rehearse(target, owner), lambda found: found[0])
            return self._step(Step.TRAFFIC, lambda: self._measure(source, lost), _traffic_text)
        except _FewerSessionsError:
            raise
        except OxidizeError as error:
            if must_answer:
                raise
            self.progress.note(f"the running server could not be measured: {error}")
            return _Before(source)

    def _rehearse(self, target: Release, owner: Owner) -> tuple[str, int]:
        """Return the outcome for the operator, and how many sessions may be lost."""
        try:
            found = self.commands.rehearse(target, owner)
        except DeployError as error:
            if not self.options.forced:
                raise
            self.progress.note(f"not rehearsed: {error}: forced")
            return "none: forced", len(self.server.peers())
        refused = "; ".join(f"{number} {reason}" for reason, number in found.refused.items())
        text = f"{found.sessions} of {counted(found.now, 'session')}" + (f" ({refused})" if refused else "")
        if found.sessions < found.now:
            if not self.options.forced:
                raise _FewerSessionsError(f"it would keep {text}; --force continues anyway")
            self.progress.note(f"it keeps {text}: forced")
        return text, max(found.now - found.sessions, 0)

    def _measure(self, source: Release, lost_sessions: int) -> _Before:
        began, peers = self.clock.now(), self.server.peers()
        seen = [self._vitals()]
        while seen[-1].at - seen[0].at < BASELINE_SECS:
            if self.clock.now() - began > MEASURE_SECS_MAX:
                raise DeployError("the server's clock has stopped; expected it to advance")
            self.clock.sleep(SAMPLE_SECS)
            seen.append(self._vitals())
        if self._running() != source:
            raise DeployError(f"{source.name} was replaced by another operator during the measurement; try again")
        was_ready = not self.server.unready(seen[-1])
        return _Before(source, Baseline(tuple(seen)), (peers, self.server.peers()), lost_sessions, was_ready)

    def _vitals(self) -> Vitals:
        vitals = self.server.vitals()
        if vitals is None:
            unknown = "the server does not answer: it has ended, is starting, or hangs"
            raise DeployError(self.server.unreached() or unknown)
        return vitals

    def _set_next(self, target: Release) -> Deployment:
        """Make a release the one that the next start runs, because no server is running that could be replaced."""
        self._step(Step.SWITCH, lambda: self.releases.point_current_at(target), lambda _: f"current -> {target.name}")
        self.progress.note("no server is running: the next start runs this release")
        return self._entry(history.SUCCESS, "no server was running")

    # --- After the switch ---

    def _replace(self, before: _Before, target: Release) -> Deployment:
        try:
            first = self._step(
                Step.SWITCH, lambda: self._switch(before, target), lambda vitals: _switch_text(before, vitals)
            )
            vitals = self._step(Step.WATCH, lambda: self._watch(before, target, first), _watch_text)
        except OxidizeError as error:
            return self._roll_back(before, str(error))
        except KeyboardInterrupt:
            return self._roll_back(before, "interrupted")
        except Exception as error:  # noqa: BLE001 - whatever it is, the previous release must serve again
            return self._roll_back(before, f"{type(error).__name__}: {error}; this is a bug of the deployment")
        return self._entry(history.SUCCESS, "", vitals)

    def _switch(self, before: _Before, target: Release) -> Vitals:
        if before.baseline is None:  # a server that does not answer may crash or hang at each reload
            self._rollback.to(target, needs_answer=True)
        else:
            self.releases.point_current_at(target)
            self.server.reload(target.program)
        self._rollback.has_switched = True
        return self._vitals()

    def _watch(self, before: _Before, target: Release, first: Vitals) -> Vitals:
        options = self.options
        check = HealthCheck(
            before.baseline or Baseline((replace(first, generation=first.generation - 1),)),
            str(target.folder),
            stall_secs=min(STALL_SECS, options.settle_secs / 2),
            # The operator has a reason for a rollback, which the present traffic need not show.
            check_traffic=options.check_traffic and self._action == history.DEPLOY,
        )
        began, peers = self.clock.now(), self._check_sessions(before)
        while True:
            self.interrupts.raise_pending()
            vitals = self._observe(check)
            passed = self.clock.now() - began
            self.progress.show(f"{passed:.0f} of {options.settle_secs:.0f} s")
            if passed >= options.settle_secs and not check.is_unsettled:
                self._conclude(check, before, peers)
                return vitals
            self.clock.sleep(SAMPLE_SECS)

    def _observe(self, check: HealthCheck) -> Vitals:
        vitals = self.server.vitals()
        unready = self.server.unready(vitals) if vitals is not None else ""
        reasons = check.observe(Observation(self.server.serving(), vitals, unready, self.server.main_pid()))
        if reasons or vitals is None:
            raise DeployError("\n".join(reasons))
        return vitals

    def _conclude(self, check: HealthCheck, before: _Before, peers: Peers) -> None:
        reasons = check.conclude()
        silenced = silenced_peers(before.peers, (peers, self._check_sessions(before)))
        if silenced and self.options.check_traffic and self._action == history.DEPLOY:
            reasons.append(silenced)
        if reasons:
            raise DeployError("\n".join(reasons))

    def _check_sessions(self, before: _Before) -> Peers:
        peers = self.server.peers()
        missing = missing_sessions(before.peers[1], peers, self.clock.unix())
        if len(missing) > before.lost_sessions:
            names = f"{', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
            raise DeployError(f"{counted(len(missing), 'session')} lost: {names}")
        return peers

    # --- Rollback ---

    def _roll_back(self, before: _Before, reason: str) -> Deployment:
        """Make the previous release serve again, by takeover; if it still serves, only `current` changes."""
        source = before.release
        try:
            vitals = self._step(
                Step.ROLL_BACK,
                lambda: self._rollback.to(source, needs_answer=before.was_ready),
                lambda vitals: _rollback_text(source, vitals),
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the outcome is reported
            return self._entry(history.LOST, f"{reason}\nand the rollback to {source.name} failed: {error}")
        missing = self._missing_after(before)
        if len(missing) > before.lost_sessions:
            reason += f"\n{counted(len(missing), 'session')} lost during the rollback"
        if not self._rollback.has_switched:
            return self._entry(history.FAILED, reason)
        return self._entry(history.ROLLED_BACK, reason, vitals)

    def _missing_after(self, before: _Before) -> list[str]:
        try:
            return missing_sessions(before.peers[1], self.server.peers(), self.clock.unix())
        except OxidizeError:
            return []

    # --- Tidying and history ---

    def _tidy(self) -> None:
        """Remove the releases that are no longer a rollback target; the next deployment retries what fails."""
        current = self.releases.current()
        try:
            running = self._running()
        except OxidizeError:
            return
        releases = self.releases.all()
        in_use = {release.name for release in releases if release == current or is_in_use(release.folder)}
        gone = retention.removable(running.name, in_use, releases, self.history.entries())
        try:
            for release in gone:
                self.releases.remove(release)
        except OSError as error:
            self.progress.note(f"{error.filename}: {error.strerror}: not removed; the next deployment tries again")
            return
        if gone:
            names = ", ".join(release.name for release in gone)
            self.progress.end(StepResult(Step.TIDY, True, f"removed {names}", 0.0))

    def _step(self, step: Step, work: Callable[[], _Result], text: Callable[[_Result], str] = str) -> _Result:
        """Take one step, and record its begin and its end. text: formats what the step returns."""
        self._is_recorded = True
        try:
            self.history.begin(
                PendingDeployment(
                    at_unix=self.clock.unix(),
                    who=self.options.who,
                    action=self._action,
                    source=self._source,
                    target=self._target,
                    step=step.value,
                )
            )
        except DeployError as error:
            if step not in {Step.WATCH, Step.ROLL_BACK}:
                raise
            self.progress.note(f"not written down: {error}")  # to continue is more important now
        self.progress.begin(step)
        began = self.clock.now()
        try:
            result = work()
        except (OxidizeError, KeyboardInterrupt) as error:
            reason = str(error) or "interrupted"
            self.progress.end(StepResult(step, False, reason, self.clock.now() - began))
            raise
        self.progress.end(StepResult(step, True, text(result), self.clock.now() - began))
        return result

    def _entry(self, result: str, reason: str, vitals: Vitals | None = None) -> Deployment:
        """Return the line for the log. vitals: of the generation that this deployment made."""
        return Deployment(
            at_unix=self.clock.unix(),
            who=self.options.who,
            action=self._action,
            source=self._source,
            target=self._target,
            result=result,
            reason=reason,
            sessions=vitals.sessions if vitals is not None else None,
            blackout_ms=vitals.blackout_ms if vitals is not None else None,
            seconds=round(self.clock.now() - self._began, 3),
        )


class _FewerSessionsError(DeployError):
    """A release would keep fewer sessions, and --force is not given."""


def _traffic_text(before: _Before) -> str:
    if before.baseline is None:
        return ""
    whole, sessions = before.baseline.whole, counted(before.baseline.last.sessions, "session")
    return f"{whole.received:,.0f} packets/s received, {whole.sent:,.0f} sent, {sessions}"


def _switch_text(before: _Before, vitals: Vitals) -> str:
    blackout = f", blackout {vitals.blackout_ms:.1f} ms" if vitals.blackout_ms is not None else ""
    was = f"{before.baseline.last.generation} -> " if before.baseline is not None else ""
    return f"generation {was}{vitals.generation}, pid {vitals.pid}{blackout}"


def _watch_text(vitals: Vitals) -> str:
    return f"{counted(vitals.sessions, 'session')}, no problems found"


def _rollback_text(source: Release, vitals: Vitals | None) -> str:
    if vitals is None:
        return f"{source.name} serves"
    how = f"generation {vitals.generation}, pid {vitals.pid}, {counted(vitals.sessions, 'session')}"
    return f"{source.name} serves: {how}"
