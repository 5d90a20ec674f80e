"""ICMP errors on real loopback sockets: reported where requested, harmless elsewhere."""

import errno
import os
import select
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import pytest

from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.udp_cmsg import RECEIVE_ERRORS, ControlMessage, Datagram, SocketAddress
from oxidize.net.udp_receiver import QUEUED_ERRORS_MAX
from oxidize.protocol.endpoint import Endpoint
from tests.support.udp import receive

WAIT_MS = 5_000  # loopback answers at once; a test that waits this long has failed

# (what we bind, where the peer is)
FAMILIES = {
    "ipv4": ("127.0.0.1", "127.0.0.1"),
    "ipv6": ("::1", "::1"),
    "mapped": ("::", "127.0.0.1"),
    "dual": ("::", "::1"),
}

Closing = list[UdpSocket | socket.socket]


@pytest.fixture
def closing() -> Iterator[Closing]:
    opened: Closing = []
    yield opened
    for item in opened:
        item.close()


def make(closing: Closing, host: str, *, report_errors: bool) -> UdpSocket:
    wrapped = UdpSocket(bind_udp(host, 0))
    closing.append(wrapped)
    wrapped.take_ownership(report_errors=report_errors)
    return wrapped


def listen(closing: Closing, host: str, port: int = 0) -> socket.socket:
    plain = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    closing.append(plain)
    plain.bind((host, port))
    plain.settimeout(WAIT_MS / 1000)
    return plain


def closed_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.bind((host, 0))
        return int(plain.getsockname()[1])


def endpoint(host: str, port: int) -> Endpoint:
    return Endpoint(ip_address(host).packed, port)


def is_ready(wrapped: UdpSocket, wait_ms: int = 0) -> bool:
    """Return whether epoll reports any event for a socket registered as in the event loop."""
    with select.epoll() as epoll:
        epoll.register(wrapped.fileno(), select.EPOLLIN)
        return bool(epoll.poll(wait_ms / 1000))


def drain(wrapped: UdpSocket) -> None:
    """Read like the event loop until nothing is left; fail if the socket stays ready."""
    for _ in range(1000):
        if not is_ready(wrapped):
            return
        receive(wrapped)
    raise AssertionError("it is always ready: the loop would spin")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unreachable_port_is_reported_and_the_socket_becomes_idle(family: str, closing: Closing) -> None:
    ours, theirs = FAMILIES[family]
    wrapped, gone = make(closing, ours, report_errors=True), endpoint(theirs, closed_port(theirs))
    assert wrapped.transmit(gone, [b"hello"]) == 1
    assert is_ready(wrapped, WAIT_MS)
    drain(wrapped)
    assert set(wrapped.receiver.unreachable) == {(gone.remote, True)}
    wrapped.receiver.unreachable.clear()
    assert receive(wrapped) is None
    assert wrapped.receiver.unreachable == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_that_meets_an_earlier_error_is_sent(family: str, closing: Closing) -> None:
    ours, theirs = FAMILIES[family]
    wrapped, gone = make(closing, ours, report_errors=True), endpoint(theirs, closed_port(theirs))
    alive = listen(closing, theirs)
    for batch in ([b"one"], [b"two", b"three"], [b"x" * 1000] * 10):
        wrapped.transmit(gone, [b"hello"])
        assert is_ready(wrapped, WAIT_MS)
        assert wrapped.transmit(endpoint(theirs, alive.getsockname()[1]), batch) == len(batch)
        assert [alive.recv(2000) for _ in batch] == batch
    assert wrapped.send_failures == 0


def test_many_queued_errors_are_read_in_slices(closing: Closing) -> None:
    wrapped = make(closing, "127.0.0.1", report_errors=True)
    gone = [endpoint("127.0.0.1", closed_port("127.0.0.1")) for _ in range(3 * QUEUED_ERRORS_MAX)]
    for peer in gone:
        wrapped.transmit(peer, [b"hello"])
    assert is_ready(wrapped, WAIT_MS)
    drain(wrapped)
    assert {remote for remote, refused in wrapped.receiver.unreachable} <= {peer.remote for peer in gone}
    assert len({remote for remote, refused in wrapped.receiver.unreachable}) > QUEUED_ERRORS_MAX


