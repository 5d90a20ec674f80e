"""A server of short connections without a thread, driven by its owner's epoll loop.

The rule: it never waits and never takes long, since the data path runs in the same loop; and everything that a client
can make it hold is bounded. Predecessor and successor share the listener's file description, so nothing is ever set on
it: pausing means only that this process stops polling it.

Sources: accept(2), epoll(7).
"""

import errno
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

ACCEPTS_PER_WAKEUP_MAX = 16  # then the loop serves packets
ACCEPT_RETRY_SECS = 1.0  # after the process or the system ran out of descriptors or memory

# accept(2): these errors concern only the connection to be accepted, which is gone.
_ACCEPT_GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}

Register = Callable[[int, int, Callable[[], None]], None]  # (descriptor, epoll events, callback)
Unregister = Callable[[int], None]


class Limits(NamedTuple):
    """connections: open at once; a further one closes the oldest idle one. secs: from accept to close."""

    connections: int
    secs: float


class ServedConnection(ABC):
    """One accepted connection. deadline: when it is closed, on the server's clock."""

    __slots__ = ("deadline", "socket")

    def __init__(self, accepted: socket.socket, deadline: float) -> None:
        self.socket = accepted
        self.deadline = deadline

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether no answer is being sent."""

    @property
    @abstractmethod
    def events(self) -> int:
        """The epoll events that the connection waits for."""

    @abstractmethod
    def advance(self) -> bool:
        """Receive or send as far as possible in a moment; return whether the connection is still open."""


Connect = Callable[[socket.socket, float], ServedConnection]  # (accepted, deadline)


class StreamServer:
    """Serves the connections to a listening socket. connect: makes what serves one; it may import what that needs.

    Its owner drives it only through: the callbacks that it registers (a second registration of a descriptor replaces
    the first); `handle_timeout` when `next_deadline` has passed; `pause`, `resume` and `close`. The listener stays the
    owner's: it must be non-blocking, and is never closed here.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Connect,
        limits: Limits,
        register: Register,
        unregister: Unregister,
        clock: Callable[[], float],
    ) -> None:
        self._listener = listener
        self._connect = connect
        self._limits = limits
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self._connections: dict[int, ServedConnection] = {}  # by descriptor; the oldest first
        self._is_listening = False
        self._retry_at: float | None = None
        self.resume()

    @property
    def busy(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def pause(self) -> None:
        """Stop accepting connections; open ones are still served. Idempotent."""
        self._retry_at = None
        self._listen(False)

    def resume(self) -> None:
        """Accept connections again. Idempotent."""
        self._retry_at = None
        self._listen(True)

    def close(self) -> None:
        """Pause, and close every connection. Idempotent."""
        self.pause()
        for connection in list(self._connections.values()):
            self._drop(connection)

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is due, on the scale of the clock, or None."""
        deadlines = [connection.deadline for connection in list(self._connections.values())[:1]]
        if self._retry_at is not None:
            deadlines.append(self._retry_at)
        return min(deadlines, default=None)

    def handle_timeout(self, now: float) -> None:
        """Close every connection whose time is up, and accept again after a shortage."""
        for connection in list(self._connections.values()):
            if connection.deadline > now:
                break  # all have the same time limit, so the oldest expires first
            self._drop(connection)
        if self._retry_at is not None and self._retry_at <= now:
            self.resume()

    def _listen(self, is_listening: bool) -> None:
        if is_listening == self._is_listening:
            return
        if is_listening:
            try:
                self._register(self._listener.fileno(), select.EPOLLIN, self._on_acceptable)
            except OSError:  # ENOSPC, ENOMEM: epoll_ctl(2)
                self._retry_at = self._clock() + ACCEPT_RETRY_SECS
                return
        else:
            self._unregister(self._listener.fileno())
        self._is_listening = is_listening

    def _on_acceptable(self) -> None:
        for _ in range(ACCEPTS_PER_WAKEUP_MAX):
            if not self._is_listening:
                return
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _ACCEPT_GONE:
                    # Out of descriptors or memory: the connection waits in the kernel, and retrying at once would
                    # only keep the processor busy.
                    self._listen(False)
                    self._retry_at = self._clock() + ACCEPT_RETRY_SECS
                    return
                continue
            self._admit(accepted)

    def _admit(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        if len(self._connections) >= self._limits.connections:
            oldest_first = list(self._connections.values())
            self._drop(next((connection for connection in oldest_first if connection.is_idle), oldest_first[0]))
        connection = self._connect(accepted, self._clock() + self._limits.secs)
        try:
            self._register(accepted.fileno(), connection.events, partial(self._on_ready, connection))
        except OSError:  # no room in the kernel costs this connection
            accepted.close()
            return
        self._connections[accepted.fileno()] = connection

    def _on_ready(self, connection: ServedConnection) -> None:
        wanted = connection.events
        try:
            is_open = connection.advance()
        except BaseException:  # cleans up, and raises it again
            # A bug in what answers: the exception is for the top of the loop, but the client need not wait for it.
            self._drop(connection)
            raise
        if not is_open:
            self._drop(connection)
        elif connection.events != wanted:
            self._register(connection.socket.fileno(), connection.events, partial(self._on_ready, connection))

    def _drop(self, connection: ServedConnection) -> None:
        descriptor = connection.socket.fileno()
        del self._connections[descriptor]
        self._unregister(descriptor)
        connection.socket.close()
