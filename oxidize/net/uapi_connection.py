"""One connection of `wg`: requests, and their answers in pieces.

The rule: a client's bytes never raise, and everything that a client can make a connection hold is bounded. Of a request
only the first lines are kept, since those that follow may be keys; a piece of an answer is made when the one before it
has been sent, one in each call, so that no packet waits for all of it.

Source: wireguard.com/xplatform, "Configuration Protocol".
"""

import select
import socket
from collections.abc import Callable, Iterator

from oxidize.net.stream_server import ServedConnection
from oxidize.takeover.connection import credentials_of

REQUEST_BYTES_MAX = 64 << 20  # a `wg setconf` of all peers, which is read and discarded
KEPT_BYTES_MAX = 4096  # of a request: what it asks for
RECEIVE_BYTES_MAX = 65_536  # one read

_END = b"\n\n"

Answer = Callable[[bytes, int], Iterator[bytes]]  # (the first lines of a request, uid of the other end) -> pieces


class UapiConnection(ServedConnection):
    """One connection, with any number of requests, one after the other."""

    __slots__ = ("_answer", "_kept", "_last", "_outgoing", "_pieces", "_received", "_size")

    def __init__(self, accepted: socket.socket, answer: Answer, deadline: float) -> None:
        super().__init__(accepted, deadline)
        self._answer = answer
        self._received = b""  # what followed the request that is being answered
        self._kept = bytearray()
        self._size = 0  # of the request until now
        self._last = b""  # its last byte
        self._pieces: Iterator[bytes] | None = None
        self._outgoing = memoryview(b"")

    @property
    def is_idle(self) -> bool:
        """Whether no answer is being sent."""
        return self._pieces is None

    @property
    def events(self) -> int:
        """The epoll events that the connection waits for."""
        return select.EPOLLIN if self.is_idle and not self._received else select.EPOLLOUT

    def advance(self) -> bool:
        """Receive, or send a piece; return whether the connection is still open."""
        try:
            if self._pieces is not None:
                self._send(self._pieces)
                return True
            data, self._received = self._received or self.socket.recv(RECEIVE_BYTES_MAX), b""
        except BlockingIOError:
            return True
        except OSError:
            return False  # it was closed at the other end
        return bool(data) and self._take(data)

    def _take(self, data: bytes) -> bool:
        """Take a part of a request, and begin to answer one that is complete; return False for one that is too long."""
        seen = len(self._last)
        end = (self._last + data).find(_END)
        taken = end + len(_END) - seen if end >= 0 else len(data)
        self._size += taken
        self._kept += data[: min(taken, KEPT_BYTES_MAX - len(self._kept))]
        self._last = data[taken - 1 : taken]
        if end >= 0:
            self._pieces = self._answer(bytes(self._kept), credentials_of(self.socket)[1])
            self._received = data[taken:]
            self._kept.clear()
            self._size, self._last = 0, b""
        return self._size <= REQUEST_BYTES_MAX

    def _send(self, pieces: Iterator[bytes]) -> None:
        if not self._outgoing:
            piece = next(pieces, None)
            if piece is None:
                self._pieces = None
                return
            self._outgoing = memoryview(piece)
        sent = self.socket.send(self._outgoing, socket.MSG_NOSIGNAL)
        self._outgoing = self._outgoing[sent:]