def test_datagrams_are_received_between_errors(closing: Closing) -> None:
    wrapped = make(closing, "127.0.0.1", report_errors=True)
    port = int(wrapped.local_address.rpartition(":")[2])
    alive, gone = listen(closing, "127.0.0.1"), endpoint("127.0.0.1", closed_port("127.0.0.1"))
    received = []
    for number in range(20):
        wrapped.transmit(gone, [b"hello"])
        alive.sendto(bytes([number]), ("127.0.0.1", port))
        for _ in range(100):
            if (batch := receive(wrapped)) is not None:
                received += [bytes(datagram) for datagram in batch.datagrams]
            if not is_ready(wrapped):
                break
    assert received == [bytes([number]) for number in range(20)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_without_error_reporting_reports_no_error(family: str, closing: Closing) -> None:
    ours, theirs = FAMILIES[family]
    wrapped, gone = make(closing, ours, report_errors=False), endpoint(theirs, closed_port(theirs))
    wrapped.transmit(gone, [b"hello"])
    wrapped.transmit(gone, [b"hello"])
    drain(wrapped)
    assert wrapped.receiver.unreachable == []
    assert wrapped.send_failures == 0


def test_an_owner_without_error_reporting_switches_it_off(closing: Closing) -> None:
    wrapped = make(closing, "::", report_errors=True)
    successor = UdpSocket(socket.socket(fileno=os.dup(wrapped.fileno())))
    closing.append(successor)
    successor.take_ownership()
    for level, option in RECEIVE_ERRORS:
        assert successor._socket.getsockopt(level, option) == 0
    successor.transmit(endpoint("127.0.0.1", closed_port("127.0.0.1")), [b"hello"])
    drain(successor)
    assert successor.receiver.unreachable == []


def test_a_successor_reads_the_errors_left_by_its_predecessor(closing: Closing) -> None:
    wrapped = make(closing, "::", report_errors=True)
    gone = endpoint("127.0.0.1", closed_port("127.0.0.1"))
    wrapped.transmit(gone, [b"hello"])
    assert is_ready(wrapped, WAIT_MS)
    successor = UdpSocket(socket.socket(fileno=os.dup(wrapped.fileno())))
    closing.append(successor)
    successor.take_ownership(report_errors=True)
    drain(successor)
    assert set(successor.receiver.unreachable) == {(gone.remote, True)}


class Failing(UdpSocket):
    """A socket whose sends all fail with the error number `refuse`."""

    refuse = 0
    calls = 0

    def _sendmsg(self, run: Sequence[Datagram], control: list[ControlMessage], address: SocketAddress) -> None:
        self.calls += 1
        raise OSError(self.refuse, os.strerror(self.refuse))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENETUNREACH, [False]),
        (errno.EHOSTUNREACH, [False]),
        (errno.ENETDOWN, [False]),
        (errno.ECONNREFUSED, []),  # no error of this machine: the error queue has it
        (errno.EACCES, [False]),
        (errno.EMSGSIZE, []),
        (errno.EPERM, []),
        (errno.EINVAL, []),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_a_send_that_fails_twice_is_reported_by_its_error(
    code: int, told: list[bool], asked: bool, closing: Closing
) -> None:
    wrapped = Failing(bind_udp("127.0.0.1", 0))
    closing.append(wrapped)
    wrapped.take_ownership(report_errors=asked)
    wrapped.refuse = code
    peer = endpoint("192.0.2.1", 9)
    assert wrapped.transmit(peer, [b"hello"]) == 0
    assert wrapped.calls <= 2
    assert wrapped.send_failures == 1
    assert wrapped.receiver.unreachable == ([(peer.remote, refused) for refused in told] if asked else [])


def test_errors_requested_by_a_former_owner_do_not_wake_the_next_one(closing: Closing) -> None:
    wrapped, plain = make(closing, "::", report_errors=True), listen(closing, "127.0.0.1")
    closed = Endpoint(ip_address("127.0.0.1").packed, plain.getsockname()[1])
    plain.close()
    assert wrapped.transmit(closed, [b"nobody is there"]) == 1
    poll = select.poll()
    poll.register(wrapped.fileno(), select.POLLIN)
    assert poll.poll(WAIT_MS), "the error has come"
    wrapped.end_ownership()
    assert receive(wrapped) is None
    assert poll.poll(0) == []
