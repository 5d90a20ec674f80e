"""One connection of a takeover: messages and file descriptors over a Unix socket, and the process at its other end.

The rule: nothing here blocks but `connect`, and no descriptor is ever lost. A descriptor that arrives is close-on-exec
from its first instant (MSG_CMSG_CLOEXEC), belongs to the receiver, and is closed here if its message is not delivered.
The peer is known by its pidfd, never by its number, which may be used again.

Sources: unix(7) SCM_RIGHTS and SO_PEERCRED, cmsg(3), recvmsg(2), pidfd_open(2), pidfd_send_signal(2). SOCK_SEQPACKET
keeps the bounds of messages and reports the close of the other end.
"""

import array
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from oxidize.errors import DecodeError, StateError
from oxidize.takeover.connection import PeerProcess, connect_socket
from oxidize.takeover.messages import MESSAGE_BYTES_MAX, Message, decode, encode

FDS_PER_MESSAGE_MAX = 253  # SCM_MAX_FD
BATCH_MESSAGES_MAX = 1_024  # more than a send buffer holds: a dead peer's messages are all read, a flood is not

_INT_SIZE = array.array("i").itemsize
_NO_LINGER = struct.pack("@ii", 0, 0)


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


class Received(NamedTuple):
    """A message and the descriptors that came with it, which now belong to the receiver."""

    message: Message
    fds: tuple[int, ...] = ()


class ChannelBatch:
    """All that a channel held at one moment; `violation` is the breach of protocol after `received`, or empty."""

    def __init__(self, *, closed: bool = False) -> None:
        self.received: list[Received] = []
        self.closed = closed
        self.violation = ""


class Channel:
    """A connection to a peer, non-blocking. It owns its socket and the peer's pidfd."""

    def __init__(self, connection: socket.socket) -> None:
        """Own the socket, and close it if this raises TakeoverError."""
        try:
            connection.setblocking(False)
            self.peer = PeerProcess.of(connection)
        except BaseException:  # cleans up, and raises it again
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
        self.send_encoded(encode(message), fds)

    def send_encoded(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send what `encode` has returned, as `send` does."""
        if len(fds) > FDS_PER_MESSAGE_MAX:
            raise StateError(f"{len(fds)} descriptors in a message; expected at most {FDS_PER_MESSAGE_MAX}: send more")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)

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


def connect(path: Path, timeout: float) -> Channel | None:
    """Connect to the process that listens at a path, or return None if no process does.

    Blocks while the backlog of that process is full, at most `timeout` seconds. Raises TakeoverError if the process
    cannot be reached or watched.
    """
    connection = connect_socket(path, timeout)
    return Channel(connection) if connection is not None else None
