"""A connection of wg: whole requests are answered in order, and what a client can make it hold is bounded."""

import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from oxidize.net import uapi_connection
from oxidize.net.uapi_connection import KEPT_BYTES_MAX, UapiConnection

pytestmark = pytest.mark.usefixtures("no_leak")


class Bench:
    """A connection and its client. asked: the requests and users that were to be answered."""

    def __init__(self) -> None:
        self.client, accepted = socket.socketpair()
        accepted.setblocking(False)
        self.client.setblocking(False)
        self.asked: list[tuple[bytes, int]] = []
        self.made = 0  # pieces of answers
        self.pieces: list[bytes] = [b"first=1\n", b"errno=0\n\n"]
        self.connection = UapiConnection(accepted, self.answer, 100.0)

    def answer(self, request: bytes, uid: int) -> Iterator[bytes]:
        self.asked.append((request, uid))
        for piece in self.pieces:
            self.made += 1
            yield piece

    def run(self) -> bool:
        """Advance while there is anything to do; return whether the connection is open."""
        poll = select.poll()
        while True:
            poll.register(self.connection.socket, self.connection.events)
            if not poll.poll(0):
                return True
            if not self.connection.advance():
                return False

    def read(self) -> bytes:
        try:
            return self.client.recv(1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.client.close()
        self.connection.socket.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_a_request_is_answered_and_the_connection_stays_open(bench: Bench) -> None:
    bench.client.send(b"get=1\n\n")
    assert bench.run()
    assert bench.read() == b"first=1\nerrno=0\n\n"
    assert bench.asked == [(b"get=1\n\n", os.geteuid())]
    bench.client.send(b"get=1\n\n")
    assert bench.run()
    assert len(bench.asked) == 2


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_a_request_may_come_in_parts(bench: Bench, size: int) -> None:
    request = b"get=1\n\n"
    for first in range(0, len(request), size):
        assert bench.asked == []
        bench.client.send(request[first : first + size])
        assert bench.run()
    assert [asked for asked, _ in bench.asked] == [request]


def test_requests_that_come_at_once_are_answered_in_order(bench: Bench) -> None:
    bench.client.send(b"set=1\nlisten_port=1\n\nget=1\n\nge")
    assert bench.run()
    assert [asked for asked, _ in bench.asked] == [b"set=1\nlisten_port=1\n\n", b"get=1\n\n"]
    assert bench.read() == 2 * b"first=1\nerrno=0\n\n"
    bench.client.send(b"t=1\n\n")
    assert bench.run()
    assert bench.asked[-1][0] == b"get=1\n\n"


def test_of_a_long_request_only_the_beginning_is_kept(bench: Bench) -> None:
    line = b"public_key=" + b"ab" * 32 + b"\n"
    sent = bytearray(b"set=1\n")
    while len(sent) < 4 * KEPT_BYTES_MAX:
        sent += line
    for first in range(0, len(sent), 1000):
        bench.client.send(bytes(sent[first : first + 1000]))
        assert bench.run()
    bench.client.send(b"\n")
    assert bench.run()
    ((kept, _),) = bench.asked
    assert kept == bytes(sent[:KEPT_BYTES_MAX])


def test_a_request_without_an_end_closes_the_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uapi_connection, "REQUEST_BYTES_MAX", 10_000)
    for _ in range(9):
        bench.client.send(b"a" * 1000 + b"\n")
        assert bench.run()
    bench.client.send(b"a" * 1000)
    assert not bench.run()
    assert bench.asked == []


def test_a_client_that_does_not_read_makes_the_connection_hold_one_piece(bench: Bench) -> None:
    bench.pieces = [b"x" * 65_536] * 1000
    bench.client.send(b"get=1\n\n")
    assert bench.run()
    held_up = bench.made
    assert 0 < held_up < 100
    assert not bench.connection.is_idle
    assert bench.run()
    assert bench.made == held_up
    received = 0
    while bench.made < 1000 or received < 1000 * 65_536:
        received += len(bench.read())
        assert bench.run()
    assert bench.connection.is_idle


def test_one_call_makes_one_piece(bench: Bench) -> None:
    bench.client.send(b"get=1\n\n")
    made = []
    for _ in range(4):
        assert bench.connection.advance()
        made.append(bench.made)
    assert made == [0, 1, 2, 2]


def test_a_client_that_is_gone_closes_the_connection(bench: Bench) -> None:
    bench.client.close()
    assert not bench.connection.advance()


def test_a_client_that_is_gone_during_an_answer_closes_the_connection(bench: Bench) -> None:
    bench.client.send(b"get=1\n\n")
    assert bench.connection.advance()
    bench.client.close()
    assert not bench.connection.advance()


def test_a_failing_socket_closes_the_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def recv(self, size: int) -> bytes:
            raise OSError(errno.ECONNRESET, "reset")

    accepted = bench.connection.socket
    bench.connection.socket = Failing()  # type: ignore[assignment]  # what advance uses of it
    assert not bench.connection.advance()
    bench.connection.socket = accepted
