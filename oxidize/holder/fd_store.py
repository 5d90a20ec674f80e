"""A file descriptor store and the messages that fill it, as systemd's service manager keeps them for a unit.

Rule: a message counts only if its sender is the service itself (`NotifyAccess=exec`: the main or the control process,
identified by SCM_CREDENTIALS, which a sender cannot forge). Source: sd_notify(3), sd_pid_notify_with_fds(3),
systemd.service(5) `FileDescriptorStoreMax=`, unix(7).
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass

STORE_MAX = 16  # FileDescriptorStoreMax= of oxidize-daemon.service
MESSAGE_BYTES_MAX = 4096  # systemd's own limit, PIPE_BUF
MESSAGE_FDS_MAX = 253  # unix(7), SCM_MAX_FD
NAME_CHARS_MAX = 255
DEFAULT_NAME = "stored"

_UCRED = struct.Struct("iII")  # pid, uid, gid
_SCM_CREDENTIALS = 2  # not in the socket module of every build
_CONTROL_BYTES = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * MESSAGE_FDS_MAX)


@dataclass(frozen=True, slots=True)
class Notification:
    """One datagram on the notify socket: its assignments, its sender's pid, and its fds, which the receiver owns."""

    assignments: Mapping[str, str]
    sender: int
    fds: tuple[int, ...]

    def close(self) -> None:
        """Close all fds of the message; the store has copies of those that it keeps."""
        for fd in self.fds:
            os.close(fd)


def bind_notify_socket(path: str) -> socket.socket:
    """Return a non-blocking datagram socket bound to `path` that receives the credentials of each sender."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind(path)
    return sock


def receive_notification(sock: socket.socket) -> Notification | None:
    """Return the next message, None if none is queued. A truncated message is returned without assignments."""
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
    """Named file descriptors that outlive the process that sent them. entries: names and fds, oldest first."""

    def __init__(self, limit: int = STORE_MAX) -> None:
        self._limit = limit
        self.entries: list[tuple[str, int]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The names, oldest first; several fds may share a name."""
        return tuple(name for name, _ in self.entries)

    def add(self, name: str, fd: int) -> bool:
        """Store a copy of `fd`; return False if the same file is stored already or the store is full, else True."""
        if len(self.entries) >= self._limit or any(_same_file(fd, kept) for _, kept in self.entries):
            return False
        self.entries.append((name if _is_name(name) else DEFAULT_NAME, os.dup(fd)))
        return True

    def remove(self, name: str) -> int:
        """Close all fds of this name and return their number."""
        gone = [fd for entry, fd in self.entries if entry == name]
        self.entries = [(entry, fd) for entry, fd in self.entries if entry != name]
        for fd in gone:
            os.close(fd)
        return len(gone)

    def apply(self, notification: Notification) -> None:
        """Apply FDSTORE, FDSTOREREMOVE and FDNAME of a message. FDPOLL is ignored: the store never polls its fds."""
        name = notification.assignments.get("FDNAME", DEFAULT_NAME)
        if notification.assignments.get("FDSTOREREMOVE") == "1":
            self.remove(name)
        elif notification.assignments.get("FDSTORE") == "1":
            for fd in notification.fds:
                self.add(name, fd)

    def close(self) -> None:
        """Close all fds; idempotent."""
        for _, fd in self.entries:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.entries = []


def _is_name(name: str) -> bool:
    """Return whether `name` is valid in LISTEN_FDNAMES."""
    return 0 < len(name) <= NAME_CHARS_MAX and ":" not in name and name.isascii() and name.isprintable()


def _same_file(one: int, other: int) -> bool:
    """Return whether two fds refer to the same file.

    systemd uses kcmp(2) first. Device and inode are sufficient for memfds and sockets; two opens of one character
    device (TUN) share an inode, so they never count as the same.
    """
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) and not stat.S_ISCHR(a.st_mode)
