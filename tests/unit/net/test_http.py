"""The HTTP server answers without waiting; a client's bytes never raise, and what a client can hold is bounded."""

import contextlib
import errno
import random
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import pytest

from oxidize.net import http, http_connection
from oxidize.net.http import HttpServer
from oxidize.net.http_response import Respond, Response
from oxidize.net.stream_server import ACCEPT_RETRY_SECS
from oxidize.runtime.http_endpoints import State, make_respond


class World:
    """A listener on the loopback, a loop, a clock, and clients."""

    def __init__(self, respond: Respond) -> None:
        self.now = 100.0
        self.is_full = False  # whether the kernel has room for another descriptor to watch
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.requests: list[tuple[str, str]] = []
        self.clients: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.setblocking(False)

        def recorded(method: str, path: str) -> Response:
            self.requests.append((method, path))
            return respond(method, path)

        self.server = HttpServer(self.listener, recorded, self.register, self.unregister, lambda: self.now)

    def register(self, descriptor: int, events: int, callback: Callable[[], None]) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if descriptor in self.callbacks:
            self.epoll.modify(descriptor, events)
        else:
            self.epoll.register(descriptor, events)
        self.callbacks[descriptor] = callback

    def unregister(self, descriptor: int) -> None:
        del self.callbacks[descriptor]
        self.epoll.unregister(descriptor)

    def run(self) -> None:
        """Run callbacks until nothing is ready."""
        while ready := self.epoll.poll(0):
            for descriptor, _ in ready:
                if callback := self.callbacks.get(descriptor):
                    callback()

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname())
        client.settimeout(5)
        self.clients.append(client)
        client.sendall(data)
        self.run()
        return client

    def read(self, client: socket.socket) -> bytes:
        """Return everything that the server sends until it closes the connection."""
        received = bytearray()
        client.setblocking(False)
        try:
            while True:
                self.run()
                try:
                    chunk = client.recv(65_536)
                except BlockingIOError:
                    # Nothing to read and nothing ready: either the kernel is busy, or the server has stopped.
                    waiting: list[Any] = [client, self.epoll]
                    assert select.select(waiting, [], [], 5)[0], f"the server is stuck after {received!r}"
                    continue
                if not chunk:
                    return bytes(received)
                received += chunk
        finally:
            client.settimeout(5)

    def exchange(self, data: bytes) -> bytes:
        client = self.connect(data)
        answer = self.read(client)
        client.close()
        self.run()
        return answer

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.close()
        self.listener.close()
        self.epoll.close()


def pages(state: State = "healthy") -> Respond:
    return make_respond(lambda: state, lambda: (b"metric 1\n", "text/plain; version=1.0.0"))


@pytest.fixture
def world() -> Iterator[World]:
    world = World(pages())
    yield world
    world.close()


def request(path: str = "/health", method: str = "GET", headers: str = "", body: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}".encode()


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator, answer
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


# --- Responses ---


def test_a_request_is_answered_and_the_connection_closed(world: World) -> None:
    status, headers, body = parse(world.exchange(request()))
    assert status == 200
    assert body == b'{"status":"healthy","ready":true}'
    assert headers == {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "cache-control": "no-store",
    }
    assert world.requests == [("GET", "/health")]
    assert world.server.busy == 0


def test_a_head_request_gets_the_headers_of_get_and_no_body(world: World) -> None:
    status, headers, body = parse(world.exchange(request(method="HEAD")))
    assert (status, headers["content-length"], body) == (200, "33", b"")


@pytest.mark.parametrize("target", ["http://localhost:9090/health", "HTTP://localhost/health?x=/y", "/health?"])
def test_a_request_target_may_be_a_complete_uri(world: World, target: str) -> None:
    assert parse(world.exchange(request(target)))[0] == 200


def test_a_request_of_http_1_0_is_answered(world: World) -> None:
    assert parse(world.exchange(b"GET /health HTTP/1.0\r\n\r\n"))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_a_method_other_than_get_and_head_is_refused_with_the_allowed_ones(world: World, method: str) -> None:
    client = world.connect(request(method=method, headers="Content-Length: 5\r\n", body="hello"))
    client.shutdown(socket.SHUT_WR)
    status, headers, _ = parse(world.read(client))
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert world.requests == []


# --- Requests in pieces, and malformed requests ---


def test_a_request_may_arrive_byte_by_byte(world: World) -> None:
    client = world.connect()
    for byte in request():
        client.send(bytes([byte]))
        world.run()
    assert parse(world.read(client))[0] == 200


def test_a_request_body_is_discarded_up_to_a_limit(world: World) -> None:
    size = http_connection.REQUEST_BODY_BYTES_MAX
    assert parse(world.exchange(request(headers=f"Content-Length: {size}\r\n", body="x" * size)))[0] == 200
    client = world.connect(request(headers=f"Content-Length: {size + 1}\r\n", body="x" * (size + 1)))
    assert parse(world.read(client))[0] == 413


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), 400),  # TLS
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /" + b"a" * 100_000, 431),
    ],
)
def test_a_malformed_request_is_refused(world: World, data: bytes, status: int) -> None:
    client = world.connect(data)
    client.shutdown(socket.SHUT_WR)
    assert parse(world.read(client))[0] == status
    assert world.requests == []


