"""The holder: does for a server what systemd does, on machines without systemd.

Rule: the sockets and the stored fds stay open for the whole life of the holder, and if the main process ends without a
request to stop, it is restarted at once with all of them. systemd's behaviour is the specification: sd_listen_fds(3),
sd_notify(3), sd_pid_notify_with_fds(3), systemd.service(5) with Type=notify, NotifyAccess=exec, Restart=always,
RestartSec=0, ExecReload= and FileDescriptorStoreMax=16.

A thread of its own reads the notify socket and the pidfds; every public method may be called from any thread.
"""

import contextlib
import os
import selectors
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oxidize.clock import boot_time
from oxidize.errors import StateError
from oxidize.holder import processes
from oxidize.holder.fd_store import FdStore, Notification, bind_notify_socket, receive_notification

RECEIVE_BUFFER_BYTES = 8 << 20  # requested; net.core.rmem_max limits it for an ordinary user
LISTEN_BACKLOG = 64
FAILED_STARTS_MAX = 3  # in a row without READY=1; systemd's start limit does the same
SECOND_SIGTERM_SECS = 2.0  # from the second SIGTERM of a stop to SIGKILL
_SWEEP_INTERVAL_SECS = 0.5  # the longest time until an unwatched orphan is reaped

_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55  # missing in socket(7): nine u32, the last is the number of dropped packets
_MEMINFO = struct.Struct("9I")


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart after an unexpected end of the main process; ready_at is None until the new one sends READY=1."""

    ended_at: float
    reason: str
    started_at: float
    pid: int
    ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class ControlResult:
    """The end of a control process: its exit status (negative: the signal), its output, and when it ended."""

    status: int
    output: str
    ended_at: float


@dataclass(slots=True)
class _Process:
    pid: int
    pidfd: int
    started_at: float
    deadline: float | None = None  # of a control process, which is killed after it
    ready_at: float | None = None  # of a main process: when it sent READY=1


class Holder:
    """Owner of a server's sockets and stored fds that keeps the server running.

    server_argv: the command, with an absolute path. directory: an existing private directory for the notify socket
    and the server's log. env: the server's environment, this process's own by default. control_result: of the last
    control process, None while it runs or if there was none. failure: why the holder has stopped restarting the server,
    None while it restarts it. status: the last STATUS= of the main process.
    """

    def __init__(self, server_argv: Sequence[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self._argv = list(server_argv)
        self.log_path = directory / "server.log"
        self._directory = directory
        self._controls = 0
        self._output_path = directory
        notify_path = str(directory / "notify")
        self._env = {**(os.environ if env is None else env), "NOTIFY_SOCKET": notify_path}
        self._udp, self._http, self.receive_buffer_bytes = _bind_sockets()
        self.udp_address: tuple[str, int] = self._udp.getsockname()
        self.http_address: tuple[str, int] = self._http.getsockname()
        self._notify = bind_notify_socket(notify_path)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._store = FdStore()
        self._subreaper = processes.Subreaper()
        self._thread = threading.Thread(target=self._run, name="holder", daemon=True)
        self._changed = threading.Condition(threading.RLock())
        # All attributes below are guarded by the condition's lock.
        self._spared: set[int] = set()
        self._main: _Process | None = None
        self._main_ended: str | None = None  # the reason, while the end of a control process is awaited
        self._control: _Process | None = None
        self.control_result: ControlResult | None = None
        self._former: list[_Process] = []  # earlier main processes, replaced by a takeover, until they end
        self._failed_starts = 0
        self.failure: str | None = None
        self._stopping = False
        self._closed = False
        self._restarts: list[Restart] = []
        self.status = ""

    # --- Read-only state ---

    @property
    def main_pid(self) -> int | None:
        """The main process's pid, None while there is none."""
        with self._changed:
            return self._main.pid if self._main else None

    @property
    def ready(self) -> bool:
        """Whether the main process has sent READY=1."""
        with self._changed:
            return self._main is not None and self._main.ready_at is not None

    @property
    def ready_at(self) -> float | None:
        """When the main process sent READY=1, None if it has not."""
        with self._changed:
            return self._main.ready_at if self._main else None

    @property
    def restarts(self) -> list[Restart]:
        """All restarts of the main process, oldest first."""
        with self._changed:
            return list(self._restarts)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The names in the fd store."""
        with self._changed:
            return self._store.names

    @property
    def former_pids(self) -> list[int]:
        """The pids of former main processes that have not ended yet."""
        with self._changed:
            return [process.pid for process in self._former]

    @property
    def udp_drops(self) -> int:
        """Datagrams that the kernel dropped because the UDP socket's receive buffer was full."""
        memory = self._udp.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        drops: int = _MEMINFO.unpack(memory)[-1]
        return drops

    # --- Operations ---

    def start(self) -> None:
        """Start the server. Children that this process has already are never reaped or killed by the holder."""
        with self._changed:
            self._subreaper.enter()
            self._spared |= processes.children()
            self._selector.register(self._notify, selectors.EVENT_READ, self._on_notify)
            self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
            self._start_main()
        self._thread.start()

    def exclude(self, pid: int) -> None:
        """Never reap or kill this child, which was started after the holder."""
        with self._changed:
            self._spared.add(pid)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the main process is ready; raises StateError if it is not within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or self.failure is not None, timeout)
            if self.failure is not None:
                raise StateError(self.failure)
            if not self.ready:
                raise StateError(f"the server did not send READY=1 within {timeout:g} s; see {self.log_path}")

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition`, evaluated after each event, is true; return whether it is."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def kill_main(self, number: int = signal.SIGKILL) -> float:
        """Send a signal to the main process and return the time; raises StateError if there is no main process."""
        with self._changed:
            if self._main is None:
                raise StateError("no main process to signal; wait until the holder has restarted it")
            now = boot_time()
            processes.signal_process(self._main.pidfd, number)
            return now

    def start_control(self, argv: Sequence[str], timeout: float, env: Mapping[str, str] | None = None) -> None:
        """Run a command as systemd runs ExecReload=, in the server's environment with NOTIFY_SOCKET and MAINPID.

        `control_result` has its result; it is killed after `timeout` seconds. Raises StateError if one is running.
        """
        with self._changed:
            if self._control is not None:
                raise StateError(f"control process {self._control.pid} is running; expected one at a time")
            self.control_result = None
            now = boot_time()
            main_pid = {"MAINPID": str(self._main.pid)} if self._main else {}
            # A separate file, because processes that it starts may write long after it; a pipe would fill.
            self._controls += 1
            self._output_path = self._directory / f"control-{self._controls}.log"
            output = os.open(self._output_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                pid = processes.spawn(argv, {**self._env, **main_pid, **(env or {})}, output)
            finally:
                os.close(output)
            self._control = self._watch(pid, now, now + timeout)
        self._wake()

    def stop(self, timeout: float) -> None:
        """Stop the server for good: SIGTERM, a second SIGTERM after `timeout` seconds, then SIGKILL."""
        with self._changed:
            self._stopping = True
            for number, patience in (
                (signal.SIGTERM, timeout),
                (signal.SIGTERM, SECOND_SIGTERM_SECS),
                (signal.SIGKILL, SECOND_SIGTERM_SECS),
            ):
                if self._main is None:
                    return
                processes.signal_process(self._main.pidfd, number)
                self._changed.wait_for(lambda: self._main is None, patience)

    def close(self) -> None:
        """End all processes that the holder started, directly or not, and close everything; idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
            processes.end_children(self._spared)
            self._subreaper.leave()
        for process in filter(None, (self._main, self._control, *self._former)):
            os.close(process.pidfd)
        self._main = self._control = None
        self._former = []
        self._selector.close()
        self._store.close()
        for sock in (self._udp, self._http, self._notify):
            sock.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with contextlib.suppress(FileNotFoundError):
            Path(self._env["NOTIFY_SOCKET"]).unlink()

    # --- The holder's thread ---

    def _run(self) -> None:
        while True:
            events = self._selector.select(_SWEEP_INTERVAL_SECS)
            with self._changed:
                if self._closed:
                    return
                # Messages first: those that a process sent before its death must count.
                for key, _ in sorted(events, key=lambda event: event[0].data != self._on_notify):
                    key.data()
                self._end_overdue_control()
                self._sweep()
                self._changed.notify_all()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _on_notify(self) -> None:
        while (notification := receive_notification(self._notify)) is not None:
            try:
                if notification.sender in {p.pid for p in (self._main, self._control) if p is not None}:
                    self._apply(notification)
            finally:
                notification.close()  # also after BARRIER=1: the hang-up is its answer

    def _apply(self, notification: Notification) -> None:
        self._store.apply(notification)
        self.status = notification.assignments.get("STATUS", self.status)
        main_pid = notification.assignments.get("MAINPID", "")
        if main_pid.isdecimal():
            self._set_main(int(main_pid))
        if notification.assignments.get("READY") == "1" and self._main and notification.sender == self._main.pid:
            self._on_ready(self._main)

    def _on_ready(self, main: _Process) -> None:
        main.ready_at = boot_time()
        self._failed_starts = 0
        if self._restarts and self._restarts[-1].pid == main.pid and self._restarts[-1].ready_at is None:
            self._restarts[-1] = replace(self._restarts[-1], ready_at=main.ready_at)

    def _set_main(self, pid: int) -> None:
        """Make `pid` the main process; the former one is only watched until it ends."""
        if self._main is not None and self._main.pid == pid:
            return
        process = next((former for former in self._former if former.pid == pid), None)
        if process is not None:
            self._former.remove(process)
        else:
            try:
                process = self._watch(pid, boot_time())
            except OSError:
                return  # no such process: ignored, as systemd does
        if self._main is not None:
            self._former.append(self._main)
        self._main, self._main_ended = process, None

    def _watch(self, pid: int, now: float, deadline: float | None = None) -> _Process:
        process = _Process(pid, os.pidfd_open(pid), now, deadline)
        self._selector.register(process.pidfd, selectors.EVENT_READ, lambda: self._on_end(process))
        return process

    def _on_end(self, process: _Process) -> None:
        ended = processes.reap(process.pid)
        if ended is None:
            return
        self._on_notify()  # its last messages may have arrived after this round of events was read
        self._selector.unregister(process.pidfd)
        os.close(process.pidfd)
        if process is self._control:
            self._control = None
            output = self._output_path.read_text("utf-8", "replace")
            status = -signal.SIGKILL if ended.status is None else ended.status
            self.control_result = ControlResult(status, output, boot_time())
            if self._main is None and self._main_ended is not None:
                self._restart(self._main_ended)
        elif process is self._main:
            self._main, self.status = None, ""
            if self._control is not None:
                self._main_ended = str(ended)  # the control process may be about to name another main process
            elif not self._stopping:
                self._restart(str(ended))
        else:
            self._former.remove(process)

    def _restart(self, reason: str) -> None:
        self._main_ended = None
        if self._stopping:
            return
        if self._failed_starts >= FAILED_STARTS_MAX:
            self.failure = (
                f"the server ended {self._failed_starts} times before it was ready ({reason}); see {self.log_path}"
            )
            return
        ended_at = boot_time()
        main = self._start_main()
        self._restarts.append(Restart(ended_at, reason, main.started_at, main.pid))

    def _start_main(self) -> _Process:
        self._failed_starts += 1
        fds = [("udp", self._udp.fileno()), ("http", self._http.fileno()), *self._store.entries]
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            now = boot_time()
            self._main = self._watch(processes.spawn(self._argv, self._env, log, fds), now)
        finally:
            os.close(log)
        return self._main

    def _end_overdue_control(self) -> None:
        control = self._control
        if control is not None and control.deadline is not None and boot_time() > control.deadline:
            processes.signal_process(control.pidfd, signal.SIGKILL)

    def _sweep(self) -> None:
        """Reap orphans that ended: intermediate processes of double forks, and refused successors."""
        watched = {p.pid for p in (self._main, self._control, *self._former) if p is not None}
        try:
            # WNOWAIT peeks, so that the usual case, no ended child, costs one system call.
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
        except ChildProcessError:
            return
        for pid in processes.children() - watched - self._spared:
            processes.reap(pid)


def _bind_sockets() -> tuple[socket.socket, socket.socket, int]:
    """Return the UDP and the HTTP socket, both non-blocking, and the size of the UDP receive buffer in bytes."""
    with contextlib.ExitStack() as undo:
        udp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        try:
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except PermissionError:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        udp.bind(("127.0.0.1", 0))
        http = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        http.bind(("127.0.0.1", 0))
        http.listen(LISTEN_BACKLOG)
        undo.pop_all()
    return udp, http, udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
