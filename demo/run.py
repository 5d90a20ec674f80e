"""One run of the demonstration: the server, the clients, and the actions on the server.

Rule: `close` leaves no process, file or socket behind, also after an error. The loop never waits for the server: it
polls the results of commands, and asks after a kill whether the next generation serves.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo.broken import make_broken_release
from demo.fleet import FleetProcess
from demo.plan import Step, choose_burst, plan, read_answer
from demo.screen import REFRESH_PER_SECOND, View
from demo.server import TURN_SECS, HeldServer, granted_receive_buffer
from demo.verdict import GAP_AFTER_SECS, Action, Judged, Replacement, Tally, Verdict, judge, silence_ms
from demo.workspace import Workspace
from oxidize.clock import boot_time
from oxidize.errors import StateError

RESTART_TIMEOUT_SECS = 30.0
OVERTIME_SECS = 60.0  # limit for the extra time that the clients send while commands take longer than planned
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
    """A step in progress: its start, and the generation that served before it."""

    action: Action
    started_at: float
    generation: int
    pid: int


class Demonstration:
    """One run: call `start` and `run` once and `close` always. burst: requests that a client sends at once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tally = Tally()
        self.replacements: list[Replacement] = []
        self.steps: list[Step] = plan(options.seconds, options.reloads)
        self.burst = 1
        self.receive_buffer_bytes = granted_receive_buffer()
        self._workspace = Workspace()
        self._fleet: FleetProcess | None = None
        self._generation, self._pid = 0, 0
        self._doing: _Doing | None = None
        self._events: list[tuple[float, Judged]] = []
        self._rates: list[tuple[float, int, int]] = []
        place = self._workspace
        self.server = HeldServer(place.config_path, place.takeover_socket, place.directory)

    @property
    def origin(self) -> float:
        """The start of the clients' schedule, or now if it has not started."""
        return boot_time() if self.tally.started_at is None else self.tally.started_at

    def start(self) -> None:
        """Start the server; raises StateError if it cannot be started."""
        options = self.options
        self._settings = self._workspace.write(options.clients, options.rate, options.seconds)
        self._broken_python = make_broken_release(self._workspace.directory / "broken-release")
        start_secs = self.server.start()
        self.burst = choose_burst(self.receive_buffer_bytes, options.rate, start_secs)
        self._note(self.server.vitals())

    def run(self, show: Callable[[View], None]) -> Verdict:
        """Make the run and return its verdict; raises StateError if the clients end early."""
        options = self.options
        host, port = self.server.address()
        settings = replace(self._settings, server_host=host, server_port=port, burst=self.burst, until_told=True)
        self._fleet = FleetProcess(settings, self._workspace.directory / "clients.log")
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
        self._note(self.server.vitals())
        if self.tally.finished_at is None:
            raise StateError(f"the clients ended early: {_tail(self._fleet.log_path)}")
        return judge(self.tally, self.replacements, options.clients, len(self.steps))

    def close(self) -> None:
        """End every process and remove every file; idempotent."""
        if self._fleet is not None:
            self._fleet.close()
        self.server.close()
        self._workspace.close()

    def server_log(self) -> str:
        """Return the end of the server's log."""
        return _tail(self.server.log_path)

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
        doing = _Doing(action, boot_time(), self._generation, self._pid)
        if action is Action.KILL:
            os.kill(self._pid, signal.SIGKILL)  # the holder reaps it after this, so the pid is its own
        else:
            self.server.start_command(self._broken_python if action is Action.REFUSED else sys.executable, "reload")
        return doing

    def _poll(self, doing: _Doing) -> Replacement | None:
        """Return the result of a step, None while it is in progress."""
        if doing.action is Action.KILL:
            return self._poll_restart(doing)
        result = self.server.poll_command()
        if result is None:
            return None
        answer = read_answer(result.output)
        vitals = self.server.vitals()
        self._note(vitals)
        is_held = vitals is not None and self.server.is_held
        if doing.action is Action.REFUSED:
            refused = is_held and result.status == 1 and (self._generation, self._pid) == (doing.generation, doing.pid)
            return Replacement(doing.action, doing.started_at, result.ended_at, refused, None, answer.line)
        moved = is_held and result.status == 0 and self._generation == doing.generation + 1
        serving_at = _owned_at(vitals) if vitals is not None and moved else None
        return Replacement(
            doing.action, doing.started_at, result.ended_at, moved, answer.blackout_ms, answer.line, serving_at
        )

    def _poll_restart(self, doing: _Doing) -> Replacement | None:
        vitals = self.server.vitals()
        now = boot_time()
        if vitals is None:
            if self.server.is_held and now < doing.started_at + RESTART_TIMEOUT_SECS:
                return None
            end = f"serves within {RESTART_TIMEOUT_SECS:g} s" if self.server.is_held else "is left, nor its holder"
            return Replacement(doing.action, doing.started_at, now, False, None, f"no process {end}")
        if vitals["pid"] == doing.pid:
            return None  # an answer from before the kill
        self._note(vitals)
        restarted = self.server.is_held and self._generation == doing.generation + 1
        detail = f"generation {self._generation}, pid {self._pid}: started by the holder, {vitals['sessions']} sessions"
        # No generation can measure this blackout: it is the time from the kill to the first answer of the next one.
        blackout_ms = (now - doing.started_at) * 1e3
        return Replacement(doing.action, doing.started_at, now, restarted, blackout_ms, detail, now)

    def _note(self, vitals: dict[str, Any] | None) -> None:
        if vitals is not None:
            self._generation, self._pid = int(vitals["generation"]), int(vitals["pid"])

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
            pid=self._pid,
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


def _owned_at(vitals: dict[str, Any]) -> float:
    """Return when a generation that took over began to serve, in seconds of the boot clock."""
    return float(vitals["takeovers"][-1]["at_unix"]) - (time.time() - boot_time())


def _tail(path: Path, lines: int = 20) -> str:
    try:
        text: Sequence[str] = path.read_text("utf-8", "replace").splitlines()[-lines:]
    except OSError as error:
        return str(error)
    return "\n".join(text)
