"""A file descriptor store and the messages that fill it, as systemd's service manager keeps them for a unit.

Rule: a message counts only when its sender is the service itself (`NotifyAccess=exec`: the main or the control process,
told by SCM_CREDENTIALS, which no sender can forge). Source: sd_notify(3), sd_pid_notify_with_fds(3),
systemd.service(5) `FileDescriptorStoreMax=`, unix(7).
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass

STORE_MAX = 16  # FileDescriptorStoreMax= of the unit that the holder stands in for
MESSAGE_BYTES_MAX = 4096  # systemd's own limit, PIPE_BUF
MESSAGE_FDS_MAX = 253  # unix(7), SCM_MAX_FD
NAME_CHARS_MAX = 255
DEFAULT_NAME = "stored"

_UCRED = struct.Struct("iII")  # pid, uid, gid
_SCM_CREDENTIALS = 2  # not in the socket module of every build
_CONTROL_BYTES = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * MESSAGE_FDS_MAX)


@dataclass(frozen=True, slots=True)
class Notification:
    """One datagram on the notify socket: its assignments, its sender's pid, and the fds that it carried (ours now)."""

    assignments: Mapping[str, str]
    sender: int
    fds: tuple[int, ...]

    def close(self) -> None:
        """Close every fd that it carried; the store keeps copies of what it took."""
        for fd in self.fds:
            os.close(fd)


def bind_notify_socket(path: str) -> socket.socket:
    """Return a non-blocking datagram socket at `path` that tells each message's sender."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind(path)
    return sock


def receive_notification(sock: socket.socket) -> Notification | None:
    """Return the next message, None when none waits. A truncated one has no assignments: it is not to be trusted."""
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    try:
        data, control, message_flags, _ = sock.recvmsg(MESSAGE_BYTES_MAX, _CONTROL_BYTES, flags)
    except BlockingIOError:
        return None
    fds: list[int] = []
    sender = 0
    for level, kind, payload in control:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
        elif kind == _SCM_CREDENTIALS:
            sender = _UCRED.unpack(payload[: _UCRED.size])[0]
    truncated = message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    lines = [] if truncated else data.decode("utf-8", "replace").splitlines()
    assignments = dict(line.split("=", 1) for line in lines if "=" in line)
    return Notification(assignments, sender, tuple(fds))


class FdStore:
    """Named file descriptors that outlive the process that stored them."""

    def __init__(self, limit: int = STORE_MAX) -> None:
        self._limit = limit
        self._entries: list[tuple[str, int]] = []

    @property
    def entries(self) -> tuple[tuple[str, int], ...]:
        """Names and fds in the order in which they were stored."""
        return tuple(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The names alone; one name may stand for several fds."""
        return tuple(name for name, _ in self._entries)

    def add(self, name: str, fd: int) -> bool:
        """Keep a copy of `fd`; False when the same file is here already, or the store is full."""
        if len(self._entries) >= self._limit or any(_same_file(fd, kept) for _, kept in self._entries):
            return False
        self._entries.append((name if _is_name(name) else DEFAULT_NAME, os.dup(fd)))
        return True

    def remove(self, name: str) -> int:
        """Forget every fd of this name and return how many there were."""
        gone = [fd for entry, fd in self._entries if entry == name]
        self._entries = [(entry, fd) for entry, fd in self._entries if entry != name]
        for fd in gone:
            os.close(fd)
        return len(gone)

    def apply(self, notification: Notification) -> None:
        """Do what FDSTORE, FDSTOREREMOVE and FDNAME in the message ask for. FDPOLL needs nothing: we never poll."""
        name = notification.assignments.get("FDNAME", DEFAULT_NAME)
        if notification.assignments.get("FDSTOREREMOVE") == "1":
            self.remove(name)
        elif notification.assignments.get("FDSTORE") == "1":
            for fd in notification.fds:
                self.add(name, fd)

    def close(self) -> None:
        """Close everything; idempotent."""
        for _, fd in self._entries:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._entries = []


def _is_name(name: str) -> bool:
    """Say whether LISTEN_FDNAMES can carry this name."""
    return 0 < len(name) <= NAME_CHARS_MAX and ":" not in name and name.isascii() and name.isprintable()


def _same_file(one: int, other: int) -> bool:
    """Say whether two fds are one open file.

    systemd asks kcmp(2) first. Device and inode are as good for memfds and sockets, which are all that comes here;
    two opens of one device node would be taken for one, so those never count as the same.
    """
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) and not stat.S_ISCHR(a.st_mode)
