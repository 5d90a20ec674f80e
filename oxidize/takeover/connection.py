"""The process at the other end of a Unix socket, and whether one listens at a path.

The rule: the kernel says who it is, and it is known by its pidfd, never by its number, which may be used again. What is
here needs no message: a start after a crash, which finds no other process, imports none.

Sources: unix(7) SO_PEERCRED, pidfd_open(2), pidfd_send_signal(2), socket(7) SO_SNDTIMEO.
"""

import errno
import os
import select
import signal
import socket
import struct
from pathlib import Path
from typing import Self

from oxidize.clock import boot_time
from oxidize.errors import Phase, TakeoverError

LOOK_TIMEOUT = 5.0  # seconds, for a process whose backlog is full
SO_PEERPIDFD = 77  # Linux 6.5; not in the socket module of Python 3.11
NO_UID = -1  # what SO_PEERCRED gives for a socket that is not connected

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_TIMEVAL = struct.Struct("@ll")


class PeerProcess:
    """The process that connected, or that listens: its pid and uid for people, its pidfd for everything else."""

    def __init__(self, pid: int, uid: int, pidfd: int) -> None:
        self.pid = pid
        self.uid = uid
        self._pidfd = pidfd

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Identify the other end of a connection; raises TakeoverError if its process cannot be watched."""
        pid, uid = credentials_of(connection)
        try:
            pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise TakeoverError(
                    Phase.CONNECTING, f"process {pid} cannot be watched: {error}; expected one that lives"
                ) from error
            try:
                pidfd = os.pidfd_open(pid)
            except (OSError, ValueError) as unknown:
                reason = f"process {pid} cannot be watched ({unknown}); expected one that lives in this pid namespace"
                raise TakeoverError(Phase.CONNECTING, reason) from unknown
        os.set_inheritable(pidfd, False)
        return cls(pid, uid, pidfd)

    def fileno(self) -> int:
        """Return the pidfd, readable once the process is dead."""
        return self._pidfd

    def is_dead(self) -> bool:
        """Return whether every thread of the process has certainly ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def may_be_killed(self) -> bool:
        """Return whether SIGKILL would reach the process: same user, and visible in this pid namespace."""
        return self._signal(0)

    def kill(self) -> bool:
        """Send SIGKILL; return whether it was sent or the process had ended already. The death comes later."""
        return self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the pidfd; idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def credentials_of(connection: socket.socket) -> tuple[int, int]:
    """Return the pid and uid of the process at the other end, as the kernel had them when it connected or listened."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return pid, uid


def connect_socket(path: Path, timeout: float) -> socket.socket | None:
    """Connect as `connect` does, without a pidfd of the other end."""
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise TakeoverError(Phase.CONNECTING, f"{path}: {error}; expected a free descriptor") from error
    try:
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6) or 1)
        )
        connection.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BlockingIOError as error:
        connection.close()
        raise TakeoverError(
            Phase.CONNECTING, f"{path} accepts no connection within {timeout:g} s: does it hang?"
        ) from error
    except PermissionError as error:
        connection.close()
        raise TakeoverError(
            Phase.CONNECTING,
            f"{path} is another user's: expected one of this user; run as root, or as the user that it runs as",
        ) from error
    except OSError as error:
        connection.close()
        raise TakeoverError(Phase.CONNECTING, f"{path}: {error}; expected a takeover socket of this user") from error
    return connection


def who_listens(path: Path, *, timeout: float = LOOK_TIMEOUT) -> tuple[int, int] | None:
    """Return pid and uid of the process that listens at a path, or None if no process does; it need not answer.

    The kernel names the process that called listen(2) (SO_PEERCRED, unix(7)); nothing is sent. Raises TakeoverError as
    `connect` does.
    """
    deadline = boot_time() + timeout
    while True:
        connection = connect_socket(path, max(deadline - boot_time(), 0.0))
        if connection is None:
            return None
        with connection:
            pid, uid = credentials_of(connection)
        if uid != NO_UID:
            return pid, uid
        if boot_time() >= deadline:  # a signal ended the wait for a place in the backlog
            raise TakeoverError(Phase.CONNECTING, f"{path} accepts no connection within {timeout:g} s: does it hang?")


def is_authorised(peer_uid: int, own_uid: int) -> bool:
    """Return whether a process of that user may take the sockets of this one: the same user, or root."""
    return peer_uid in {own_uid, 0}
