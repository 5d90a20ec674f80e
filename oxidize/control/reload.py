"""`oxidize reload`: start the successor, set the service manager's main process, and report the result.

The rule: until the coordinator sends GO nothing is changed, and if the reload fails after that, the service manager's
main process is again the one that serves. Whatever ends the reload before GO - an error here, an interrupt - the
successor is killed, unless its predecessor has ended. After GO it may become the owner at any instant, so it is left to
the predecessor, which bounds the takeover and kills a successor that hangs, unless it has said that it failed. Both are
known by pidfds, never by their numbers, which may be used again. The successor is forked twice, so that it is not the
coordinator's child when it becomes the main process: it outlives the coordinator, and the service manager can follow
it.

Source: systemd.service(5), ExecReload= and NotifyAccess=exec.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from oxidize.control import holder
from oxidize.control.reload_channel import Report, receive, send, send_settings
from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.oom_score import OomScore
from oxidize.service_manager import notify, systemctl
from oxidize.takeover.connection import PeerProcess, connect_socket, credentials_of, who_listens
from oxidize.text import counted, one_line

PREPARE_TIMEOUT_SECS = 30.0  # the successor imports, reads and restores: tens of milliseconds for most
TAKE_TIMEOUT_SECS = 30.0  # from GO to DONE, or between two words of one that works: twice COMMIT and TAKEN
SETTLE_TIMEOUT_SECS = 10.0  # for the end of a successor that failed; one that hangs after COMMIT is killed after 5 s
LIFE_WITHOUT_OWNERSHIP_SECS = 90  # of a successor; beyond both of the above
CONNECT_TIMEOUT_SECS = 5.0  # to a predecessor whose backlog is full


class _SaidFailedError(TakeoverError):
    """The successor has said that it does not serve, and never will."""


def reload(
    role: str,
    config_path: Path,
    log_level: str,
    takeover_socket: Path,
    predecessor_pid: int,
    holder_name: object = None,
    settings_fd: int | None = None,
) -> Report:
    """Replace the process `predecessor_pid` by a new one; return the successor's report, with the `seconds` taken.

    Raises TakeoverError with the successor's reason. role: the subcommand that the successor runs, "server" or
    "client". log_level: as on its command line. holder_name: of the predecessor's holder, which starts the successor.
    settings_fd: a file with the settings for the successor, None where it validates by itself.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as undo:
        undo.enter_context(OomScore())  # and the successor, until it serves
        predecessor = _predecessor_at(takeover_socket, predecessor_pid)
        undo.callback(predecessor.close)
        try:
            channel, successor_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _cannot_start(error) from error
        undo.enter_context(channel)
        if settings_fd is not None:
            send_settings(channel, settings_fd)
        command = [sys.executable, "-P", "-m", "oxidize", role, "-c", str(config_path.absolute())]
        command += ["--log-level", log_level]
        with successor_end:
            connection = holder.connect(holder_name, {0, os.geteuid(), predecessor.uid})
            if connection is not None:
                with connection:
                    successor = holder.start_successor(connection, command, successor_end.fileno())
            else:
                command += ["--control-fd", str(successor_end.fileno())]
                successor = _start_detached(command, successor_end.fileno())
        undo.callback(successor.close)

        try:
            _prepare(channel, takeover_socket, successor, predecessor)
        except BaseException:  # an interrupt too: a successor without a coordinator must not hold the main PID
            if _is_needless(successor, predecessor, takeover_socket):
                successor.kill()
            raise
        report = _await_done(channel, takeover_socket, successor, predecessor)
    return {**report, "seconds": time.monotonic() - started}


def notify_failure(generation: int, reason: str) -> None:
    """Show in the service manager's status why a reload failed, and that `generation` still serves."""
    first_line, *others = map(one_line, reason.splitlines() or [""])
    more = f" (and {counted(len(others), 'more problem')})" if others else ""
    notify.notify(f"STATUS=generation {generation} serves on: not reloaded: {first_line}{more}")


def _prepare(channel: socket.socket, takeover_socket: Path, successor: PeerProcess, predecessor: PeerProcess) -> None:
    """Wait until all slow work is done, make the successor the main process, and send GO."""
    _expect(channel, "prepared", PREPARE_TIMEOUT_SECS, Phase.PREPARING)
    try:
        _set_main_pid(successor.pid)
        # A successor that inherits does not wait for GO; what it says of that is read all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(channel, {"event": "go"})
    except BaseException as error:  # cleans up, and raises it again
        if _is_needless(successor, predecessor, takeover_socket):
            _reset_main_pid(predecessor)
        if isinstance(error, OSError):
            raise TakeoverError(Phase.TAKING_OVER, f"the successor is gone: {error}") from error
        raise


