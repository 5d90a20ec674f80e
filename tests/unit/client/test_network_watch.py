"""The network watch: which way packets would take, and a look only when the kernel has finished talking."""

import socket

import pytest

from oxidize.client import network_watch
from oxidize.client.network_watch import DELAY_SECS_MAX, QUIET_SECS, NetworkWatch, source_address_for
from oxidize.protocol.endpoint import Endpoint

LOOPBACK4, LOOPBACK6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"


# --- The way ---


@pytest.mark.parametrize(
    ("endpoint", "way"),
    [
        (Endpoint(LOOPBACK4, 9), LOOPBACK4),
        (Endpoint(bytes([127, 9, 9, 9]), 9), LOOPBACK4),
        (Endpoint(LOOPBACK6, 9), LOOPBACK6),
        (Endpoint(LOOPBACK4, 9, local_address=bytes([127, 0, 0, 2])), LOOPBACK4),
    ],
)
def test_the_way_to_an_endpoint_is_the_address_that_packets_leave_from(endpoint: Endpoint, way: bytes) -> None:
    assert source_address_for(endpoint) == way


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(bytes([255, 255, 255, 255]), 9),  # EACCES
        Endpoint(socket.inet_pton(socket.AF_INET6, "fe80::1"), 9),  # a link-local address of no link
        Endpoint(socket.inet_pton(socket.AF_INET6, "fe80::1"), 9, 2**31 - 1),  # of one that is not there
    ],
)
def test_where_no_way_leads_there_is_none(endpoint: Endpoint) -> None:
    assert source_address_for(endpoint) is None


@pytest.mark.root
def test_the_way_is_that_of_packets_with_a_mark() -> None:
    assert source_address_for(Endpoint(LOOPBACK4, 9), mark=51820) == LOOPBACK4


def test_without_a_descriptor_there_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    assert source_address_for(Endpoint(LOOPBACK4, 9)) is None


# --- When it is looked at ---


class FakeLoop:
    def __init__(self) -> None:
        self.time = 100.0
        self.callbacks: dict[int, object] = {}
        self.timed: list[object] = []

    def now(self) -> float:
        return self.time

    def register(self, fd, events, callback) -> None:
        self.callbacks[fd] = callback

    def unregister(self, fd) -> None:
        del self.callbacks[fd]

    def add_timed(self, timed) -> None:
        self.timed.append(timed)

    def remove_timed(self, timed) -> None:
        self.timed.remove(timed)


class FakeSocket:
    """What the kernel says; an exception is raised."""

    def __init__(self, *_: object) -> None:
        self.waiting: list[bytes | Exception] = []
        self.groups = 0
        self.closed = False

    def bind(self, address: tuple[int, int]) -> None:
        self.groups = address[1]

    def fileno(self) -> int:
        return 99

    def recv(self, size: int) -> bytes:
        if not self.waiting:
            raise BlockingIOError
        item = self.waiting.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed = True


class Watched:
    """A watch with a clock that tests move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket = FakeSocket()
        self.loop = FakeLoop()
        self.looks: list[float] = []
        monkeypatch.setattr(network_watch.socket, "socket", lambda *_: self.socket)
        self.watch = NetworkWatch(self.loop, self.looks.append)  # type: ignore[arg-type]
        self.watch.start()

    def say(self, *messages: bytes | Exception) -> None:
        self.socket.waiting += messages
        self.loop.callbacks[99]()  # type: ignore[operator]

    def pass_time(self, seconds: float) -> None:
        end = self.loop.time + seconds
        while (due := self.watch.next_deadline()) is not None and due <= end:
            self.loop.time = max(self.loop.time, due)
            self.watch.handle_timeout(self.loop.time)
        self.loop.time = end


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_it_listens_for_links_addresses_and_routes(watched: Watched) -> None:
    for group in (1, 5, 7, 9, 11):  # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
        assert watched.socket.groups & 1 << (group - 1)
    assert watched.watch.next_deadline() is None
    assert watched.loop.timed == [watched.watch]


def test_many_messages_make_one_look_once_it_is_quiet(watched: Watched) -> None:
    for _ in range(5):
        watched.say(b"link", b"address", b"route")
        watched.pass_time(QUIET_SECS / 2)
    assert watched.looks == []
    watched.pass_time(QUIET_SECS)
    assert watched.looks == [pytest.approx(100.0 + 3 * QUIET_SECS)]
    watched.pass_time(60.0)
    assert len(watched.looks) == 1


def test_a_look_is_not_put_off_for_ever(watched: Watched) -> None:
    while watched.loop.time < 100.0 + 5 * DELAY_SECS_MAX:
        watched.say(b"noise")
        watched.pass_time(QUIET_SECS / 2)
    assert 4 <= len(watched.looks) <= 5
    assert watched.looks[0] == pytest.approx(100.0 + DELAY_SECS_MAX)


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), OSError(12, "Cannot allocate memory")])
def test_what_the_kernel_could_not_hold_is_a_reason_to_look_too(watched: Watched, error: OSError) -> None:
    watched.say(error)
    watched.pass_time(QUIET_SECS)
    assert len(watched.looks) == 1


def test_a_socket_that_only_fails_does_not_hold_up_the_loop(watched: Watched) -> None:
    watched.socket.waiting = [OSError(9, "Bad file descriptor")] * 100_000
    watched.loop.callbacks[99]()  # type: ignore[operator]
    assert len(watched.socket.waiting) > 90_000


def test_a_look_may_end_the_watch(watched: Watched) -> None:
    watched.watch._changed = lambda now: watched.watch.stop()
    watched.say(b"gone")
    watched.pass_time(1.0)
    assert (watched.socket.closed, watched.loop.callbacks, watched.loop.timed) == (True, {}, [])
    watched.watch.stop()
