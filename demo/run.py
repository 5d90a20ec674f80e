"""One run of the demonstration: the holder, the server, the clients, and the actions on the server.

Rule: `close` leaves no process, file or socket behind, also after an error. The loop never waits for the server:
commands and restarts run in the holder, and the loop polls their results.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from demo.broken import make_broken_release
from demo.fleet import FleetProcess
from demo.plan import Step, choose_burst, plan, read_answer
from demo.screen import REFRESH_PER_SECOND, View
from demo.verdict import GAP_AFTER_SECS, Action, Judged, Replacement, Tally, Verdict, judge, silence_ms
from demo.workspace import Workspace
from oxidize.clock import boot_time
from oxidize.control.query import fetch
from oxidize.errors import StateError
from oxidize.holder.holder import Holder

READY_TIMEOUT_SECS = 30.0
COMMAND_TIMEOUT_SECS = 60.0
RESTART_TIMEOUT_SECS = 30.0
OVERTIME_SECS = 60.0  # limit for the extra time that the clients send while commands take longer than planned
STOP_TIMEOUT_SECS = 3.0
TURN_SECS = 0.02
RATE_WINDOW_SECS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """The operator's options; rate in packets per second of all clients together."""

    seconds: float = 20.0
    clients: int = 20
    rate: float = 2000.0
    reloads: int = 5


@dataclass(frozen=True, slots=True)
class _Doing:
    """A step in progress: its start, the main process before it, and the number of restarts before it."""

    action: Action
    started_at: float
    pid: int | None
    restarts: int


