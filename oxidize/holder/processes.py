"""Start, watch and end processes as a service manager does.

Rule: no process that is started here, and none of its descendants, outlives this process: orphans become its children
(PR_SET_CHILD_SUBREAPER). A process is signalled only through its pidfd or while it is an unreaped child, so a signal
never reaches a reused pid. Sources: prctl(2), pidfd_open(2), waitid(2), posix_spawn(3), sd_listen_fds(3).
"""

import contextlib
import ctypes
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LISTEN_FDS_START = 3  # sd_listen_fds(3)
_FD_PARKING = 200  # fds are duplicated above this before they get 3, 4, ...: above every final number

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37

# LISTEN_PID must be the pid of the process itself, which is unknown before it starts: a shell that execs keeps its pid.
_EXEC_WITH_LISTEN_PID = ("/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh")


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a process: its exit status, or the negative number of the signal; None if unknown."""

    status: int | None

    def __str__(self) -> str:
        """Return the end as words: "exit status 1", "killed by SIGKILL"."""
        if self.status is None:
            return "ended"
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return f"exit status {self.status}"


class Subreaper:
    """While entered, orphaned descendants become children of this process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._before = 0

    def enter(self) -> None:
        """Become the subreaper; raises OSError if the kernel refuses."""
        before = ctypes.c_int()
        self._prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
        self._before = before.value
        self._prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))

    def leave(self) -> None:
        """Restore the setting from before `enter`."""
        self._prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(self._before))

    def _prctl(self, option: int, argument: object) -> None:
        zero = ctypes.c_ulong(0)
        if self._libc.prctl(option, argument, zero, zero, zero) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def spawn(
    argv: Sequence[str], env: Mapping[str, str], output_fd: int, listen_fds: Sequence[tuple[str, int]] = ()
) -> int:
    """Start a process in a process group of its own and return its pid.

    output_fd: becomes its stdout and stderr. listen_fds: names and fds that it gets as 3, 4, ... by the protocol of
    sd_listen_fds(3). It inherits no other fds, and no ignored or blocked signals.
    """
    env = {key: value for key, value in env.items() if not key.startswith(("LISTEN_", "WATCHDOG_"))}
    command = list(argv)
    parked: list[int] = []
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output_fd, 1),
        (os.POSIX_SPAWN_DUP2, output_fd, 2),
    ]
    try:
        for position, (_, fd) in enumerate(listen_fds):
            parked.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_PARKING))
            actions.append((os.POSIX_SPAWN_DUP2, parked[-1], LISTEN_FDS_START + position))
        if listen_fds:
            env["LISTEN_FDS"] = str(len(listen_fds))
            env["LISTEN_FDNAMES"] = ":".join(name for name, _ in listen_fds)
            command = [*_EXEC_WITH_LISTEN_PID, *command]
        defaults = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT]
        return os.posix_spawn(
            command[0], command, env, file_actions=actions, setpgroup=0, setsigmask=[], setsigdef=defaults
        )
    finally:
        for fd in parked:
            os.close(fd)


def reap(pid: int, *, block: bool = False) -> Ended | None:
    """Reap a child that has ended; return None while it lives. The status of a process that is no child is unknown."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | (0 if block else os.WNOHANG))
    except ChildProcessError:
        return Ended(None)
    if result is None:
        return None
    return Ended(result.si_status if result.si_code == os.CLD_EXITED else -result.si_status)


def signal_process(pidfd: int, number: int) -> None:
    """Send a signal to the process of a pidfd; no error if the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def children() -> set[int]:
    """Return the pids of this process's children, including zombies.

    /proc/self/task/*/children would be cheaper, but needs CONFIG_PROC_CHILDREN, which some kernels lack.
    """
    me = str(os.getpid())
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # "pid (comm) state ppid ...": comm may contain anything, so fields count from the last parenthesis.
                if (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1] == me:
                    found.add(int(entry.name))
    return found


def end_children(spared: set[int]) -> int:
    """Kill all children except `spared`, and the orphans that they leave, until none is left; return their number."""
    ended = 0
    while doomed := children() - spared:
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # an unreaped child: its pid cannot have been reused
            reap(pid, block=True)
            ended += 1
    return ended
