"""Route look-ups, and a network watch that reports a burst of kernel messages once."""

import errno
import socket
from collections.abc import Callable

import pytest

from oxidize.net.event_loop import Loop, Timed
from oxidize.net.network_watch import DELAY_SECS_MAX, QUIET_SECS, NetworkWatch, source_address_for
from oxidize.protocol.endpoint import Endpoint

LOOPBACK4, LOOPBACK6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"


# --- Route look-ups ---


@pytest.mark.parametrize(
    ("endpoint", "source"),
    [
        (Endpoint(LOOPBACK4, 9), LOOPBACK4),
        (Endpoint(bytes([127, 9, 9, 9]), 9), LOOPBACK4),
        (Endpoint(LOOPBACK6, 9), LOOPBACK6),
        (Endpoint(LOOPBACK4, 9, local_address=bytes([127, 0, 0, 2])), LOOPBACK4),
    ],
)
def test_a_route_look_up_returns_the_source_address_of_packets(endpoint: Endpoint, source: bytes) -> None:
    assert source_address_for(endpoint) == source


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(bytes([255, 255, 255, 255]), 9),  # EACCES
        Endpoint(socket.inet_pton(socket.AF_INET6, "fe80::1"), 9),  # a link-local address of no link
        Endpoint(socket.inet_pton(socket.AF_INET6, "fe80::1"), 9, 2**31 - 1),  # of a link that does not exist
    ],
)
def test_an_endpoint_without_a_route_has_no_source_address(endpoint: Endpoint) -> None:
    assert source_address_for(endpoint) is None


@pytest.mark.root
def test_a_route_look_up_may_carry_a_mark() -> None:
    assert source_address_for(Endpoint(LOOPBACK4, 9), mark=51820) == LOOPBACK4


def test_without_a_descriptor_there_is_no_source_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    assert source_address_for(Endpoint(LOOPBACK4, 9)) is None


# --- The watch ---


class FakeLoop(Loop):
    def __init__(self) -> None:
        self.time = 100.0
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.timed: list[Timed] = []

    def now(self) -> float:
        return self.time

    def register(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self.callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        del self.callbacks[fd]

    def add_timed(self, timed: Timed) -> None:
        self.timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        self.timed.remove(timed)


class FakeSocket:
    """A netlink socket with messages that the test supplies; an exception is raised."""

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
    """A watch with a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket = FakeSocket()
        self.loop = FakeLoop()
        self.changes: list[float] = []
        monkeypatch.setattr(socket, "socket", lambda *_: self.socket)
        self.watch = NetworkWatch(self.loop, self.changes.append)
        self.watch.start()

    def receive(self, *messages: bytes | Exception) -> None:
        self.socket.waiting += messages
        self.loop.callbacks[99]()

    def pass_time(self, seconds: float) -> None:
        end = self.loop.time + seconds
        while (due := self.watch.next_deadline()) is not None and due <= end:
            self.loop.time = max(self.loop.time, due)
            self.watch.handle_timeout(self.loop.time)
        self.loop.time = end


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_the_watch_listens_for_links_addresses_routes_rules_and_forwarding(watched: Watched) -> None:
    # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF, IPV6_NETCONF
    for group in (1, 5, 7, 8, 9, 11, 19, 24, 25):
        assert watched.socket.groups & 1 << (group - 1)
    assert watched.watch.next_deadline() is None
    assert watched.loop.timed == [watched.watch]


def test_a_burst_of_messages_is_reported_once_after_its_end(watched: Watched) -> None:
    for _ in range(5):
        watched.receive(b"link", b"address", b"route")
        watched.pass_time(QUIET_SECS / 2)
    assert watched.changes == []
    watched.pass_time(QUIET_SECS)
    assert watched.changes == [pytest.approx(100.0 + 3 * QUIET_SECS)]
    watched.pass_time(60.0)
    assert len(watched.changes) == 1


def test_a_report_is_not_delayed_forever(watched: Watched) -> None:
    while watched.loop.time < 100.0 + 5 * DELAY_SECS_MAX:
        watched.receive(b"noise")
        watched.pass_time(QUIET_SECS / 2)
    assert 4 <= len(watched.changes) <= 5
    assert watched.changes[0] == pytest.approx(100.0 + DELAY_SECS_MAX)


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), OSError(12, "Cannot allocate memory")])
def test_lost_messages_are_reported_as_a_change(watched: Watched, error: OSError) -> None:
    watched.receive(error)
    watched.pass_time(QUIET_SECS)
    assert len(watched.changes) == 1


def test_a_socket_that_only_fails_does_not_block_the_loop(watched: Watched) -> None:
    watched.socket.waiting = [OSError(9, "Bad file descriptor")] * 100_000
    watched.loop.callbacks[99]()
    assert len(watched.socket.waiting) > 90_000


def test_a_watch_that_is_started_again_listens_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A predecessor starts it after each takeover that failed."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a second socket"))
    watched.watch.start()
    assert watched.loop.timed == [watched.watch]


def test_a_report_may_end_the_watch(watched: Watched) -> None:
    watched.watch._changed = lambda now: watched.watch.stop()
    watched.receive(b"gone")
    watched.pass_time(1.0)
    assert (watched.socket.closed, watched.loop.callbacks, watched.loop.timed) == (True, {}, [])
    watched.watch.stop()


def test_without_room_in_the_loop_the_network_is_not_watched(monkeypatch: pytest.MonkeyPatch, watched: Watched) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    watched.watch.stop()
    monkeypatch.setattr(watched.loop, "register", refuse)
    watched.watch.start()
    assert watched.socket.closed
    assert watched.loop.timed == []
    watched.watch.stop()
