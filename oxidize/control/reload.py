"""`oxidize reload`: start the successor, set the service manager's main process, and report the result.

The rule: until the coordinator sends GO nothing is changed, and if the reload fails after that, the service manager's
main process is again the one that serves. The successor is forked twice, so that it is not the coordinator's child when
it becomes the main process: it outlives the coordinator, and the service manager can follow it.

Source: systemd.service(5), ExecReload= and NotifyAccess=exec.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from oxidize.control.query import IDENTITY, fetch
from oxidize.control.reload_channel import Report, receive, send
from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.service_manager import notify, systemctl

PREPARE_TIMEOUT_SECS = 30.0  # the successor imports, reads and restores: tens of milliseconds for most
TAKE_TIMEOUT_SECS = 30.0  # from GO to DONE: twice what COMMIT and TAKEN may take
LIFE_WITHOUT_OWNERSHIP_SECS = 90  # of a successor; beyond both of the above


def reload(role: str, config_path: Path, log_level: str, takeover_socket: Path, predecessor_pid: int) -> Report:
    """Replace the process `predecessor_pid` by a new one; return the successor's report, with the `seconds` taken.

    Raises TakeoverError with the successor's reason. role: the subcommand that the successor runs, "server" or
    "client". log_level: as on its command line.
    """
    started = time.monotonic()
    channel, successor_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-m", "oxidize", role, "-c", str(config_path)]
    command += ["--log-level", log_level, "--control-fd", str(successor_end.fileno())]
    with channel:
        with successor_end:
            pid = _start_detached(command, successor_end.fileno())
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = -1  # it has ended already; the channel has the reason
        try:
            report = _coordinate(channel, pid, predecessor_pid, lambda: _serves(takeover_socket, pid))
        except TakeoverError:
            # A successor that serves, or one whose predecessor has ended, is the only process that can serve.
            if _is_alive(predecessor_pid) and not _serves(takeover_socket, pid):
                _kill(pidfd)
            raise
        finally:
            if pidfd >= 0:
                os.close(pidfd)
    return {**report, "seconds": time.monotonic() - started}


def notify_failure(generation: int, reason: str) -> None:
    """Show in the service manager's status why a reload failed, and that `generation` still serves."""
    first_line, *_ = reason.splitlines() or [""]
    notify.notify(f"STATUS=generation {generation} serves on: not reloaded: {first_line}")


def _coordinate(channel: socket.socket, pid: int, predecessor_pid: int, serves: Callable[[], bool]) -> Report:
    _expect(channel, "prepared", PREPARE_TIMEOUT_SECS, Phase.PREPARING)
    try:
        _set_main_pid(pid)
        send(channel, {"event": "go"})
        return _expect(channel, "done", TAKE_TIMEOUT_SECS, Phase.TAKING_OVER)
    except (OSError, TakeoverError) as error:
        if _is_alive(predecessor_pid) and not serves():
            # An error here matters less than the one that led to it.
            with contextlib.suppress(TakeoverError):
                _set_main_pid(predecessor_pid)
        if isinstance(error, TakeoverError):
            raise
        raise TakeoverError(Phase.TAKING_OVER, f"the successor is gone: {error}") from error


def _expect(channel: socket.socket, event: str, timeout_secs: float, phase: Phase) -> Report:
    channel.settimeout(timeout_secs)
    try:
        message = receive(channel)
    except TimeoutError:
        raise TakeoverError(phase, f"the successor did not get there within {timeout_secs:.0f} s") from None
    if message is None:
        raise TakeoverError(phase, "the successor ended without a reason; see its log")
    if message.get("event") != event:
        raise TakeoverError(phase, str(message.get("reason", "the successor gave no reason; see its log")))
    return message


def _set_main_pid(pid: int) -> None:
    """Make a process the service manager's main process, if there is a manager; raises TakeoverError if it refuses.

    The barrier proves only that the message was read, so the main PID is read back. A missing answer is not an error; a
    different PID is.
    """
    if not notify.is_managed():
        return
    notify.notify(f"MAINPID={pid}")
    if not notify.barrier():
        reason = f"the service manager did not read MAINPID={pid} in time: does it hang?"
        raise TakeoverError(Phase.SETTING_MAIN_PID, reason)
    accepted = systemctl.main_pid()
    if accepted not in {None, pid}:
        raise TakeoverError(
            Phase.SETTING_MAIN_PID,
            f"the service manager has {accepted} as main process; expected {pid}: set NotifyAccess=exec in the unit",
        )


def _start_detached(command: list[str], inherited_fd: int) -> int:
    """Start `command` in a session of its own, as a child of init, and return its pid."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        # Between fork and exec no error may pass silently, and the caller's code must not run.
        try:
            os.setsid()
            if (grandchild := os.fork()) != 0:
                os.write(write_end, str(grandchild).encode())
                os._exit(0)
            _become(command, inherited_fd)
        finally:
            os._exit(127)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        text = pipe.read()
    if not text:
        raise TakeoverError(Phase.STARTING, f"cannot start {command[0]}: no process could be made")
    return int(text)


def _become(command: list[str], inherited_fd: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    # It survives the exec: a successor that hangs ends even where its coordinator, which alone knows it, was killed.
    signal.alarm(LIFE_WITHOUT_OWNERSHIP_SECS)
    # A descriptor that the operator's shell left open would stay open for the successor's life: a pipe without an end.
    os.closerange(3, inherited_fd)
    os.closerange(inherited_fd + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(inherited_fd, True)
    os.execv(command[0], command)  # noqa: S606  # deliberately without a shell


def _serves(takeover_socket: Path, pid: int) -> bool:
    """Return whether it is this process that answers at the takeover socket."""
    try:
        return bool(fetch(takeover_socket, IDENTITY).get("pid") == pid)
    except OxidizeError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([pidfd], [], [], 0)[0]
    finally:
        os.close(pidfd)


def _kill(pidfd: int) -> None:
    if pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
