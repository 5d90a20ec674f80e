"""Start a generation of a server or a client as a child of its holder.

Rule: a generation inherits its output, the descriptors that are passed to it and nothing else. It has a session of its
own, so that neither Ctrl-C nor the end of the terminal reaches it but through the holder; a successor ends by itself
where it never owns, as one that `oxidize reload` starts without a holder. The caller has one thread. Sources:
sd_listen_fds(3), close_range(2), alarm(2) on execve(2).
"""

import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oxidize import oom_score
from oxidize.holder.processes import LISTEN_FDS_START

SUCCESSOR_LIFE_SECS = 90  # without ownership, as in control/reload
EXEC_FAILED_STATUS = 127
_FD_PARKING = 64  # descriptors are duplicated above this before they get 3, 4, ...: above every final number


@dataclass(slots=True)
class Generation:
    """A process of the server or client. pidfd: of one that the holder did not start, which may be no child of it."""

    pid: int
    command: tuple[str, ...]
    is_ready: bool = False
    pidfd: int | None = None


def start(command: Sequence[str], environ: Mapping[str, str], fds: Sequence[tuple[str, int]]) -> Generation:
    """Start a generation that gets these named descriptors by LISTEN_FDS; raises OSError."""
    names = ":".join(name for name, _ in fds)
    passed = {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names} if fds else {}
    pid = _fork()
    if pid == 0:
        own = {**passed, "LISTEN_PID": str(os.getpid())} if fds else {}
        _become(command, {**environ, **own}, [fd for _, fd in fds])
    return Generation(pid, tuple(command))


def start_successor(command: Sequence[str], environ: Mapping[str, str], control_fd: int) -> Generation:
    """Start a generation that a coordinator guides over `control_fd`; raises OSError.

    Where memory runs out it is the first process that the kernel ends, from its first instruction until it serves.
    """
    pid = _fork()
    if pid == 0:
        signal.alarm(SUCCESSOR_LIFE_SECS)
        oom_score.OomScore().raise_()
        told = {key: value for key, value in os.environ.items() if key == oom_score.BEFORE}
        _become([*command, "--control-fd", str(LISTEN_FDS_START)], {**environ, **told}, [control_fd])
    return Generation(pid, tuple(command))


def _fork() -> int:
    """Fork with all signals blocked, in the child until `_become`: the holder's handlers are for the holder."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _become(command: Sequence[str], environ: Mapping[str, str], fds: Sequence[int]) -> None:
    """Execute the command with these descriptors from 3 on; never returns."""
    try:
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_PARKING) for fd in fds]
        for position, fd in enumerate(parked):
            os.dup2(fd, LISTEN_FDS_START + position)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.closerange(LISTEN_FDS_START + len(fds), os.sysconf("SC_OPEN_MAX"))
        os.execve(command[0], list(command), dict(environ))  # noqa: S606  # deliberately without a shell
    except OSError as error:
        os.write(2, f"oxidize: cannot start {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(EXEC_FAILED_STATUS)