def _await_done(
    channel: socket.socket, takeover_socket: Path, successor: PeerProcess, predecessor: PeerProcess
) -> Report:
    """Return the report of a successor that serves; raises TakeoverError with the reason of one that does not."""
    try:
        return _expect(channel, "done", TAKE_TIMEOUT_SECS, Phase.TAKING_OVER)
    except BaseException as error:  # whatever it is, the service manager follows the process that serves
        if isinstance(error, _SaidFailedError):
            successor.kill()  # its last word is that it never owns, so it may even hang
        # One that hangs without that is killed by its predecessor. A second interrupt ends this wait.
        select.select([successor.fileno(), predecessor.fileno()], [], [], SETTLE_TIMEOUT_SECS)
        if successor.is_dead() and _is_needless(successor, predecessor, takeover_socket):
            _reset_main_pid(predecessor)
        if isinstance(error, OSError):
            raise TakeoverError(Phase.TAKING_OVER, f"the successor is gone: {error}") from error
        raise


def _is_needless(successor: PeerProcess, predecessor: PeerProcess, takeover_socket: Path) -> bool:
    """Return whether the predecessor serves, or will: a successor that may own is the only one that can."""
    return not predecessor.is_dead() and not _listens(takeover_socket, successor)


def _reset_main_pid(predecessor: PeerProcess) -> None:
    # An error here matters less than the one that led to it.
    with contextlib.suppress(OxidizeError, OSError):
        _set_main_pid(predecessor.pid)


def _expect(channel: socket.socket, event: str, timeout_secs: float, phase: Phase) -> Report:
    channel.settimeout(timeout_secs)
    try:
        while (message := receive(channel)) is not None and message.get("event") == "working":
            pass
    except TimeoutError:
        raise TakeoverError(phase, f"the successor did not get there within {timeout_secs:.0f} s") from None
    if message is None:
        raise TakeoverError(phase, "the successor ended without a reason; see its log")
    if message.get("event") != event:
        kind = _SaidFailedError if message.get("event") == "failed" else TakeoverError
        raise kind(phase, str(message.get("reason", "the successor gave no reason; see its log")))
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


def _start_detached(command: list[str], inherited_fd: int) -> PeerProcess:
    """Start `command` in a session of its own, as a child of init; raises TakeoverError if that is impossible."""
    near, far = None, None
    try:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
    except OSError as error:
        for end in (near, far):
            if end is not None:
                end.close()
        raise _cannot_start(error) from error
    if child == 0:
        # Between fork and exec no error may pass silently, and the caller's code must not run.
        try:
            os.setsid()
            if (grandchild := os.fork()) != 0:
                _hand_over(far, grandchild)
            else:
                _become(command, inherited_fd)
        finally:
            os._exit(127)
    with near, far:
        os.waitpid(child, 0)
        try:
            text, fds, _, _ = socket.recv_fds(near, 32, 1, socket.MSG_DONTWAIT)
        except OSError as error:
            raise _cannot_start(error) from error
    if not fds:
        raise TakeoverError(Phase.STARTING, f"cannot start {command[0]}: expected room for an open file; close some")
    os.set_inheritable(fds[0], False)
    return PeerProcess(int(text), os.geteuid(), fds[0])


def _hand_over(channel: socket.socket, grandchild: int) -> None:
    """Send pid and pidfd from the parent, whose child keeps its number until the parent has ended."""
    try:
        socket.send_fds(channel, [str(grandchild).encode()], [os.pidfd_open(grandchild)])
    except BaseException:  # cleans up, and raises it again
        os.kill(grandchild, signal.SIGKILL)
        raise


def _cannot_start(error: OSError) -> TakeoverError:
    return TakeoverError(Phase.STARTING, f"{error}; expected room for a process and its open files")


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


def _predecessor_at(takeover_socket: Path, pid: int) -> PeerProcess:
    """Return the process that listens there, with its pidfd; raises TakeoverError if it is not process `pid`."""
    connection = connect_socket(takeover_socket, CONNECT_TIMEOUT_SECS)
    if connection is None:
        raise TakeoverError(Phase.STARTING, f"process {pid} has ended: expected it at {takeover_socket}; try again")
    with connection:
        found, _ = credentials_of(connection)
        predecessor = PeerProcess.of(connection)
    if found != pid:
        predecessor.close()
        raise TakeoverError(Phase.STARTING, f"process {found} listens at {takeover_socket}; expected {pid}: try again")
    return predecessor


def _listens(takeover_socket: Path, process: PeerProcess) -> bool:
    """Return whether this process listens at the takeover socket, and so owns or is about to."""
    try:
        found = who_listens(takeover_socket)
    except OxidizeError:  # a full backlog, another user's socket
        found = None
    return found is not None and found[0] == process.pid and not process.is_dead()
