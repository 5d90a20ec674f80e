"""The UDP socket on real loopback sockets: batches, local addresses, fallbacks, and options kept by a successor."""

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address

import pytest

from oxidize.errors import ConfigError
from oxidize.net import udp, udp_receiver
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.udp_cmsg import IP_PKTINFO, UDP_GRO, UDP_SEGMENT, ControlMessage, Datagram, SocketAddress
from oxidize.net.udp_receiver import ReceivedBatch
from oxidize.protocol import rows
from oxidize.protocol.endpoint import Endpoint
from tests.support.udp import receive

WAIT_MS = 5_000  # loopback answers at once; a test that waits this long has failed

# (what we bind, what the peer binds, the peer's address as we name it)
FAMILIES = {
    "ipv4": ("127.0.0.1", "127.0.0.1"),
    "ipv6": ("::1", "::1"),
    "mapped": ("::", "127.0.0.1"),
}

Peer = Callable[[str], socket.socket]
Ours = Callable[[str], UdpSocket]


@pytest.fixture
def closing() -> Iterator[list[UdpSocket | socket.socket]]:
    opened: list[UdpSocket | socket.socket] = []
    yield opened
    for item in opened:
        item.close()


@pytest.fixture
def ours(closing: list[UdpSocket | socket.socket]) -> Ours:
    def make(host: str) -> UdpSocket:
        wrapped = UdpSocket(bind_udp(host, 0))
        closing.append(wrapped)
        wrapped.take_ownership()
        return wrapped

    return make


@pytest.fixture
def peer(closing: list[UdpSocket | socket.socket]) -> Peer:
    def make(host: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_DGRAM)
        closing.append(plain)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        plain.bind((host, 0))
        plain.settimeout(WAIT_MS / 1000)
        return plain

    return make


def port_of(wrapped: UdpSocket) -> int:
    return int(wrapped.local_address.rpartition(":")[2])


def receive_soon(wrapped: UdpSocket) -> ReceivedBatch:
    poll = select.poll()
    poll.register(wrapped.fileno(), select.POLLIN)
    assert poll.poll(WAIT_MS), "nothing came"
    batch = receive(wrapped) or receive(wrapped)  # an error comes alone, before a datagram
    assert batch is not None
    return batch


def endpoint_of(plain: socket.socket, local_address: bytes = b"") -> Endpoint:
    host, port = plain.getsockname()[:2]
    return Endpoint(ip_address(host).packed, port, local_address=local_address)