def test_a_connection_that_its_client_resets_is_dropped(world: World) -> None:
    for data in (b"", b"GET /hea"):
        client = world.connect(data)
        assert world.server.busy == 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not close
        client.close()
        world.run()
        assert world.server.busy == 0


def test_random_bytes_never_raise(world: World) -> None:
    seed = 20_240_607
    rng = random.Random(seed)
    valid = request("/metrics", headers="Transfer-Encoding: chunked\r\n", body="5\r\nhello\r\n0\r\n\r\n")
    for number in range(400):
        data = bytearray(valid if number % 2 else rng.randbytes(rng.randrange(200)))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        client = world.connect(bytes(data[: rng.randrange(len(data) + 1)] if number % 3 == 0 else data))
        client.shutdown(socket.SHUT_WR)
        answer = world.read(client)
        assert answer == b"" or parse(answer)[0] in {200, 400, 404, 405, 413, 431, 501}, f"seed {seed}, {number}"
        client.close()
        world.run()
        assert world.server.busy == 0


# --- Limits ---

CHUNKED = request(headers="Transfer-Encoding: chunked\r\n")
MANY_HEADERS = "".join(f"h{number}: x\r\n" for number in range(1500))


class CountingParser(h11.Connection):
    """An h11 connection that counts the bytes that it is given and the events that it returns."""

    fed_bytes = 0
    events = 0

    def receive_data(self, data: bytes) -> None:
        self.fed_bytes += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        self.events += 1
        return super().next_event()


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ([CHUNKED + b"1\r\na\r\n" * 2500], {200}),
        ([CHUNKED, *[b"1\r\na\r\n" * 2500] * 20], {200}),
        ([CHUNKED, *[b"1;ext=x\r\na\r\n" * 1200] * 20], {200}),
        ([request(headers="Content-Length: 60000\r\n"), *[b"x" * 15_000] * 4], {200}),
        ([request(method="POST", headers="Transfer-Encoding: chunked\r\n"), *[b"1\r\na\r\n" * 2500] * 20], {405}),
        ([request() * 300], {200}),
        ([request(headers=MANY_HEADERS)], {431}),
        ([b"GET /health HTTP/1.1\r\nHost: a\r\n", *[b"h: x\r\n" * 20] * 50], {431}),
        ([b"GET /" + b"a" * 16_000, *[b"a" * 16_000] * 10], {431}),
    ],
)
def test_what_follows_the_head_of_a_request_is_never_parsed(
    monkeypatch: pytest.MonkeyPatch, world: World, pieces: list[bytes], statuses: set[int]
) -> None:
    parsers: list[CountingParser] = []

    def make(*args: Any, **options: Any) -> CountingParser:
        parsers.append(CountingParser(*args, **options))
        return parsers[-1]

    monkeypatch.setattr(h11, "Connection", make)
    client = world.connect()
    for piece in pieces:
        (parser,) = parsers
        before, fed_before = parser.events, parser.fed_bytes
        with contextlib.suppress(OSError):  # the server may close the connection before the client has sent all
            client.sendall(piece)
        world.run()
        assert parser.events - before <= http_connection.EVENTS_PER_ADVANCE_MAX
        assert parser.fed_bytes - fed_before <= http_connection.RECEIVE_BYTES_MAX
    assert parsers[0].fed_bytes <= http_connection.RECEIVE_BYTES_MAX, (
        "a head that is too long, or what follows a complete one"
    )
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        assert parse(world.read(client))[0] in statuses
    world.run()
    assert world.server.busy <= 1


def test_a_request_is_answered_before_its_body_arrives(world: World) -> None:
    client = world.connect(CHUNKED)
    assert parse(world.read(client))[0] == 200
    assert world.requests == [("GET", "/health")]


def test_what_a_client_sends_after_its_answer_is_bounded(world: World) -> None:
    client = world.connect(CHUNKED)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 4 * http_connection.LINGER_BYTES_MAX:
            sent += client.send(b"x" * 16_384)
            world.run()
    assert world.server.busy == 0
    assert sent <= 2 * http_connection.LINGER_BYTES_MAX


def test_a_content_length_of_thousands_of_digits_is_refused(world: World) -> None:
    client = world.connect(request(headers=f"Content-Length: {'9' * 5000}\r\n"))
    client.shutdown(socket.SHUT_WR)
    assert parse(world.read(client))[0] in {400, 413}


def test_a_slow_client_does_not_delay_other_clients() -> None:
    body = b"x" * 8_000_000  # more than the kernel buffers
    world = World(lambda _method, path: Response(200, body if path == "/big" else b"small"))
    try:
        slow = world.connect(request("/big"))
        assert parse(world.exchange(request("/small")))[2] == b"small"
        assert world.server.busy == 1
        assert parse(world.read(slow))[2] == body
        assert world.server.busy == 0
    finally:
        world.close()


