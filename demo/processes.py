"""Start processes, and end them with all that descends from them.

Rule: a process is signalled only while it is an unreaped child, so a signal never reaches a reused pid. With a
`Subreaper` (`oxidize.holder.processes`) orphans become children, and so none outlives this process. Sources:
posix_spawn(3), waitid(2), sd_listen_fds(3).
"""

import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from oxidize.holder.processes import LISTEN_FDS_START, Ended

_FD_PARKING = 200  # fds are duplicated above this before they get 3, 4, ...: above every final number

# LISTEN_PID must be the pid of the process itself, which is unknown before it starts: a shell that execs keeps its pid.
_EXEC_WITH_LISTEN_PID = ("/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh")


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
