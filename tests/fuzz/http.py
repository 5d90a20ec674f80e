"""HTTP requests in pieces: a client's bytes never raise, and every connection ends.

Allowed exceptions: none.
"""

import socket
from collections.abc import Callable, Iterable

from oxidize.net.http import CONNECTION_SECS_MAX, HttpServer
from oxidize.runtime.http_endpoints import make_respond
from tests.fuzz.script import Script

PIECES = (
    b"GET /health HTTP/1.1\r\nHost: a\r\n",
    b"HEAD /metrics?x=1 HTTP/1.1\r\nHost: a\r\n",
    b"GET http://a/ready HTTP/1.1\r\nHost: a\r\n",
    b"POST / HTTP/1.0\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: x\r\nConnection: upgrade\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"X: " + b"y" * 9000 + b"\r\n",
)


class Loop:
    """Descriptors and their callbacks; every one is ready at any time, as far as its socket allows."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[], None]] = {}

    def register(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self.callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        del self.callbacks[fd]

    def run_once(self) -> None:
        for callback in list(self.callbacks.values()):
            callback()


class Listener(socket.socket):
    """Hands out connections as a listening socket does."""

    def __init__(self) -> None:
        self.waiting: list[socket.socket] = []

    def fileno(self) -> int:
        return -1

    def accept(self) -> tuple[socket.socket, None]:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop(0), None


def run(data: bytes) -> None:
    script = Script(data)
    loop, listener, now = Loop(), Listener(), 0.0
    respond = make_respond(lambda: "healthy", lambda: (b"metric 1\n" * script.number(4000), "text/plain"))
    server = HttpServer(listener, respond, loop.register, loop.unregister, lambda: now)
    clients: list[socket.socket] = []
    while script:
        step = script.number(len(PIECES) + 6)
        if not clients or step == len(PIECES) + 1:
            client, accepted = socket.socketpair()
            client.setblocking(False)
            clients.append(client)
            listener.waiting.append(accepted)
        client = script.pick(clients)
        piece = PIECES[step] if step < len(PIECES) else script.some(80)
        try:
            if step == len(PIECES) + 2:
                client.shutdown(socket.SHUT_WR)
            elif step == len(PIECES) + 3:
                clients.remove(client)
                client.close()
            elif step == len(PIECES) + 4:
                client.recv(65536)
            else:
                client.send(piece)
        except OSError:
            pass  # the server closed its end, or has not read yet
        if script.flag():
            loop.run_once()
        now += script.number(3) / 4
        server.handle_timeout(now)
    loop.run_once()
    server.handle_timeout(now + CONNECTION_SECS_MAX)
    assert server.busy == 0, f"{server.busy} connections outlive their time"
    server.close()
    assert not loop.callbacks
    for each in (*clients, *listener.waiting):
        each.close()


def seeds() -> Iterable[bytes]:
    for first in range(5):
        for second in range(len(PIECES)):
            # A piece: its number, the client, "run the loop", the time.
            yield bytes([0, 1, 14, first, 0, 0, 0, second, 0, 1, 0, 5, 0, 1, 0, 5, 0, 1, 1])
    yield bytes([200, 0, 13, 0, 0, 0]) + bytes([0, 0, 0, 0, 13, 40, *b"GET /health HTTP/1.0\r\n\r\n", 1, 0])
