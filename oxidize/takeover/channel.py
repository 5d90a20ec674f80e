"""One connection of a takeover: messages and file descriptors over a Unix socket, and the process at its other end.

The rule: nothing here blocks but `connect`, and no descriptor is ever lost. A descriptor that arrives is close-on-exec
from its first instant (MSG_CMSG_CLOEXEC), belongs to the receiver, and is closed here if its message is not delivered.
The peer is known by its pidfd, never by its number, which may be used again.

Sources: unix(7) SCM_RIGHTS and SO_PEERCRED, cmsg(3), recvmsg(2), pidfd_open(2), pidfd_send_signal(2). SOCK_SEQPACKET
keeps the bounds of messages and reports the close of the other end.
"""

import array
import contextlib
import errno
import os
import select
import signal
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from oxidize.errors import DecodeError, Phase, StateError, TakeoverError
from oxidize.takeover.messages import MESSAGE_BYTES_MAX, Message, decode, encode

FDS_PER_MESSAGE_MAX = 253  # SCM_MAX_FD
BATCH_MESSAGES_MAX = 1_024  # more than a send buffer holds: a dead peer's messages are all read, a flood is not
SO_PEERPIDFD = 77  # Linux 6.5; not in the socket module of Python 3.11

_INT_SIZE = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_TIMEVAL = struct.Struct("@ll")
_NO_LINGER = struct.pack("@ii", 0, 0)
NO_UID = -1  # what SO_PEERCRED gives for a socket that is not connected


def close_fds(fds: Iterable[int]) -> None:
    """Close every descriptor, also if closing another one fails."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def close_unasked(fds: Sequence[int]) -> None:
    """Close descriptors that a peer which is not trusted sent unasked, without waiting.

    The last close of a TCP socket waits for SO_LINGER, which its sender chooses (socket(7)).
    """
    for fd in fds:
        with contextlib.suppress(OSError):
            _forget_linger(fd)
    close_fds(fds)


def _forget_linger(fd: int) -> None:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    unasked = socket.socket(fileno=fd)
    try:
        unasked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    finally:
        unasked.detach()


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


@dataclass(frozen=True, slots=True)
class Received:
    """A message and the descriptors that came with it, which now belong to the receiver."""

    message: Message
    fds: tuple[int, ...] = ()


@dataclass(slots=True)
class ChannelBatch:
    """All that a channel held at one moment; `violation` is the breach of protocol after `received`, or empty."""

    received: list[Received] = field(default_factory=list)
    closed: bool = False
    violation: str = ""


class Channel:
    """A connection to a peer, non-blocking. It owns its socket and the peer's pidfd."""

    def __init__(self, connection: socket.socket) -> None:
        """Own the socket, and close it if this raises TakeoverError."""
        try:
            connection.setblocking(False)
            self.peer = PeerProcess.of(connection)
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        self._is_closed = False

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message with copies of at most FDS_PER_MESSAGE_MAX descriptors.

        Raises StateError if it cannot be encoded, OSError if the peer closed its end or does not read.
        """
        if len(fds) > FDS_PER_MESSAGE_MAX:
            raise StateError(f"{len(fds)} descriptors in a message; expected at most {FDS_PER_MESSAGE_MAX}: send more")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([encode(message)], rights, socket.MSG_NOSIGNAL)

    def receive(self) -> Received | None:
        """Return the next message, or None if the peer closed its end.

        Raises BlockingIOError if there is no message yet, DecodeError if the bytes are no message.
        """
        try:
            return self._receive()
        except ConnectionResetError:
            # The peer closed with unread messages in its queue (unix(7)). The kernel reports this once,
            # *before* the last messages of the peer, and one of these may be WITHDRAWN.
            return self._receive()

    def receive_all(self) -> ChannelBatch:
        """Return all messages that are there, at most BATCH_MESSAGES_MAX."""
        batch = ChannelBatch(closed=self._is_closed)
        while not batch.closed and len(batch.received) < BATCH_MESSAGES_MAX:
            try:
                received = self.receive()
            except BlockingIOError:
                return batch
            except DecodeError as error:
                # Nothing after it can be trusted, but the end of the connection still matters: the caller reads again
                # when the socket is readable again.
                batch.violation = str(error)
                return batch
            except OSError:
                received = None
            if received is None:
                batch.closed = True
            else:
                batch.received.append(received)
        return batch

    def discard(self) -> None:
        """Stop receiving, and close the descriptors of messages that were not received, without waiting."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # what is sent from here on fails at its sender
        while not (batch := self.receive_all()).closed and (batch.received or batch.violation):
            for received in batch.received:
                close_unasked(received.fds)

    def close(self) -> None:
        """Close socket and pidfd; idempotent."""
        self._is_closed = True
        self._socket.close()
        self.peer.close()

    def _receive(self) -> Received | None:
        space = socket.CMSG_SPACE(FDS_PER_MESSAGE_MAX * _INT_SIZE)
        data, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _INT_SIZE])
        try:
            if flags & socket.MSG_CTRUNC:
                raise DecodeError(f"only {len(fds)} descriptors of a message arrived: raise the limit of open files")
            if flags & socket.MSG_TRUNC:
                raise DecodeError(f"a message of more than {MESSAGE_BYTES_MAX} bytes")
            if not data:  # the end, or an empty datagram, which is no message of this protocol
                close_unasked(fds)
                return None
            return Received(decode(data), tuple(fds))
        except DecodeError:
            close_unasked(fds)
            raise


def credentials_of(connection: socket.socket) -> tuple[int, int]:
    """Return the pid and uid of the process at the other end, as the kernel had them when it connected or listened."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return pid, uid


def connect(path: Path, timeout: float) -> Channel | None:
    """Connect to the process that listens at a path, or return None if no process does.

    Blocks while the backlog of that process is full, at most `timeout` seconds. Raises TakeoverError if the process
    cannot be reached or watched.
    """
    connection = connect_socket(path, timeout)
    return Channel(connection) if connection is not None else None


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


def is_authorised(peer_uid: int, own_uid: int) -> bool:
    """Return whether a process of that user may take the sockets of this one: the same user, or root."""
    return peer_uid in {own_uid, 0}
