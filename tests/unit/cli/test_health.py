"""The readiness of a server is known by a deadline, whatever it answers."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from oxidize.cli.health import ANSWER_BYTES_MAX, BODY_BYTES_MAX, REASON_CHARACTERS_MAX, _Answer, why_unready

WAIT_SECS = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Serve = Callable[[socket.socket], None]


class Played:
    """An HTTP server that answers one request as scripted by a test."""

    def __init__(self, family: socket.AddressFamily, host: str) -> None:
        self._listener = socket.create_server((host, 0), family=family)
        self._listener.settimeout(WAIT_SECS)
        self._thread: threading.Thread | None = None
        port = self._listener.getsockname()[1]
        self.address = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        self.asked = b""

    def answers(self, serve: Serve | bytes) -> None:
        def run() -> None:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(WAIT_SECS)
                while not self.asked.endswith(b"\r\n\r\n"):
                    self.asked += connection.recv(4096)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the other side has had enough
                    serve(connection) if callable(serve) else connection.sendall(serve)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        if self._thread is not None:
            self._thread.join()


@pytest.fixture
def server() -> Iterator[Played]:
    server = Played(socket.AF_INET, "127.0.0.1")
    yield server
    server.close()


def endlessly(piece: bytes, first: bytes = b"") -> Serve:
    """Send pieces until the other side closes."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(piece)

    return serve


def hurrying() -> Callable[[], float]:
    """Return a clock that advances two seconds at each reading."""
    seconds = itertools.count(step=2)
    return lambda: float(next(seconds))


def test_a_ready_server_gives_no_reason(server: Played) -> None:
    server.answers(OK)
    assert why_unready(server.address, WAIT_SECS) == ""
    lines = server.asked.split(b"\r\n")
    assert lines[0] == b"GET /health HTTP/1.1"
    assert f"host: {server.address}".encode() in [line.lower() for line in lines]


def test_an_ipv6_address_is_asked() -> None:
    server = Played(socket.AF_INET6, "::1")
    server.answers(OK)
    assert why_unready(server.address, WAIT_SECS) == ""
    server.close()


def test_an_unready_server_gives_status_and_body_on_one_line(server: Played) -> None:
    body = b'{"state":\n "\x1b[2Jdraining"}'
    server.answers(b"HTTP/1.1 503 Not now\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    assert why_unready(server.address, WAIT_SECS) == r'503 {"state": "\x1b[2Jdraining"}'


def test_an_informational_response_is_ignored(server: Played) -> None:
    server.answers(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
    assert why_unready(server.address, WAIT_SECS) == ""


def test_a_body_may_end_with_the_connection(server: Played) -> None:
    server.answers(b"HTTP/1.0 500 Oh\r\n\r\nbroken")
    assert why_unready(server.address, WAIT_SECS) == "500 broken"


@pytest.mark.parametrize(
    "cut", [b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"]
)
def test_an_invalid_answer_is_a_reason(server: Played, cut: bytes) -> None:
    server.answers(cut)
    assert why_unready(server.address, WAIT_SECS).startswith(f"http://{server.address} does not answer")


def test_a_truncated_body_still_has_a_status(server: Played) -> None:
    server.answers(b"HTTP/1.1 503 No\r\nContent-Length: 99\r\n\r\nstarting")
    assert why_unready(server.address, WAIT_SECS) == "503 starting"


# --- One that hangs on ---


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n"),
    ],
)
def test_an_endless_answer_ends_at_the_size_limit(server: Played, first: bytes, piece: bytes) -> None:
    server.answers(endlessly(piece, first))
    assert why_unready(server.address, WAIT_SECS).startswith(f"http://{server.address} does not answer")


def test_a_large_body_is_not_read(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    feed = _Answer.feed

    def counted(answer: _Answer, data: bytes) -> None:
        read.append(len(data))
        feed(answer, data)

    monkeypatch.setattr(_Answer, "feed", counted)
    server.answers(endlessly(b"x" * 4096, b"HTTP/1.1 503 No\r\nContent-Length: 999999999\r\n\r\n"))
    reason = why_unready(server.address, WAIT_SECS)
    assert reason.startswith("503 xxxx")
    assert len(reason) == REASON_CHARACTERS_MAX
    assert sum(read) <= 2 * BODY_BYTES_MAX + 4096 < ANSWER_BYTES_MAX


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_one_deadline_covers_the_whole_request(server: Played, first: bytes) -> None:
    """A byte every two seconds does not exceed the time-out of a single read."""
    server.answers(endlessly(b"x", first))
    assert why_unready(server.address, 9.0, hurrying()) == f"http://{server.address} does not answer within 9 s"


def test_a_status_received_before_the_deadline_is_reported(server: Played) -> None:
    server.answers(endlessly(b"1\r\nx\r\n", b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhy?\r\n"))
    seconds = itertools.count()

    def now() -> float:
        return 0.0 if next(seconds) < 4 else 100.0

    assert why_unready(server.address, 50.0, now).startswith("503 ")


def test_a_refused_connection_is_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert why_unready(address, WAIT_SECS) == f"http://{address} does not answer: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:9090",
        "example.org:80",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:+80",
        "127.0.0.1:٨٠",
        ":9090",
        "::1:9090",
        "[::1]",
        "[]:80",
        "[127.0.0.1]:80",
        "[localhost]:80",
        "[example:org]:80",
        "/run/socket",
        "127.0.0.1:80\r\nX: y",
        "1.2.3.4@127.0.0.1:80",
        "\x1b[2J:80",
        "[::1%\x00]:80",
    ],
)
def test_an_invalid_address_is_a_reason_without_a_connection(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("connected"))
    reason = why_unready(address, WAIT_SECS)
    assert reason.endswith("expected an IP address and a port")
    assert "\x1b" not in reason
    assert "\n" not in reason
