"""The requests that a holder answers: to start a successor, and to tell of the end of the service.

Rule: only the holder's own user and root are heard (SO_PEERCRED), and no request can make the holder wait or grow. The
name is an abstract one: it needs no folder, and cannot vanish. Two messages are known: `{"start": [...]}`, with the
coordinator's socket (SCM_RIGHTS), is answered by `{"pid": ...}` with a pidfd or by `{"error": ...}`; each connection
that is open at the end gets `{"ended": STATUS}`, and a moment to close, for the end of PID 1 ends all processes.
Sources: unix(7), pid_namespaces(7).
"""

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial

from oxidize.clock import boot_time

CONNECTIONS_MAX = 16
REQUEST_BYTES_MAX = 16_384
FAREWELL_SECS = 1.0  # for those that wait for the end
_UCRED = struct.Struct("iII")

Start = Callable[[Sequence[str], int], tuple[int, int]]


class Requests:
    """The listening end. start: starts a successor by its command and control fd; returns its pid and a pidfd."""

    def __init__(self, name: str, start: Start) -> None:
        self._start = start
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(name)
        self._listener.listen(CONNECTIONS_MAX)
        self._connections: dict[int, socket.socket] = {}

    def sources(self) -> dict[int, Callable[[], None]]:
        """Return what to call when which descriptor is readable."""
        sources: dict[int, Callable[[], None]] = {
            fd: partial(self._read, connection) for fd, connection in self._connections.items()
        }
        if len(self._connections) < CONNECTIONS_MAX:
            sources[self._listener.fileno()] = self._accept
        return sources

    def finish(self, status: int) -> None:
        """Tell all connections that the service has ended, and wait a moment for them to close."""
        self._listener.close()
        for connection in self._connections.values():
            _send(connection, {"ended": status})
        ends_at = boot_time() + FAREWELL_SECS
        while self._connections and (left := ends_at - boot_time()) > 0:
            poll = select.poll()
            for fd in self._connections:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(left * 1000):
                self._read(self._connections[fd])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in {0, os.geteuid()}:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection

    def _read(self, connection: socket.socket) -> None:
        fds: list[int] = []
        try:
            data, fds, flags, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, 1)
            request = json.loads(data) if data and not flags & socket.MSG_TRUNC else None
        except BlockingIOError:
            return
        except (OSError, ValueError, RecursionError):
            request = None
        command = request.get("start") if isinstance(request, dict) else None
        try:
            if isinstance(command, list) and command and all(isinstance(word, str) for word in command) and fds:
                self._answer_start(connection, command, fds[0])
            else:
                del self._connections[connection.fileno()]
                connection.close()
        finally:
            for fd in fds:
                os.close(fd)

    def _answer_start(self, connection: socket.socket, command: list[str], control_fd: int) -> None:
        try:
            pid, pidfd = self._start(command, control_fd)
        except (OSError, ValueError) as error:
            _send(connection, {"error": str(error)})
            return
        _send(connection, {"pid": pid}, pidfd)
        os.close(pidfd)


def _send(connection: socket.socket, message: dict[str, object], *fds: int) -> None:
    with contextlib.suppress(OSError):
        socket.send_fds(connection, [json.dumps(message).encode()], list(fds))
