"""One connection of the HTTP server: one request, and one response.

The rule: a client's bytes never raise, and everything that a client can make a connection hold is bounded: of a
response in pieces it holds one. A request is answered as soon as its head is complete: what follows the head is read
and discarded without being parsed, so one call parses EVENTS_PER_ADVANCE_MAX events at most, and a connection
HEAD_LINES_MAX lines.

Sources: RFC 9112 by way of h11, RFC 9110.
"""

import re
import select
import socket
from collections.abc import Iterator
from http import HTTPStatus

import h11

from oxidize.net.http_response import Respond, Response
from oxidize.net.stream_server import ServedConnection

REQUEST_HEAD_BYTES_MAX = 8192
HEAD_LINES_MAX = 128  # each line costs the parser some microseconds
REQUEST_BODY_BYTES_MAX = 65_536  # no request here needs a body: it is read and discarded
LINGER_BYTES_MAX = 262_144  # read and discarded after a response; then the connection is closed
EVENTS_PER_ADVANCE_MAX = 2  # the head of a request, and a look at what follows it: whether there is a body
RECEIVE_BYTES_MAX = 16_384  # one read

_HEAD_END = re.compile(rb"\n\r?\n")


class Connection(ServedConnection):
    """One connection: reads one request, writes one response, and lets the client close first where that matters."""

    __slots__ = (
        "_head_lines",
        "_is_lingering",
        "_lingered_bytes",
        "_more",
        "_outgoing",
        "_protocol",
        "_request",
        "_respond",
    )

    def __init__(self, accepted: socket.socket, respond: Respond, deadline: float) -> None:
        super().__init__(accepted, deadline)
        self._respond = respond
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_HEAD_BYTES_MAX)
        self._request: h11.Request | None = None
        self._head_lines = 0
        self._outgoing = memoryview(b"")
        self._more: Iterator[bytes] | None = None  # of the response
        self._is_lingering = False
        self._lingered_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether no response is being sent."""
        return not self._outgoing and self._more is None

    @property
    def events(self) -> int:
        """The epoll events that the connection waits for."""
        return select.EPOLLIN if self.is_idle else select.EPOLLOUT

    def advance(self) -> bool:
        """Receive or send as far as possible; return whether the connection is still open."""
        try:
            return self._receive() if self.is_idle else self._send()
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
        headers = [*response.headers, ("Content-Type", response.content_type), ("Connection", "close")]
        if response.more is None:  # else it is sent in chunks, or to HTTP/1.0 until the connection closes
            headers.append(("Content-Length", str(len(response.body))))
        status = HTTPStatus(response.status)
        head = self._protocol.send(h11.Response(status_code=status, reason=status.phrase, headers=headers)) or b""
        if self._request is not None and self._request.method == b"HEAD":
            return head
        self._more = response.more
        body = self._protocol.send(h11.Data(data=response.body)) or b""
        return head + body

    def _next_piece(self, pieces: Iterator[bytes]) -> memoryview:
        piece = next(pieces, None)
        if piece is None:
            self._more = None
        event = h11.EndOfMessage() if piece is None else h11.Data(data=piece)
        return memoryview(self._protocol.send(event) or b"")

    def _send(self) -> bool:
        if not self._outgoing and self._more is not None:
            self._outgoing = self._next_piece(self._more)
        sent = self.socket.send(self._outgoing, socket.MSG_NOSIGNAL)
        self._outgoing = self._outgoing[sent:]
        if not self.is_idle:
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