class Demonstration:
    """One run: call `run` once and `close` always."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tally = Tally()
        self.replacements: list[Replacement] = []
        self.steps: list[Step] = plan(options.seconds, options.reloads)
        self._workspace = Workspace()
        self._fleet: FleetProcess | None = None
        self._generation: int | None = None
        self._doing: _Doing | None = None
        self._events: list[tuple[float, Judged]] = []
        self._rates: list[tuple[float, int, int]] = []
        config = self._workspace.config_path
        self._command = [sys.executable, "-m", "oxidize"]
        self._config_arguments = ["-c", str(config)]
        self.holder = Holder([*self._command, "server", *self._config_arguments], self._workspace.directory)

    @property
    def burst(self) -> int:
        """The number of requests that each client sends at once."""
        return choose_burst(self.holder.receive_buffer_bytes, self.options.rate)

    @property
    def origin(self) -> float:
        """The start of the clients' schedule, or now if it has not started."""
        return boot_time() if self.tally.started_at is None else self.tally.started_at

    def run(self, show: Callable[[View], None]) -> Verdict:
        """Make the run and return its verdict; raises StateError if server or clients cannot be started."""
        options = self.options
        settings = self._workspace.write(
            self.holder.udp_address, self.holder.http_address, options.clients, options.rate, options.seconds
        )
        settings = replace(settings, burst=self.burst, until_told=True)
        self._broken = make_broken_release(self._workspace.directory / "broken-release")
        self.holder.start()
        self.holder.wait_ready(READY_TIMEOUT_SECS)
        self._generation = self._ask_generation()
        self._fleet = FleetProcess(settings, self._workspace.directory / "clients.log")
        self.holder.exclude(self._fleet.pid)
        pending = list(self.steps)
        next_show, told = 0.0, False
        while not self._fleet.ended:
            self.tally.add(self._fleet.read())
            self._advance(pending)
            if not told and self._is_over(pending):
                told = True
                self._fleet.finish()
            if boot_time() >= next_show:
                next_show = boot_time() + 1 / REFRESH_PER_SECOND
                show(self._view())
            time.sleep(TURN_SECS)
        while self._doing is not None:  # it began before the end of the schedule, so it counts
            self._advance([])
            time.sleep(TURN_SECS)
        show(self._view())
        if self.tally.finished_at is None:
            raise StateError(f"the clients ended early: {_tail(self._fleet.log_path)}")
        return judge(self.tally, self.replacements, options.clients, len(self.steps))

    def close(self) -> None:
        """End every process and remove every file; idempotent."""
        if self._fleet is not None:
            self._fleet.close()
        self.holder.stop(STOP_TIMEOUT_SECS)
        self.holder.close()
        self._workspace.close()

    def server_log(self) -> str:
        """Return the end of the server's log."""
        return _tail(self.holder.log_path)

    def _is_over(self, pending: Sequence[Step]) -> bool:
        """Return whether the clients may end: all steps are done, or OVERTIME_SECS have passed."""
        if self.tally.started_at is None:
            return False
        elapsed = boot_time() - self.tally.started_at - self.options.seconds
        done = not pending and self._doing is None
        return elapsed > (0 if done else OVERTIME_SECS)

    # --- Actions on the server ---

    def _advance(self, pending: list[Step]) -> None:
        if self._doing is not None:
            replacement = self._poll(self._doing)
            if replacement is not None:
                self.replacements.append(replacement)
                self._doing = None
        elif pending and self.tally.started_at is not None and boot_time() >= self.tally.started_at + pending[0].at:
            self._doing = self._begin(pending.pop(0).action)

    def _begin(self, action: Action) -> _Doing:
        doing = _Doing(action, boot_time(), self.holder.main_pid, len(self.holder.restarts))
        if action is Action.KILL:
            self.holder.kill_main()
        else:
            env = {"PYTHONPATH": str(self._broken)} if action is Action.REFUSED else {}
            self.holder.start_control([*self._command, "reload", *self._config_arguments], COMMAND_TIMEOUT_SECS, env)
        return doing

    def _poll(self, doing: _Doing) -> Replacement | None:
        """Return the result of a step, None while it is in progress."""
        if doing.action is Action.KILL:
            return self._poll_restart(doing)
        result = self.holder.control_result
        if result is None:
            return None
        answer = read_answer(result.output)
        if doing.action is Action.REFUSED:
            refused = result.status == 1 and self.holder.main_pid == doing.pid
            return Replacement(doing.action, doing.started_at, result.ended_at, refused, None, answer.line)
        moved = result.status == 0 and self.holder.main_pid not in (None, doing.pid)
        self._generation = answer.generation or self._generation
        serving_at = self.holder.ready_at if moved else None
        return Replacement(
            doing.action, doing.started_at, result.ended_at, moved, answer.blackout_ms, answer.line, serving_at
        )

    def _poll_restart(self, doing: _Doing) -> Replacement | None:
        restarts = self.holder.restarts[doing.restarts :]
        ready_at = restarts[-1].ready_at if restarts else None
        if ready_at is None:
            if self.holder.failure is None and boot_time() < doing.started_at + RESTART_TIMEOUT_SECS:
                return None
            detail = self.holder.failure or f"the new process was not ready within {RESTART_TIMEOUT_SECS:g} s"
            return Replacement(doing.action, doing.started_at, boot_time(), False, None, detail)
        stored = " and ".join(self.holder.stored_names) or "nothing"
        detail = f"{restarts[-1].reason}; restarted by the holder with {stored} from its store"
        self._generation = self._ask_generation()
        # Neither process can measure this blackout; it is the holder's figure, from the kill to READY=1.
        blackout_ms = (ready_at - doing.started_at) * 1e3
        return Replacement(doing.action, doing.started_at, ready_at, len(restarts) == 1, blackout_ms, detail, ready_at)

    def _ask_generation(self) -> int:
        return int(fetch(self._workspace.takeover_socket)["generation"])

    # --- Display ---

    def _view(self) -> View:
        now, tally = boot_time(), self.tally
        self._rates.append((now, tally.sent, tally.replies))
        while self._rates[0][0] < now - RATE_WINDOW_SECS:
            self._rates.pop(0)
        then, sent, replies = self._rates[0]
        window = max(now - then, 1e-3)
        self._judge_events(now)
        return View(
            elapsed=now - self.origin,
            seconds=self.options.seconds,
            sent_rate=(tally.sent - sent) / window,
            reply_rate=(tally.replies - replies) / window,
            sent=tally.sent,
            replies=tally.replies,
            lost=tally.overdue(now),
            duplicated=tally.duplicated,
            handshakes=tally.handshakes_total,
            generation=self._generation,
            pid=self.holder.main_pid,
            doing=self._doing.action.value if self._doing else "",
            events=tuple(self._events),
        )

    def _judge_events(self, now: float) -> None:
        """Measure the silence around each finished action once, after all replies that belong to it."""
        for replacement in self.replacements[len(self._events) :]:
            if now < replacement.ended_at + 2 * GAP_AFTER_SECS and self.tally.finished_at is None:
                return
            gap_ms = silence_ms(sorted(self.tally.received_at), replacement, self.tally.last_sent_at)
            self._events.append((replacement.started_at - self.origin, Judged(replacement, gap_ms, 0)))


def _tail(path: Path, lines: int = 20) -> str:
    try:
        text: Sequence[str] = path.read_text("utf-8", "replace").splitlines()[-lines:]
    except OSError as error:
        return str(error)
    return "\n".join(text)
