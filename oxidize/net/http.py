"""A small HTTP/1.1 server without a thread, driven by its owner's epoll loop.

The rule: it never waits and never takes long, since the data path runs in the same loop; everything that a client can
make it hold is bounded; and a client's bytes never raise. A request is answered as soon as its head is complete: what
follows the head is read and discarded without being parsed, so one call parses EVENTS_PER_ADVANCE_MAX events at most,
and a connection HEAD_LINES_MAX lines. Predecessor and successor share the listener's file description, so nothing is
ever set on it: pausing means only that this process stops polling it.

Sources: RFC 9112 by way of h11, RFC 9110; epoll(7).
"""

import errno
import re
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import h11

CONNECTIONS_MAX = 64  # a further one closes the oldest idle one
CONNECTION_SECS_MAX = 5.0  # from accept to close, for every client
ACCEPTS_PER_WAKEUP_MAX = 16  # then the loop serves packets
ACCEPT_RETRY_SECS = 1.0  # after the process or the system ran out of descriptors or memory
REQUEST_HEAD_BYTES_MAX = 8192
HEAD_LINES_MAX = 128  # each line costs the parser some microseconds
REQUEST_BODY_BYTES_MAX = 65_536  # no request here needs a body: it is read and discarded
LINGER_BYTES_MAX = 262_144  # read and discarded after a response; then the connection is closed
EVENTS_PER_ADVANCE_MAX = 2  # the head of a request, and a look at what follows it: whether there is a body
RECEIVE_BYTES_MAX = 16_384  # one read

_HEAD_END = re.compile(rb"\n\r?\n")

# accept(2): these errors concern only the connection to be accepted, which is gone.
_ACCEPT_GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}

Register = Callable[[int, int, Callable[[], None]], None]  # (descriptor, epoll events, callback)
Unregister = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a request; its length, and that the connection closes, are added when it is sent."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Respond = Callable[[str, str], Response]  # (method, path) -> response; the method is GET or HEAD


class HttpServer:
    """Answers the requests that arrive at a listening socket, one for each connection.

    Its owner drives it only through: the callbacks that it registers (a second registration of a descriptor replaces
    the first); `handle_timeout` when `next_deadline` has passed; `pause`, `resume` and `close`. The listener stays the
    owner's: it must be non-blocking, and is never closed here.
    """

    def __init__(
        self,
        listener: socket.socket,
        respond: Respond,
        register: Register,
        unregister: Unregister,
        clock: Callable[[], float],
    ) -> None:
        self._listener = listener
        self._respond = respond
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self._connections: dict[int, _Connection] = {}  # by descriptor; the oldest first
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
        if len(self._connections) >= CONNECTIONS_MAX:
            oldest_first = list(self._connections.values())
            self._drop(next((connection for connection in oldest_first if connection.is_idle), oldest_first[0]))
        connection = _Connection(accepted, self._respond, self._clock() + CONNECTION_SECS_MAX)
        try:
            self._register(accepted.fileno(), connection.events, partial(self._on_ready, connection))
        except OSError:  # no room in the kernel costs this connection
            accepted.close()
            return
        self._connections[accepted.fileno()] = connection

    def _on_ready(self, connection: "_Connection") -> None:
        wanted = connection.events
        try:
            is_open = connection.advance()
        except BaseException:
            # A bug in the responder: the exception is for the top of the loop, but the client need not wait for it.
            self._drop(connection)
            raise
        if not is_open:
            self._drop(connection)
        elif connection.events != wanted:
            self._register(connection.socket.fileno(), connection.events, partial(self._on_ready, connection))

    def _drop(self, connection: "_Connection") -> None:
        descriptor = connection.socket.fileno()
        del self._connections[descriptor]
        self._unregister(descriptor)
        connection.socket.close()


class _Connection:
    """One connection: reads one request, writes one response, and lets the client close first where that matters."""

    __slots__ = (
        "_head_lines",
        "_is_lingering",
        "_lingered_bytes",
        "_outgoing",
        "_protocol",
        "_request",
        "_respond",
        "deadline",
        "socket",
    )

    def __init__(self, accepted: socket.socket, respond: Respond, deadline: float) -> None:
        self.socket = accepted
        self.deadline = deadline
        self._respond = respond
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_HEAD_BYTES_MAX)
        self._request: h11.Request | None = None
        self._head_lines = 0
        self._outgoing = memoryview(b"")
        self._is_lingering = False
        self._lingered_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether no response is being sent."""
        return not self._outgoing

    @property
    def events(self) -> int:
        """The epoll events that the connection waits for."""
        return select.EPOLLOUT if self._outgoing else select.EPOLLIN

    def advance(self) -> bool:
        """Receive or send as far as possible; return whether the connection is still open."""
        try:
            return self._send() if self._outgoing else self._receive()
        except BlockingIOError:
            return True
        except OSError:
            return False  # reset by the client

    def _receive(self) -> bool:
        data = self.socket.recv(RECEIVE_BYTES_MAX)
        if self._is_lingering:
            self._lingered_bytes += len(data)
            return bool(data) and self._lingered_bytes <= LINGER_BYTES_MAX
        try:
            answer = self._parse(data)
        except h11.RemoteProtocolError as error:
            answer = _refusal(HTTPStatus(error.error_status_hint))
        if answer is None:
            return bool(data)
        self._outgoing = memoryview(self._encode(answer))
        return self._send()

    def _parse(self, data: bytes) -> Response | None:
        """Parse what the client has sent; return the response to a complete head, None while more of it is needed.

        Raises h11.RemoteProtocolError for bytes that are not HTTP.
        """
        end = _HEAD_END.search(data)
        self._head_lines += data.count(b"\n", 0, end.start() if end is not None else len(data))
        if self._head_lines > HEAD_LINES_MAX:
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._protocol.receive_data(data)
        request = self._protocol.next_event()
        if not isinstance(request, h11.Request):
            return None  # more is needed, or the client went away
        self._request = request
        if request.method not in {b"GET", b"HEAD"}:
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "GET, HEAD"),))
        if int(dict(request.headers).get(b"content-length", b"0")) > REQUEST_BODY_BYTES_MAX:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._protocol.next_event()  # the end of the request, unless it has a body: `_send` asks for the difference
        return self._respond(request.method.decode("ascii"), _path(request.target))

    def _encode(self, response: Response) -> bytes:
        headers = [
            *response.headers,
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
        ]
        status = HTTPStatus(response.status)
        head = self._protocol.send(h11.Response(status_code=status, reason=status.phrase, headers=headers)) or b""
        is_head = self._request is not None and self._request.method == b"HEAD"
        body = b"" if is_head else self._protocol.send(h11.Data(data=response.body)) or b""
        return head + body

    def _send(self) -> bool:
        sent = self.socket.send(self._outgoing, socket.MSG_NOSIGNAL)
        self._outgoing = self._outgoing[sent:]
        if self._outgoing:
            return True
        if self._protocol.their_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED}:
            return False
        # More of the request is on its way. Closing now would reset the connection, and the client might lose the
        # response before reading it (RFC 9112 section 9.6).
        self.socket.shutdown(socket.SHUT_WR)
        self._is_lingering = True
        return True


def _refusal(status: HTTPStatus, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status, f"{status.phrase}.\n".encode(), headers=headers)


def _path(target: bytes) -> str:
    """Return the path of a request's target, which may be a complete URI (RFC 9112 section 3.2.2)."""
    text = target.decode("ascii", "replace").partition("?")[0]
    if text.lower().startswith(("http://", "https://")):
        text = "/" + text.partition("//")[2].partition("/")[2]
    return text