def test_every_connection_is_closed_after_its_time_limit(world: World) -> None:
    assert world.server.next_deadline() is None
    first = world.connect(b"GET /")
    world.now += 1
    second = world.connect()
    assert world.server.next_deadline() == 100.0 + http.CONNECTION_SECS_MAX
    world.server.handle_timeout(100.0 + http.CONNECTION_SECS_MAX - 0.001)
    assert world.server.busy == 2
    world.server.handle_timeout(100.0 + http.CONNECTION_SECS_MAX)
    assert world.server.busy == 1
    assert first.recv(1) == b""
    assert world.server.next_deadline() == 101.0 + http.CONNECTION_SECS_MAX
    second.sendall(request())
    assert parse(world.read(second))[0] == 200
    assert world.server.next_deadline() is None


def test_the_oldest_idle_connection_is_closed_for_a_new_one(world: World) -> None:
    clients = [world.connect() for _ in range(http.CONNECTIONS_MAX)]
    assert world.server.busy == http.CONNECTIONS_MAX
    newest = world.connect()
    assert world.server.busy == http.CONNECTIONS_MAX
    assert clients[0].recv(1) == b""
    for client in (clients[1], newest):
        client.sendall(request())
        assert parse(world.read(client))[0] == 200


class Refusing(socket.socket):
    """A listener whose accept fails."""

    def __init__(self, listener: socket.socket, *failures: int) -> None:
        self.listener, self.failures = listener, list(failures)

    def fileno(self) -> int:
        return self.listener.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise OSError(self.failures.pop(0), "injected")
        return self.listener.accept()


@pytest.mark.parametrize("shortage", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_of_descriptors_pauses_accepting_for_a_while(world: World, shortage: int) -> None:
    world.server._listener = Refusing(world.listener, shortage)
    client = world.connect(request())
    assert world.listener.fileno() not in world.callbacks  # or the loop would spin
    assert world.server.next_deadline() == world.now + ACCEPT_RETRY_SECS
    world.server.handle_timeout(world.now + ACCEPT_RETRY_SECS)
    assert parse(world.read(client))[0] == 200
    assert world.server.next_deadline() is None


def test_without_room_for_another_descriptor_a_connection_is_closed(world: World) -> None:
    world.is_full = True
    assert world.read(world.connect()) == b""
    assert world.server.busy == 0
    world.is_full = False
    assert parse(world.exchange(request()))[0] == 200


def test_a_server_that_cannot_watch_its_listener_tries_again(world: World) -> None:
    world.server.pause()
    world.is_full = True
    world.server.resume()
    world.is_full = False
    due = world.server.next_deadline()
    assert due is not None
    world.now = due
    world.server.handle_timeout(world.now)
    assert parse(world.exchange(request()))[0] == 200


def test_a_connection_that_ends_before_it_is_accepted_is_skipped(world: World) -> None:
    world.server._listener = Refusing(world.listener, errno.ECONNABORTED)
    assert parse(world.exchange(request()))[0] == 200


# --- Handing over ---


def test_a_paused_server_leaves_new_connections_to_its_successor(world: World) -> None:
    serving = world.connect(b"GET /health HTTP/1.1\r\n")
    world.server.pause()
    world.server.pause()
    waiting = world.connect(request())
    assert world.server.busy == 1
    serving.sendall(b"Host: a\r\n\r\n")
    assert parse(world.read(serving))[0] == 200  # an accepted connection is served
    assert world.server.busy == 0
    # The successor has its own descriptor of the same file description.
    with world.listener.dup() as inherited:
        successor = HttpServer(inherited, pages("draining"), world.register, world.unregister, lambda: world.now)
        assert parse(world.read(waiting))[0] == 503
        successor.close()
    world.server.resume()
    world.server.resume()
    assert parse(world.exchange(request()))[0] == 200


def test_a_pause_outlasts_a_shortage(world: World) -> None:
    world.server._listener = Refusing(world.listener, errno.EMFILE)
    world.connect(request())
    world.server.pause()
    world.server.handle_timeout(world.now + 60)
    assert world.listener.fileno() not in world.callbacks


def test_closing_the_server_keeps_only_the_listener_open(world: World) -> None:
    client = world.connect()
    world.server.close()
    world.server.close()
    assert world.callbacks == {}
    assert client.recv(1) == b""
    assert world.listener.fileno() >= 0
    world.server.handle_timeout(world.now + 60)


def test_a_bug_in_the_responder_reaches_the_loop_and_closes_the_connection() -> None:
    def broken(_method: str, _path: str) -> Response:
        raise ZeroDivisionError

    world = World(broken)
    try:
        with pytest.raises(ZeroDivisionError):
            world.connect(request())
        assert world.server.busy == 0
        assert world.clients[0].recv(1) == b""
    finally:
        world.close()
