"""`oxidize reload`: start the successor, tell the service manager, say what came of it.

The rule: until the successor has been told GO nothing is changed, and after that whoever is left serving is what the
service manager is told. The successor is forked twice, so that it is no child of ours when it becomes the main process:
it outlives us, and the service manager can follow it.

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
    """Replace the process `predecessor_pid` by a fresh one; raises TakeoverError with the successor's reason.

    role: the subcommand that the successor runs, "server" or "client"; log_level: as on its command line.
    """
    started = time.monotonic()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [
        sys.executable,
        "-P",
        "-m",
        "oxidize",
        role,
        "-c",
        str(config_path),
        "--log-level",
        log_level,
        "--control-fd",
        str(theirs.fileno()),
    ]
    with ours:
        with theirs:
            pid = _start_detached(command, theirs.fileno())
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = -1  # it ended already; the link says why
        try:
            report = _coordinate(ours, pid, predecessor_pid, lambda: _serves(takeover_socket, pid))
        except TakeoverError:
            # One that serves, or one without a predecessor to go back to, is all that there is.
            if _is_alive(predecessor_pid) and not _serves(takeover_socket, pid):
                _kill(pidfd)
            raise
        finally:
            if pidfd >= 0:
                os.close(pidfd)
    return {**report, "seconds": time.monotonic() - started}


def say_failure(generation: int, reason: str) -> None:
    """Let the service manager's status show that a reload failed, and who serves."""
    first_line, *_ = reason.splitlines() or [""]
    notify.notify(f"STATUS=generation {generation} serves on: not reloaded: {first_line}")


def _coordinate(link: socket.socket, pid: int, predecessor_pid: int, serves: Callable[[], bool]) -> Report:
    _expect(link, "prepared", Phase.PREPARING, PREPARE_TIMEOUT_SECS)
    try:
        _set_main_pid(pid)
        send(link, {"event": "go"})
        return _expect(link, "done", Phase.TAKING_OVER, TAKE_TIMEOUT_SECS)
    except (OSError, TakeoverError) as error:
        if _is_alive(predecessor_pid) and not serves():
            _put_back(predecessor_pid)
        if isinstance(error, TakeoverError):
            raise
        raise TakeoverError(Phase.TAKING_OVER, f"the successor is gone: {error}") from error


def _put_back(predecessor_pid: int) -> None:
    """Make the predecessor the main process again; what hinders that is less than why it had to be."""
    with contextlib.suppress(TakeoverError):
        _set_main_pid(predecessor_pid)


def _expect(link: socket.socket, event: str, phase: Phase, timeout_secs: float) -> Report:
    link.settimeout(timeout_secs)
    try:
        message = receive(link)
    except TimeoutError:
        raise TakeoverError(phase, f"the successor did not get there within {timeout_secs:.0f} s") from None
    if message is None:
        raise TakeoverError(phase, "the successor ended without a reason; see its log")
    if message.get("event") != event:
        raise TakeoverError(phase, str(message.get("reason", "the successor gave no reason; see its log")))
    return message


def _set_main_pid(pid: int) -> None:
    """Tell the service manager of a new main process, if there is one; raises TakeoverError if it does not take it.

    A barrier that is passed only means that the message was read: what came of it is asked for. Not to get an answer is
    no failure, another answer is.
    """
    if not notify.is_managed():
        return
    notify.notify(f"MAINPID={pid}")
    if not notify.barrier():
        raise TakeoverError(
            Phase.SETTING_MAIN_PID, f"the service manager did not read MAINPID={pid} in time: does it hang?"
        )
    accepted = systemctl.main_pid()
    if accepted not in {None, pid}:
        raise TakeoverError(
            Phase.SETTING_MAIN_PID,
            f"the service manager has {accepted} as main process; expected {pid}: set NotifyAccess=exec in the unit",
        )


def _start_detached(command: list[str], inherited_fd: int) -> int:
    """Start `command` in a session of its own, as nobody's child, and return its pid."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        # Between fork and exec nothing may go wrong quietly, and nothing may return to the caller's code.
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
    # It survives the exec: a successor that hangs ends even where its coordinator was killed and nobody else knows it.
    signal.alarm(LIFE_WITHOUT_OWNERSHIP_SECS)
    # What the operator's shell left open here would stay so for as long as the successor lives: a pipe without an end.
    os.closerange(3, inherited_fd)
    os.closerange(inherited_fd + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(inherited_fd, True)
    os.execv(command[0], command)  # noqa: S606  # a shell is what we do not want


def _serves(takeover_socket: Path, pid: int) -> bool:
    """Tell whether it is this process that answers at the takeover socket."""
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
