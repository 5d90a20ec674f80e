"""The holder of a server or a client in the foreground: a terminal, a supervisor, PID 1 of a container.

Rule: the holder lives as long as the service does, and holds its sockets and its state; it never opens what it holds.
As long as one generation lives nothing is started. When the last one ends without a request to stop, the next one gets
everything that is stored. A request to stop is the holder's SIGTERM or SIGINT, or STOPPING=1 of the main generation; a
generation that ends with status 0 and leaves no other has handed over to a process outside. The holder's own end, even
by SIGKILL, ends no generation: the next holder's first generation takes over from it. What a generation has set on the
host it removes when it is stopped; where a stop finds none that can, the holder has a command do that with what it
holds, as a unit's ExecStopPost= does.

The main generation is the child that last sent READY=1. Its messages are read before its end, for the descriptors of a
process that was killed must count. Sources: sd_notify(3), sd_pid_notify_with_fds(3), waitid(2), unix(7), signal(7).
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from oxidize.clock import boot_time
from oxidize.holder import generation, processes
from oxidize.holder.fd_store import FdStore, Notification, bind_notify_socket, receive_notification
from oxidize.holder.generation import Generation
from oxidize.holder.requests import Requests
from oxidize.signals import ALARM, MEANINGLESS, name_of, text_for

GAVE_UP_STATUS = 3  # of a client; RestartPreventExitStatus= of its unit
RESTART_DELAY_FIRST_SECS = 0.1
RESTART_DELAY_MAX_SECS = 10.0  # as of runtime/crash_loop, which delays generations that served before they crashed
BUG_PAUSE_SECS = 1.0
CLEAN_UP_SECS = 10.0  # for the command that removes what a dead generation has set
NOTIFICATIONS_PER_TURN_MAX = 64
HOLDER_VARIABLE = "OXIDIZE_HOLDER"  # where a generation, and through it `oxidize reload`, finds the holder
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IDLE_SIGNALS = (*MEANINGLESS, ALARM)


class Foreground:
    """The holder. command: of a generation, without its descriptors. passed: fds that the holder itself was passed.

    clean_up: the arguments after the interpreter that remove what a dead generation has set; none for a server.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        passed: Mapping[int, str],
        clean_up: Sequence[str] = (),
    ) -> None:
        self._first_command = self._command = tuple(command)
        self._clean_up_arguments = tuple(clean_up)
        own = f"oxidize-holder-{os.getpid()}-{os.urandom(8).hex()}"
        self._notify = bind_notify_socket(f"\0{own}-notify")
        self._requests = Requests(f"\0{own}", self._start_successor)
        self._outer_notify = environ.get("NOTIFY_SOCKET")
        kept = {key: value for key, value in environ.items() if not key.startswith(("LISTEN_", "WATCHDOG_"))}
        self._environ = {**kept, "NOTIFY_SOCKET": f"@{own}-notify", HOLDER_VARIABLE: f"@{own}"}
        self._store = FdStore()
        for fd, name in passed.items():
            self._store.add(name, fd)
            os.close(fd)
        self._generations: dict[int, Generation] = {}
        self._main: Generation | None = None
        self._was_ready = False
        self._stop_signal: int | None = None  # passed on to each generation that becomes the main one
        self._is_stopping = False
        self._failed_starts = 0  # in a row, without READY=1
        self._restart_at: float | None = None
        self._last_status = 0  # of the generation that ended last, negative for a signal
        self._exit_status: int | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """Hold until the service ends; return the exit status of its last generation."""
        with contextlib.suppress(OSError):
            processes.Subreaper().enter()  # orphans of generations are reaped here; PID 1 has them in any case
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, *IDLE_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # `stty tostop` would stop one that logs in the background
        self._start()
        while self._exit_status is None:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - the top of the loop: without the holder the service ends
                _say("ERROR", f"a bug in the holder: {type(error).__name__}: {error}")
                time.sleep(BUG_PAUSE_SECS)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the interpreter's end would restore the default action
        if self._is_stopping and self._last_status != 0 and self._clean_up_arguments:
            self._clean_up()
        self._requests.finish(self._exit_status)
        return self._exit_status

    # --- The loop ---

    def _turn(self) -> None:
        sources: dict[int, Callable[[], None]] = {
            self._notify.fileno(): self._read_notifications,
            self._wake_read: self._read_signals,
            **self._requests.sources(),
        }
        for each in self._generations.values():
            if each.pidfd is not None:
                sources[each.pidfd] = self._read_ends
        poll = select.poll()
        for fd in sources:
            poll.register(fd, select.POLLIN)
        timeout = None
        if self._restart_at is not None:
            timeout = max(0.0, self._restart_at - boot_time()) * 1000 + 1
        ready = {fd for fd, _ in poll.poll(timeout)}
        for fd, read in sources.items():  # in this order: messages before ends
            if fd in ready and self._exit_status is None:
                read()
        if self._restart_at is not None and boot_time() >= self._restart_at and self._exit_status is None:
            self._start()

    def _read_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in dict.fromkeys(os.read(self._wake_read, 4096)):
                if number in STOP_SIGNALS:
                    self._stop(number)
                elif number in IDLE_SIGNALS:
                    _say("WARNING", text_for(number))
        self._read_ends()

    def _read_ends(self) -> None:
        self._read_notifications()
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                ended = None
            if ended is None:
                break
            status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            self._on_end(ended.si_pid, processes.Ended(status))
        for each in list(self._generations.values()):
            if each.pidfd is not None and _is_readable(each.pidfd):
                self._on_end(each.pid, processes.Ended(None))

    # --- Messages of the generations ---

    def _read_notifications(self) -> None:
        for _ in range(NOTIFICATIONS_PER_TURN_MAX):
            notification = receive_notification(self._notify)
            if notification is None:
                return
            try:
                sender = self._generations.get(notification.sender)
                if sender is not None:
                    self._apply(sender, notification)
            finally:
                notification.close()  # also after BARRIER=1: the hang-up is its answer

    def _apply(self, sender: Generation, notification: Notification) -> None:
        with contextlib.suppress(OSError):  # no descriptor left: a crash then costs what is not stored
            self._store.apply(notification)
        said = notification.assignments
        if said.get("READY") == "1":
            self._become_main(sender)
        if sender is not self._main:
            return
        if said.get("STOPPING") == "1":
            self._is_stopping = True
        if said.get("MAINPID", "").isdecimal():
            self._adopt(int(said["MAINPID"]))

    def _become_main(self, ready: Generation) -> None:
        if ready.is_ready:
            return
        ready.is_ready, self._failed_starts = True, 0
        self._main, self._command = ready, ready.command
        if not self._was_ready:
            self._was_ready = True
            self._tell_outer_manager()
        if self._stop_signal is not None:
            self._signal(ready, self._stop_signal)

    def _adopt(self, pid: int) -> None:
        """Make a successor the main generation that was started by a release that knows no holder."""
        if pid in self._generations:
            return
        try:
            adopted = Generation(pid, self._command, is_ready=True, pidfd=os.pidfd_open(pid))
        except (OSError, OverflowError):
            return  # it has ended, or is none
        self._generations[pid] = self._main = adopted

    def _tell_outer_manager(self) -> None:
        """Pass the first READY=1 on, as to a container's runtime that listens."""
        if self._outer_notify:
            path = self._outer_notify
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(b"READY=1", f"\0{path[1:]}" if path.startswith("@") else path)

    # --- Starts and ends ---

    def _start(self) -> None:
        """Start a generation with all that is stored."""
        self._restart_at = None
        try:
            started = generation.start(self._existing_command(), self._environ, self._store.entries)
        except OSError as error:
            if self._was_ready:
                self._start_again(f"cannot start: {error}", has_failed=True)
            else:
                _say("ERROR", f"cannot start: {error}")
                self._exit_status = generation.EXEC_FAILED_STATUS
            return
        self._generations[started.pid] = started

    def _existing_command(self) -> tuple[str, ...]:
        """Return the command of the last generation that was ready, of the first one if its release was removed."""
        if not os.access(self._command[0], os.X_OK):
            self._command = self._first_command
        return self._command

    def _start_successor(self, command: Sequence[str], control_fd: int) -> tuple[int, int]:
        """Start a successor for `oxidize reload`; return its pid and a new pidfd. Raises OSError."""
        started = generation.start_successor(command, self._environ, control_fd)
        self._generations[started.pid] = started
        return started.pid, os.pidfd_open(started.pid)

    def _on_end(self, pid: int, ended: processes.Ended) -> None:
        gone = self._generations.pop(pid, None)
        if gone is None:
            return  # an orphan, or a program that outlived the generation that started it
        if gone.pidfd is not None:
            os.close(gone.pidfd)
        was_main = gone is self._main
        if was_main:
            self._main = None
        if self._generations:
            if was_main and self._is_stopping and self._stop_signal is not None:
                for each in self._generations.values():
                    self._signal(each, self._stop_signal)
            return
        self._last_status = status = 1 if ended.status is None else ended.status
        exit_status = status if status >= 0 else 128 - status
        if self._stop_signal is not None and not gone.is_ready:
            exit_status = 0  # stopped during its start
        # A successor in a new holder may be killed between its first packet and READY=1: it has stored what it owned.
        has_failed = not self._was_ready and not (status < 0 and "journal" in self._store.names)
        if self._is_stopping or has_failed or (was_main and status in {0, GAVE_UP_STATUS}):
            if status == 0 and not self._is_stopping:
                _say("INFO", f"the service goes on outside of this holder, which ends: pid {pid} has handed over")
            self._exit_status = exit_status
            return
        self._start_again(f"pid {pid} ended, {ended}", has_failed=not gone.is_ready)

    def _start_again(self, reason: str, *, has_failed: bool) -> None:
        """Have the next generation start: at once, or with backoff after starts that failed in a row."""
        delay_secs = 0.0  # a generation that served, and keeps crashing, delays its own READY=1
        if has_failed:
            delay_secs = min(RESTART_DELAY_MAX_SECS, RESTART_DELAY_FIRST_SECS * 2.0 ** min(self._failed_starts, 32))
            self._failed_starts += 1
        when = f"in {delay_secs:g} s " if delay_secs else ""
        _say("ERROR", f"{reason}: the next generation starts {when}with what is held")
        self._restart_at = boot_time() + delay_secs

    def _stop(self, number: int) -> None:
        """Pass a request to stop on: the first lets the sessions end, a second ends the service at once."""
        self._is_stopping = True
        self._stop_signal = signal.SIGTERM if number == signal.SIGQUIT else number
        if self._main is not None:
            self._signal(self._main, self._stop_signal)
            return
        _say("INFO", f"ends signal={name_of(number)} while no process serves")
        if self._generations:
            for each in self._generations.values():
                self._signal(each, self._stop_signal)
        else:
            self._exit_status = 0

    def _clean_up(self) -> None:
        """Have removed what the last generation has set, which crashed or was ended during its start."""
        command = (self._existing_command()[0], *self._clean_up_arguments)
        try:
            started = generation.start(command, self._environ, self._store.entries)
            pidfd = os.pidfd_open(started.pid)
            if not _is_readable(pidfd, CLEAN_UP_SECS):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1])
        except OSError as error:
            status = error.errno or 1
        if status != 0:
            _say(
                "ERROR", f"rules of the host may be left behind: run `oxidize {' '.join(self._clean_up_arguments[3:])}`"
            )

    def _signal(self, target: Generation, number: int) -> None:
        with contextlib.suppress(OSError):
            if target.pidfd is not None:
                signal.pidfd_send_signal(target.pidfd, number)
            else:
                os.kill(target.pid, number)  # an unreaped child: its pid cannot have been reused


def _is_readable(fd: int, timeout_secs: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_secs * 1000))


def _say(level: str, message: str) -> None:
    """Write a line in the format of the generations' log, unless its reader would make the holder wait."""
    moment = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    line = f"{moment}Z {level} oxidize.holder {message}\n".encode()
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        if not any(events & select.POLLOUT for _, events in poll.poll(0)):
            return
        if not os.isatty(2):
            os.write(2, line)  # there is room for a page
            return
        # A terminal may have room for a part of the line. Without an opening of its own O_NONBLOCK is the shell's, too.
        own = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            os.write(own, line)
        finally:
            os.close(own)


def main_command(python: str, role: str, config_path: Path, log_level: str) -> list[str]:
    """Return the command of a generation."""
    return [python, "-P", "-m", "oxidize", role, "-c", str(config_path), "--log-level", log_level]


def clean_up_arguments(role: str, config_path: Path) -> list[str]:
    """Return the arguments of the interpreter that remove what a dead client has set; none for a server."""
    return ["-P", "-m", "oxidize", "clean-up", "-c", str(config_path)] if role == "client" else []
