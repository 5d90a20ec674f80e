"""A simulated kernel: one clock, processes that run one at a time, and faults at their system calls.

The rule: everything that differs between two worlds comes from the seed. A process is a greenlet that runs the real
code of the product; it waits where that waits, and is preempted now and then at a system call. A process that dies is
never resumed, so that nothing of it runs after its death, no `finally` either. A fault happens at a system call: the
process crashes before it (or in the middle of a write), stops for a while, or gets an error.

Sources: exit(2) and pidfd_open(2): a process that ends first closes its files, and is reported dead a little later.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from random import Random
from typing import Any, NoReturn, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from oxidize.log_output import STANDARD_ERROR
from tests.support.sim.files import Epoll, File, Log, MemoryFile

START = 1000.0  # seconds since the boot
CALL_SECS = 4e-6  # virtual time of one system call
PREEMPTION_CALLS = 15  # system calls between two preemptions, on average
FDS_MAX = 1024
CALLS_MAX = 300_000  # of a world: more mean that a process spins
NEVER = float("inf")
FOREVER_CALLS = 1 << 60
TRACE_LINES_MAX = 4_000


class Violation(BaseException):
    """A promise is broken. Not an Exception: the code under test must not catch it."""


class Watcher(Protocol):
    """The model that judges what processes do."""

    def on_act(self, process: "Process", what: str) -> None:
        """Judge an effect that only the owner of the sockets and the state may have."""

    def on_message(self, sender: "Process", receiver: "Process", data: bytes, *, is_sent: bool) -> None:
        """Look at a message of the takeover protocol, or at one that could not be sent."""

    def on_datagrams(self, process: "Process", datagrams: list[bytes]) -> None:
        """Note what a process takes from the UDP socket."""

    def on_end(self, process: "Process") -> None:
        """Note the end of a process; `process.status` says how."""

    def disturb(self, secs: float = 0.0) -> None:
        """Note that something happens, for so long, that the blackout of a takeover may show."""

    def on_key(self, key: bytes) -> None:
        """Note that a process uses a key."""

    def on_seal(self, key: bytes, nonce: bytes, plaintext: bytes, sealed: bytes) -> None:
        """Judge the use of a nonce."""

    def on_opened(self, sealed: bytes) -> None:
        """Note that a process has opened a message; sealed: its end."""


class Fault:
    """Something that happens to a process at a system call: `kind` is "crash", "stop" or "error"."""

    def __init__(self, kind: str, *, secs: float = 0.0, number: int = 0, only: frozenset[str] = frozenset()) -> None:
        self.kind = kind
        self.secs = secs
        self.number = number
        self.only = only  # the calls that it waits for; empty for any

    def __str__(self) -> str:
        return {"stop": f"stop for {self.secs:g} s", "error": errno.errorcode.get(self.number, "")}.get(
            self.kind, self.kind
        )


class Process:
    """One simulated process. status: None while it lives, "killed", "crashed", or what its program returned."""

    def __init__(
        self, kernel: "Kernel", pid: int, name: str, program: Callable[[], object], environ: Mapping[str, str], uid: int
    ) -> None:
        self.kernel = kernel
        self.pid = pid
        self.name = f"{name}{pid}"
        self.uid = uid
        self.environ = dict(environ)
        self.fds: dict[int, File] = {}
        self.fds_max = FDS_MAX
        self.release: Mapping[tuple[Any, str], object] = {}
        self.context: Any = None  # the settings of a server
        self.alive = True
        self.was_told_to_end = False
        self.was_refused = False  # a system call, for want of something
        self.gone_at = NEVER
        self.kill_at = NEVER
        self.killed_by: Process | None = None
        self.alarm_at = NEVER
        self.stopped_until = 0.0
        self.ready: Callable[[], bool] | None = None
        self.deadline = NEVER
        self.status: object = None
        self.calls = 0
        self.switch_at = 0  # the number of the call at which `Kernel.enter` looks closer
        self.preempt_at = 0
        self.faults: list[tuple[int, Fault]] = []  # number of the call, descending
        self.dies_at_stores = False
        self.stores_left = FOREVER_CALLS  # stores to shared memory until it crashes
        self.handlers: dict[int, object] = {}
        self.wakeup_fd = -1
        self.greenlet = greenlet(self._main, kernel.hub)
        self._program = program
        self._preempt_later()

    def _main(self) -> None:
        try:
            self.status = self._program()
        except GreenletExit:
            return
        except SystemExit as error:
            self.status = error.code
        except Exception as error:  # noqa: BLE001 - how a process of the real system would end, too
            self.status = error
        self.kernel.end(self, self.status)

    def is_gone(self) -> bool:
        return not self.alive and self.kernel.now >= self.gone_at

    def is_ready(self) -> bool:
        return (
            self.alive
            and self.kernel.now >= self.stopped_until
            and (self.ready is None or self.kernel.now >= self.deadline or self.ready())
        )

    def plan(self, calls: int, fault: Fault) -> None:
        """Let a fault happen after so many further system calls."""
        self.faults.append((self.calls + calls, fault))
        self.faults.sort(key=lambda each: -each[0])
        self._look_next()

    def _preempt_later(self) -> None:
        self.preempt_at = self.calls + 1 + int(self.kernel.random.expovariate(1 / PREEMPTION_CALLS))
        self._look_next()

    def _look_next(self) -> None:
        self.switch_at = min(self.preempt_at, self.faults[-1][0] if self.faults else FOREVER_CALLS)

    def is_about_to_crash(self) -> bool:
        return bool(self.faults) and self.faults[-1][0] <= self.calls + 1 and self.faults[-1][1].kind == "crash"

    @property
    def stores(self) -> int:
        """The number of stores to shared memory so far."""
        return FOREVER_CALLS - self.stores_left

    def take_fault(self, call: str) -> Fault | None:
        """Return the fault that is due at this call, and note the next time to look."""
        due = None
        if self.faults and self.faults[-1][0] <= self.calls:
            _, due = self.faults.pop()
            if due.only and call not in due.only:
                self.faults.append((self.calls + 1, due))
                due = None
        if self.calls >= self.preempt_at:
            self._preempt_later()
        self._look_next()
        return due


class Kernel:
    """The clock, the processes and the files of one world. counts: what happened, for the summary."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.random = Random(seed)
        self.now = START
        self.unix_offset = 1_700_000_000.0
        self.processes: list[Process] = []
        self.living: list[Process] = []
        self.current: Process | None = None
        self.paths: dict[str, Any] = {}
        self.is_folder_full = False  # of the takeover socket: no new file
        self.watcher: Watcher | None = None
        self.manager: Any = None
        self.release: Mapping[tuple[Any, str], object] = {}
        self.counts: dict[str, int] = {}
        self.on_spawn: Callable[[Process], None] = lambda _process: None
        self.memory_files: list[MemoryFile] = []
        self.verbose = verbose
        self.trace: deque[str] = deque(maxlen=TRACE_LINES_MAX)
        self.has_peer_pidfd = True
        self.calls = 0
        self.is_over = False
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = 0
        self._failure: Violation | None = None
        self.hub = getcurrent()

    # --- For worlds ---

    def note(self, text: str) -> None:
        if self.verbose:
            who = self.current.name if self.current is not None else "-"
            calls = f"/{self.current.calls}" if self.current is not None else ""
            self.trace.append(f"{self.now:13.6f} {who + calls:16} {text}")

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def at(self, secs: float, action: Callable[[], object]) -> None:
        """Run an action after so many seconds."""
        self._numbers += 1
        heappush(self._events, (self.now + secs, self._numbers, action))

    def spawn(
        self, name: str, program: Callable[[], object], environ: Mapping[str, str] | None = None, uid: int = 0
    ) -> Process:
        process = Process(self, 100 + len(self.processes), name, program, environ or {}, uid)
        process.fds[STANDARD_ERROR] = log = Log()
        log.refs += 1
        self.processes.append(process)
        self.living.append(process)
        self.on_spawn(process)
        self.note(f"starts {process.name}")
        return process

    def fail(self, text: str) -> None:
        """End the world, because a promise is broken."""
        self.note(f"BROKEN: {text}")
        if self._failure is None:
            self._failure = Violation(text)
        if self.current is not None:
            self._leave()
        raise self._failure

    def run(self, secs: float) -> None:
        """Let time pass."""
        until = self.now + secs
        while self.now < until:
            while self._events and self._events[0][0] <= self.now:
                _, _, action = heappop(self._events)
                action()
            for process in self.living[:]:
                if self.now >= process.kill_at or self.now >= process.alarm_at:
                    self.end(process, "killed")
            ready = [process for process in self.living if process.is_ready()]
            if ready:
                self._resume(ready[0] if len(ready) == 1 else self.random.choice(ready))
            else:
                self.now = min(until, self._next_instant())
            if self.calls > CALLS_MAX:
                self.fail("a process spins")

    def kill(self, process: Process) -> None:
        """Send SIGKILL; a process that runs takes a little to notice."""
        if process.alive and process.kill_at == NEVER:
            process.kill_at = self.now + self.random.choice((0.0, 0.0, 0.001, 0.2))
            if process is self.current:
                process.kill_at = self.now

    def end(self, process: Process, status: object) -> None:
        """End a process: close its files, and report it dead a little later."""
        if not process.alive:
            return
        if self.verbose:
            self.note(f"{process.name} ends: {status!r:.200}")
        process.alive = False
        process.status = status
        self.living.remove(process)
        process.gone_at = self.now + self.random.choice((0.0, 0.0, 0.0005, 0.05))
        if self.watcher is not None:
            self.watcher.on_end(process)
        for fd in list(process.fds):
            self.close_fd(process, fd)
        if self.manager is not None:
            self.at(process.gone_at - self.now, lambda: self.manager.on_gone(process))

    def hold(self, process: Process, secs: float) -> None:
        """Let a process wait for the processor."""
        process.stopped_until = max(process.stopped_until, self.now + secs)
        if self.watcher is not None:
            self.watcher.disturb(secs)

    def signal(self, process: Process, number: int) -> None:
        """Send a signal that may be handled."""
        process.was_told_to_end = True
        pipe = process.fds.get(process.wakeup_fd)
        if not process.alive:
            return
        if number in process.handlers and pipe is not None:
            pipe.write(bytes([number]))
        else:
            self.end(process, f"signal {number}")

    def close(self) -> None:
        """End the world: unwind every process, without effects."""
        self.is_over = True
        self.watcher = self.manager = None
        self._apply({})
        for process in self.processes:
            if process.greenlet and not process.greenlet.dead:
                process.greenlet.throw(GreenletExit)
        for file in self.memory_files:
            file.free()

    # --- For system calls ---

    def enter(self, call: str) -> Process:
        """Begin a system call of the current process; a fault or a preemption may happen here."""
        process = self.current
        if process is None or self.is_over:
            raise GreenletExit
        process.calls += 1
        self.calls += 1
        self.now += CALL_SECS
        if process.calls >= process.switch_at:
            self._look_closer(process, call)
        return process

    def _look_closer(self, process: Process, call: str) -> None:
        fault = process.take_fault(call)
        if fault is None:
            process.ready = None
            self._switch(process)
            return
        self.note(f"{fault} at {call}, call {process.calls}")
        self.count({"crash": "crashes at a call", "stop": "stops", "error": "errors"}[fault.kind])
        if self.watcher is not None:
            self.watcher.disturb(fault.secs)
        if fault.kind == "crash":
            self.crash(process)
        elif fault.kind == "stop":
            process.stopped_until = self.now + fault.secs
            process.ready = None
            self._switch(process)
        else:
            process.was_refused = True
            raise OSError(fault.number, os.strerror(fault.number))

    def crash(self, process: Process) -> NoReturn:
        """End the current process at once."""
        self.end(process, "crashed")
        self._leave()

    def before_store(self) -> None:
        """Let the current process crash before a store to shared memory, if it is to."""
        process = self.current
        if process is not None:
            process.stores_left -= 1
            if process.stores_left < 0:
                self.count("crashes at a store")
                self.crash(process)

    def act(self, what: str) -> None:
        """Report an effect that only the owner may have."""
        if self.current is not None and self.watcher is not None:
            self.watcher.on_act(self.current, what)

    def wait(self, ready: Callable[[], bool], secs: float | None) -> bool:
        """Block the current process until something is ready, at most so long; return whether it is."""
        process = self.current
        if process is None:
            raise GreenletExit
        if not ready():
            if secs is not None and secs <= 0:
                return False
            process.ready = ready
            process.deadline = NEVER if secs is None else self.now + secs
            self._switch(process)
            process.ready, process.deadline = None, NEVER
        return ready()

    def open_fd(self, process: Process, file: File) -> int:
        """Return a new descriptor; raises OSError at the limit."""
        if len(process.fds) >= process.fds_max:
            process.was_refused = True
            file.forget(self)
            raise OSError(errno.EMFILE, "Too many open files")
        fd = 3
        while fd in process.fds:
            fd += 1
        process.fds[fd] = file
        file.refs += 1
        return fd

    def close_fd(self, process: Process, fd: int) -> None:
        file = process.fds.pop(fd, None)
        if file is None:
            raise OSError(errno.EBADF, "Bad file descriptor")
        if isinstance(file, MemoryFile) and file.writer is process:
            file.writer = None  # fcntl(2): closing any descriptor of the file releases a POSIX lock
        for other in process.fds.values():
            if isinstance(other, Epoll):
                other.forget_closed(fd, file)
        file.refs -= 1
        file.forget(self)

    def file(self, fd: int) -> File:
        """Return the file of a descriptor of the current process."""
        process = self.current
        file = process.fds.get(fd) if process is not None else None
        if file is None:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return file

    # --- Switching ---

    def _next_instant(self) -> float:
        instant = self._events[0][0] if self._events else NEVER
        for each in self.living:
            if each.stopped_until > self.now:
                instant = min(instant, each.kill_at, each.alarm_at, each.stopped_until)
            else:
                instant = min(instant, each.kill_at, each.alarm_at, each.deadline)
        gone = (each.gone_at for each in self.processes if not each.alive and each.gone_at > self.now)
        return max(self.now, min(instant, min(gone, default=NEVER)))

    def _resume(self, process: Process) -> None:
        if process.release is not self.release:
            self._apply(process.release)
        self.current = process
        process.greenlet.switch()
        self.current = None
        if self._failure is not None:
            raise self._failure

    def _apply(self, release: Mapping[tuple[Any, str], object]) -> None:
        """Give modules the constants of another release."""
        for (module, name), value in {**BASE_RELEASE, **release}.items():
            setattr(module, name, value)
        self.release = release

    def _switch(self, process: Process) -> None:
        self.hub.switch()
        if self.is_over:
            raise GreenletExit

    def _leave(self) -> NoReturn:
        self.hub.switch()
        raise GreenletExit


BASE_RELEASE: dict[tuple[Any, str], object] = {}  # the constants of this release, where another one has others
_running: list[Kernel] = []


def kernel() -> Kernel:
    """Return the kernel of the world that runs."""
    return _running[-1]


def enter_world(world: Kernel) -> None:
    _running.append(world)


def leave_world() -> None:
    _running.pop()