def numbered(count: int, size: int) -> list[bytes]:
    return [i.to_bytes(4, "big") * (size // 4) for i in range(count)]


def options_of(bound: socket.socket) -> dict[str, int]:
    names: dict[str, tuple[int, int]] = {
        "gro": (17, UDP_GRO),
        "segment": (17, UDP_SEGMENT),
        "pktinfo4": (socket.IPPROTO_IP, IP_PKTINFO),
        "pktinfo6": (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
        "v6only": (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
        "receive buffer": (socket.SOL_SOCKET, socket.SO_RCVBUF),
        "send buffer": (socket.SOL_SOCKET, socket.SO_SNDBUF),
        "reuse": (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    }
    found = {"non-blocking": int(os.get_blocking(bound.fileno()))}
    for name, (level, option) in names.items():
        with suppress(OSError):
            found[name] = bound.getsockopt(level, option)
    return found


class Refusing(UdpSocket):
    """A socket whose sends fail; `refuse` returns the error from the datagrams and control messages."""

    refuse: Callable[[int, bool], int] = staticmethod(lambda count, from_address: 0)
    calls = 0

    def _sendmsg(self, run: Sequence[Datagram], control: list[ControlMessage], address: SocketAddress) -> None:
        self.calls += 1
        code = self.refuse(len(run), any(level != 17 for level, _, _ in control))
        if code:
            raise OSError(code, os.strerror(code))
        super()._sendmsg(run, control, address)


@pytest.fixture
def refusing(closing: list[UdpSocket | socket.socket]) -> Refusing:
    wrapped = Refusing(bind_udp("127.0.0.1", 0))
    closing.append(wrapped)
    return wrapped


# --- Receiving ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_coalesced_batch_is_split_into_its_datagrams(family: str, ours: Ours, peer: Peer) -> None:
    our_host, peer_host = FAMILIES[family]
    wrapped, plain = ours(our_host), peer(peer_host)
    sent = [*numbered(20, 1400), b"a shorter last one"]
    message = [(17, UDP_SEGMENT, struct.pack("=H", 1400))]
    plain.sendmsg(sent, message, 0, (peer_host, port_of(wrapped)))

    batch = receive_soon(wrapped)

    assert [bytes(datagram) for datagram in batch.datagrams] == sent
    assert not batch.truncated
    assert (batch.endpoint.address, batch.endpoint.port) == (
        ip_address(peer_host).packed,
        plain.getsockname()[1],
    )
    assert batch.endpoint.local_address == ip_address(peer_host).packed
    assert batch.endpoint.local_interface == socket.if_nametoindex("lo")
    assert receive(wrapped) is None


def test_batches_may_differ_in_size(ours: Ours, peer: Peer) -> None:
    wrapped, plain = ours("127.0.0.1"), peer("127.0.0.1")
    for count, size in [(2, 1400), (30, 100), (1, 1400), (5, 1400), (1, 0), (3, 100)]:
        sent = numbered(count, size)
        message = [(17, UDP_SEGMENT, struct.pack("=H", size))] if count > 1 else []
        plain.sendmsg(sent, message, 0, ("127.0.0.1", port_of(wrapped)))
        assert [bytes(datagram) for datagram in receive_soon(wrapped).datagrams] == sent


def test_packets_of_one_path_share_one_endpoint_object(ours: Ours, peer: Peer) -> None:
    wrapped, plain = ours("::"), peer("127.0.0.1")
    plain.sendto(b"1", ("127.0.0.1", port_of(wrapped)))
    first = receive_soon(wrapped).endpoint
    plain.sendto(b"2", ("127.0.0.1", port_of(wrapped)))
    assert receive_soon(wrapped).endpoint is first
    plain.sendto(b"3", ("127.0.0.2", port_of(wrapped)))
    assert receive_soon(wrapped).endpoint == first._replace(local_address=bytes([127, 0, 0, 2]))


def test_endpoints_are_cached_up_to_a_limit(ours: Ours, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (udp, udp_receiver):
        monkeypatch.setattr(module, "ENDPOINTS_CACHED_MAX", 3)
    wrapped = ours("127.0.0.1")
    for _ in range(8):
        plain = peer("127.0.0.1")
        plain.sendto(b"x", ("127.0.0.1", port_of(wrapped)))
        endpoint = receive_soon(wrapped).endpoint
        assert endpoint.port == plain.getsockname()[1]
        assert wrapped.transmit(endpoint, [b"y"]) == 1
        assert len(wrapped.receiver._endpoints) <= 3
        assert len(wrapped._paths) <= 3


def test_a_truncated_batch_is_dropped(ours: Ours, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RECEIVE_BYTES_MAX", 2_500)
    wrapped, plain = ours("127.0.0.1"), peer("127.0.0.1")
    sent = numbered(10, 1000)
    plain.sendmsg(sent, [(17, UDP_SEGMENT, struct.pack("=H", 1000))], 0, ("127.0.0.1", port_of(wrapped)))
    batch = receive_soon(wrapped)
    assert batch.truncated
    assert [bytes(datagram) for datagram in batch.datagrams] == sent[:2]


def test_a_batch_without_its_segment_size_is_dropped(ours: Ours, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_receiver, "_CONTROL_BYTES", 0)
    wrapped, plain = ours("127.0.0.1"), peer("127.0.0.1")
    plain.sendmsg(numbered(3, 1000), [(17, UDP_SEGMENT, struct.pack("=H", 1000))], 0, ("127.0.0.1", port_of(wrapped)))
    batch = receive_soon(wrapped)
    assert batch.truncated
    assert batch.datagrams == []


@pytest.mark.parametrize("option", [(socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)], ids=["ipv4", "ipv6"])
def test_errors_of_earlier_sends_are_counted_not_raised(option: tuple[int, int], ours: Ours, peer: Peer) -> None:
    """IP_RECVERR (11) and IPV6_RECVERR (25) make the kernel report ICMP errors on an unconnected socket too."""
    host = "127.0.0.1" if option[0] == socket.IPPROTO_IP else "::1"
    wrapped, plain = ours(host), peer(host)
    gone = peer(host)
    nobody = endpoint_of(gone)
    gone.close()
    wrapped._socket.setsockopt(*option, 1)
    assert wrapped.transmit(nobody, [b"x"]) == 1
    plain.sendto(b"still alive", (host, port_of(wrapped)))
    assert bytes(receive_soon(wrapped).datagrams[0]) == b"still alive"
    assert wrapped.receiver.errors == 1


def test_a_closed_socket_is_a_bug_and_raises(ours: Ours) -> None:
    wrapped = ours("127.0.0.1")
    wrapped.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receive(wrapped)


# --- Sending ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_mixed_sizes_arrives_unchanged(family: str, ours: Ours, peer: Peer) -> None:
    our_host, peer_host = FAMILIES[family]
    wrapped, plain = ours(our_host), peer(peer_host)
    sent: list[bytes | memoryview] = [*numbered(70, 1452), b"short", b"", memoryview(b"view"), *numbered(5, 1452)]
    assert wrapped.transmit(endpoint_of(plain), sent) == len(sent)
    assert [plain.recv(65_536) for _ in sent] == sent
    assert wrapped.send_failures == 0


def test_a_batch_is_sent_and_received_in_one_call_each(ours: Ours) -> None:
    sender, receiver = ours("127.0.0.1"), ours("127.0.0.1")
    sent = numbered(45, 1452)
    assert sender.transmit(Endpoint(bytes([127, 0, 0, 1]), port_of(receiver)), sent) == 45
    assert [bytes(datagram) for datagram in receive_soon(receiver).datagrams] == sent


@pytest.mark.parametrize(("count", "size"), [(45, 1452), (46, 1452), (64, 100), (65, 100), (1, 100)])
def test_datagrams_that_lie_without_gaps_arrive_as_they_are(count: int, size: int, ours: Ours, peer: Peer) -> None:
    wrapped, plain = ours("127.0.0.1"), peer("127.0.0.1")
    sent = [*numbered(count, size), b"shorter"]
    joined = memoryview(b"".join(sent))
    assert wrapped.transmit(endpoint_of(plain), sent, joined) == len(sent)
    assert [plain.recv(65_536) for _ in sent] == sent


@pytest.mark.parametrize("our_host", ["0.0.0.0", "::"])
def test_a_reply_is_sent_from_the_address_that_received_the_packet(our_host: str, ours: Ours, peer: Peer) -> None:
    wrapped, plain = ours(our_host), peer("127.0.0.1")
    for address in ("127.0.0.2", "127.0.0.3"):
        plain.sendto(b"question", (address, port_of(wrapped)))
        batch = receive_soon(wrapped)
        assert wrapped.transmit(batch.endpoint, [b"answer 1", b"answer 2"]) == 2
        assert plain.recvfrom(100) == (b"answer 1", (address, port_of(wrapped)))
        assert plain.recvfrom(100) == (b"answer 2", (address, port_of(wrapped)))


@pytest.mark.parametrize(
    ("our_host", "peer_host", "lost"),
    [("0.0.0.0", "127.0.0.1", "192.0.2.77"), ("::", "127.0.0.1", "192.0.2.77"), ("::", "::1", "2001:db8::77")],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_reply_is_sent_from_another_address_if_the_old_one_is_gone(
    our_host: str, peer_host: str, lost: str, count: int, ours: Ours, peer: Peer
) -> None:
    wrapped, plain = ours(our_host), peer(peer_host)
    endpoint = endpoint_of(plain, local_address=ip_address(lost).packed)
    assert wrapped.transmit(endpoint, [b"answer"] * count) == count
    for _ in range(count):
        answer, sender = plain.recvfrom(100)
        assert (answer, sender[0]) == (b"answer", peer_host)


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.EMSGSIZE])
def test_datagrams_are_sent_singly_without_segmentation(code: int, refusing: Refusing, peer: Peer) -> None:
    plain = peer("127.0.0.1")
    refusing.refuse = lambda count, from_address: code if count > 1 else 0
    sent = numbered(10, 500)
    for _ in range(2):
        assert refusing.transmit(endpoint_of(plain), sent) == 10
        assert [plain.recv(1000) for _ in sent] == sent
    lasting = code in (errno.EIO, errno.EOPNOTSUPP)
    assert refusing.calls == (21 if lasting else 22)


def test_datagrams_without_gaps_are_sent_singly_where_the_kernel_refuses(refusing: Refusing, peer: Peer) -> None:
    plain, sent, codes = peer("127.0.0.1"), numbered(10, 500), iter([errno.EINVAL])
    refusing.refuse = lambda count, from_address: next(codes, 0)
    assert refusing.transmit(endpoint_of(plain), sent, memoryview(b"".join(sent))) == 10
    assert [plain.recv(1000) for _ in sent] == sent
    assert refusing.calls == 11


def test_segmentation_is_not_requested_from_a_kernel_without_it(
    monkeypatch: pytest.MonkeyPatch, closing: list[UdpSocket | socket.socket], peer: Peer
) -> None:
    monkeypatch.setattr(udp, "UDP_SEGMENT", 9_999)
    wrapped = Refusing(bind_udp("127.0.0.1", 0))
    closing.append(wrapped)
    plain = peer("127.0.0.1")
    sent = numbered(3, 100)
    assert wrapped.transmit(endpoint_of(plain), sent) == 3
    assert [plain.recv(1000) for _ in sent] == sent
    assert wrapped.calls == 3


@pytest.mark.parametrize("code", [errno.EPERM, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN])
def test_a_refused_datagram_is_counted_not_raised(code: int, refusing: Refusing, peer: Peer) -> None:
    refusing.refuse = lambda count, from_address: code
    assert refusing.transmit(endpoint_of(peer("127.0.0.1")), numbered(5, 100)) == 0
    assert refusing.send_failures == 5
    assert refusing.calls == 1


def test_an_oversized_datagram_fails_alone(ours: Ours, peer: Peer) -> None:
    wrapped, plain = ours("127.0.0.1"), peer("127.0.0.1")
    assert wrapped.transmit(endpoint_of(plain), [b"before", bytes(65_508), b"after"]) == 2
    assert [plain.recv(100), plain.recv(100)] == [b"before", b"after"]
    assert wrapped.send_failures == 1


def test_an_ipv4_socket_counts_what_it_cannot_reach(ours: Ours) -> None:
    wrapped = ours("127.0.0.1")
    assert wrapped.transmit(Endpoint(ip_address("::1").packed, 9), [b"x", b"y"]) == 0
    assert wrapped.send_failures == 2


def test_the_wait_for_a_full_send_buffer_is_bounded(refusing: Refusing, peer: Peer) -> None:
    plain = peer("127.0.0.1")
    left = 3

    def busy_thrice(count: int, from_address: bool) -> int:
        nonlocal left
        left -= 1
        return errno.EAGAIN if left >= 0 else 0

    refusing.refuse = busy_thrice
    assert refusing.transmit(endpoint_of(plain), [b"late"]) == 1
    assert plain.recv(100) == b"late"

    refusing.calls = 0
    refusing.refuse = lambda count, from_address: errno.ENOBUFS
    assert refusing.transmit(endpoint_of(plain), [bytes(10), bytes(20), bytes(30)]) == 0
    assert refusing.calls == 3 + udp.SEND_WAITS_MAX
    assert refusing.send_failures == 3


# --- Options and ownership ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_wrapping_a_shared_socket_changes_none_of_its_options(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as bound:  # blocking, as systemd passes it
        bound.bind((host, 0))
        before = options_of(bound)
        successor = UdpSocket(socket.socket(fileno=os.dup(bound.fileno())))
        assert receive(successor) is None
        assert successor.framing() == {"family": "inet6" if ":" in host else "inet", "gro": False}
        assert successor.kernel_drops() == 0
        successor.close()
        assert options_of(bound) == before


def test_a_successor_keeps_the_predecessors_socket_options(ours: Ours, peer: Peer) -> None:
    predecessor, plain = ours("::"), peer("127.0.0.1")
    before = options_of(predecessor._socket)
    successor = UdpSocket(socket.socket(fileno=os.dup(predecessor.fileno())))
    try:
        assert options_of(predecessor._socket) == before
        assert successor.framing() == predecessor.framing() == {"family": "inet6", "gro": True}
        sent = numbered(4, 600)
        plain.sendmsg(sent, [(17, UDP_SEGMENT, struct.pack("=H", 600))], 0, ("127.0.0.1", port_of(predecessor)))
        assert [bytes(datagram) for datagram in receive_soon(successor).datagrams] == sent
        assert options_of(predecessor._socket) == before
    finally:
        successor.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_taking_ownership_is_idempotent(host: str, ours: Ours) -> None:
    wrapped = ours(host)
    once = options_of(wrapped._socket)
    assert once["gro"] == 1
    assert once["pktinfo6" if ":" in host else "pktinfo4"] == 1
    wrapped.take_ownership()
    assert options_of(wrapped._socket) == once


def test_buffers_are_raised_and_never_lowered(ours: Ours) -> None:
    wrapped = ours("127.0.0.1")
    wrapped.take_ownership(receive_buffer=1 << 16, send_buffer=1 << 16)
    raised = (wrapped.receive_buffer, wrapped.send_buffer)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
        assert raised >= (
            fresh.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
        )
    wrapped.take_ownership(receive_buffer=4096, send_buffer=4096)
    assert (wrapped.receive_buffer, wrapped.send_buffer) == raised


def test_buffers_are_raised_to_rmem_max_without_the_capability(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UdpSocket, "_force_buffer", lambda self, option, size: False)
    wrapped = ours("127.0.0.1")
    limit = wrapped.receive_buffer
    wrapped._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit // 8)
    assert wrapped.receive_buffer < limit
    wrapped.take_ownership()
    assert wrapped.receive_buffer == limit


@pytest.mark.root
def test_a_larger_buffer_set_by_systemd_is_kept_without_the_capability(
    ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = ours("127.0.0.1")
    before = (wrapped.receive_buffer, wrapped.send_buffer)
    assert before == (2 * udp.SOCKET_BUFFER_BYTES, 2 * udp.SOCKET_BUFFER_BYTES)
    monkeypatch.setattr(UdpSocket, "_force_buffer", lambda self, option, size: False)
    wrapped.take_ownership(receive_buffer=1 << 29, send_buffer=1 << 29)
    assert (wrapped.receive_buffer, wrapped.send_buffer) == before


def test_the_kernels_drops_are_counted(closing: list[UdpSocket | socket.socket], peer: Peer) -> None:
    bound = bind_udp("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wrapped, plain = UdpSocket(bound), peer("127.0.0.1")
    closing.append(wrapped)
    assert wrapped.kernel_drops() == 0
    for _ in range(100):
        plain.sendto(bytes(1000), ("127.0.0.1", port_of(wrapped)))
    received = 0
    while (batch := receive(wrapped)) is not None:
        received += len(batch.datagrams)
    assert 0 < received < 100
    assert wrapped.kernel_drops() == 100 - received


def test_detach_leaves_the_socket_open() -> None:
    wrapped = UdpSocket(bind_udp("127.0.0.1", 0))
    address = wrapped.local_address
    descriptor = wrapped.detach()
    assert wrapped.fileno() == -1
    again = UdpSocket(socket.socket(fileno=descriptor))
    assert again.local_address == address
    again.close()
    again.close()


# --- Binding ---


def test_a_bound_socket_is_dual_stack_non_blocking_and_exclusive() -> None:
    with bind_udp("::", 0) as bound:
        assert bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert not os.get_blocking(bound.fileno())
        with pytest.raises(ConfigError, match=r"taken.*oxidize reload"):
            bind_udp("::", bound.getsockname()[1])
    with bind_udp(ip_address("127.0.0.1"), 0) as bound:
        assert UdpSocket(bound).local_address == f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "port", "problem"),
    [
        ("192.0.2.77", 0, "does not have the address"),
        ("example", 0, "expected an IPv4 or IPv6 address"),
        ("127.0.0.1", 65_536, "65535"),
        ("127.0.0.1", -1, "65535"),
    ],
)
def test_a_bind_that_fails_says_why(host: str, port: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        bind_udp(host, port)


@pytest.mark.parametrize("kind", [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)])
def test_a_socket_of_another_kind_is_refused(kind: tuple[int, int]) -> None:
    with socket.socket(*kind) as other, pytest.raises(ConfigError, match="ListenDatagram="):
        UdpSocket(other)
