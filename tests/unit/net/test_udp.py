"""The pure half of the UDP socket: runs, control messages, endpoints, errors."""

import errno
import itertools
import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.net import udp
from oxidize.net import udp_cmsg as control
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.protocol.endpoint import Endpoint

IP_PKTINFO = (socket.IPPROTO_IP, control.IP_PKTINFO)
IPV6_PKTINFO = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)

sizes = st.lists(st.one_of(st.sampled_from([0, 32, 148, 1452, 1452, 1452]), st.integers(0, 65_507)), max_size=300)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def pktinfo4(local: str, interface: int) -> bytes:
    return struct.pack("=i4s4s", interface, packed(local), packed("255.255.255.255"))


def pktinfo6(local: str, interface: int) -> bytes:
    return struct.pack("=16si", packed(local), interface)


@given(sizes)
def test_runs_cover_every_datagram_once_and_in_order(sizes: list[int]) -> None:
    runs = control.split_runs(sizes)
    assert [i for start, end in runs for i in range(start, end)] == list(range(len(sizes)))


@given(sizes)
def test_the_kernel_segments_every_run_into_its_datagrams(sizes: list[int]) -> None:
    for start, end in control.split_runs(sizes):
        run = sizes[start:end]
        if len(run) > 1:
            assert len(run) <= control.SEGMENTS_MAX
            assert sum(run) <= control.SEGMENTED_BYTES_MAX
            assert set(run[:-1]) == {run[0]}
            assert 0 < run[-1] <= run[0]


@given(sizes)
def test_runs_are_as_long_as_the_limits_allow(sizes: list[int]) -> None:
    runs = control.split_runs(sizes)
    for (start, end), (_, next_end) in itertools.pairwise(runs):
        first, following = sizes[start], sizes[end]
        full = end - start == control.SEGMENTS_MAX or (end - start + 1) * first > control.SEGMENTED_BYTES_MAX
        closed = sizes[end - 1] < first
        assert full or closed or following > first or following == 0 or first == 0
        assert next_end > end


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([], []),
        ([1452], [(0, 1)]),
        ([1452] * 45, [(0, 45)]),
        ([1452] * 46, [(0, 45), (45, 46)]),
        ([64] * 130, [(0, 64), (64, 128), (128, 130)]),
        ([1452, 1452, 96, 1452], [(0, 3), (3, 4)]),
        ([96, 1452], [(0, 1), (1, 2)]),
        ([0, 0, 32], [(0, 1), (1, 2), (2, 3)]),
        ([32, 32, 0], [(0, 2), (2, 3)]),
        ([65_507, 65_507], [(0, 1), (1, 2)]),
    ],
)
def test_batches_are_cut_into_the_expected_runs(sizes: list[int], runs: list[tuple[int, int]]) -> None:
    assert control.split_runs(sizes) == runs


def test_control_messages_are_read_in_any_order_and_among_unknown_ones() -> None:
    info = pktinfo6("2001:db8::1", 3)
    gro = (socket.IPPROTO_UDP, control.UDP_GRO, struct.pack("=i", 1452))
    overflow = (socket.SOL_SOCKET, 40, struct.pack("=I", 7))
    assert control.read_control([]) == (0, b"")
    assert control.read_control([gro]) == (1452, b"")
    assert control.read_control([overflow, (*IPV6_PKTINFO, info), gro]) == (1452, info)
    assert control.read_control([gro, (*IP_PKTINFO, info), overflow]) == (1452, info)


def test_the_segment_size_is_sent_as_u16() -> None:
    assert control.segment_message(1452) == (17, 103, struct.pack("=H", 1452))


@pytest.mark.parametrize(
    ("address", "info", "endpoint"),
    [
        (("192.0.2.1", 5), b"", Endpoint(packed("192.0.2.1"), 5)),
        (("192.0.2.1", 5), pktinfo4("192.0.2.9", 2), Endpoint(packed("192.0.2.1"), 5, 0, packed("192.0.2.9"), 2)),
        (("2001:db8::1", 5, 0, 0), b"", Endpoint(packed("2001:db8::1"), 5)),
        (
            ("2001:db8::1", 5, 0, 0),
            pktinfo6("2001:db8::9", 2),
            Endpoint(packed("2001:db8::1"), 5, 0, packed("2001:db8::9"), 2),
        ),
        (("fe80::1%eth0", 5, 0, 4), pktinfo6("fe80::9", 4), Endpoint(packed("fe80::1"), 5, 4, packed("fe80::9"), 4)),
        # IPv4 on a dual stack socket, with either kind of packet info.
        (
            ("::ffff:192.0.2.1", 5, 0, 0),
            pktinfo6("::ffff:192.0.2.9", 2),
            Endpoint(packed("192.0.2.1"), 5, 0, packed("192.0.2.9"), 2),
        ),
        (
            ("::ffff:192.0.2.1", 5, 0, 0),
            pktinfo4("192.0.2.9", 2),
            Endpoint(packed("192.0.2.1"), 5, 0, packed("192.0.2.9"), 2),
        ),
        # A local address of the other family would be a lie: better none.
        (("2001:db8::1", 5, 0, 0), pktinfo4("192.0.2.9", 2), Endpoint(packed("2001:db8::1"), 5)),
    ],
)
def test_an_endpoint_is_made_of_received_address_and_packet_info(
    address: control.SocketAddress, info: bytes, endpoint: Endpoint
) -> None:
    assert control.endpoint_from(address, info) == endpoint


def test_a_path_names_the_local_address_and_leaves_the_route_to_the_kernel() -> None:
    endpoint = Endpoint(packed("192.0.2.1"), 5, 0, packed("192.0.2.9"), 2)
    assert control.path_to(endpoint, socket.AF_INET) == (
        ("192.0.2.1", 5),
        [(*IP_PKTINFO, struct.pack("=i4s4s", 0, packed("192.0.2.9"), bytes(4)))],
    )
    assert control.path_to(endpoint, socket.AF_INET6) == (
        ("::ffff:192.0.2.1", 5, 0, 0),
        [(*IPV6_PKTINFO, pktinfo6("::ffff:192.0.2.9", 0))],
    )


def test_a_path_from_a_link_local_address_names_its_interface() -> None:
    endpoint = Endpoint(packed("fe80::1"), 5, 4, packed("fe80::9"), 4)
    assert control.path_to(endpoint, socket.AF_INET6) == (
        ("fe80::1", 5, 0, 4),
        [(*IPV6_PKTINFO, pktinfo6("fe80::9", 4))],
    )


def test_a_path_without_local_address_has_no_control_message() -> None:
    assert control.path_to(Endpoint(packed("192.0.2.1"), 5), socket.AF_INET) == (("192.0.2.1", 5), [])
    assert control.path_to(Endpoint(packed("2001:db8::1"), 5), socket.AF_INET6) == (("2001:db8::1", 5, 0, 0), [])


def test_an_ipv4_socket_has_no_path_to_an_ipv6_address() -> None:
    assert control.path_to(Endpoint(packed("2001:db8::1"), 5), socket.AF_INET) is None


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(1, 65_535))
def test_the_path_to_a_received_endpoint_is_the_address_that_it_came_from(address: bytes, port: int) -> None:
    sent_to, _ = control.path_to(Endpoint(address, port), socket.AF_INET6) or pytest.fail("no path")
    again = control.endpoint_from(sent_to, b"")
    expected = address[12:] if address.startswith(bytes(10) + b"\xff\xff") and len(address) == 16 else address
    assert (again.address, again.port) == (expected, port)


@pytest.mark.parametrize(
    ("address", "expected"), [("fe80::1", True), ("febf::1", True), ("fec0::1", False), ("2001:db8::1", False)]
)
def test_only_addresses_of_fe80_10_are_link_local(address: str, expected: bool) -> None:
    assert control.is_link_local(packed(address)) is expected
    assert not control.is_link_local(packed("169.254.0.1"))


# --- Errors ---


def error_report(level: int, kind: int, code: int, offender: bytes) -> list[control.ControlMessage]:
    """Return the control message of an ICMP error: struct sock_extended_err and the address of its sender."""
    return [(level, kind, struct.pack("=IBBBBII", code, 2, 3, 3, 0, 0, 0) + offender)]


def sockaddr(host: str) -> bytes:
    """Return a struct sockaddr_in or sockaddr_in6."""
    address = packed(host)
    if len(address) == 4:
        return struct.pack("=HH4s8x", socket.AF_INET, 0, address)
    return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address, 0)


@pytest.mark.parametrize(
    ("option", "host", "expected"),
    [
        (control.RECEIVE_ERRORS[0], "192.0.2.1", packed("192.0.2.1")),
        (control.RECEIVE_ERRORS[1], "2001:db8::1", packed("2001:db8::1")),
        (control.RECEIVE_ERRORS[1], "::ffff:192.0.2.1", packed("192.0.2.1")),
    ],
)
def test_the_host_that_reports_an_error_is_read(option: tuple[int, int], host: str, expected: bytes) -> None:
    messages = [(*IP_PKTINFO, pktinfo4("192.0.2.7", 1)), *error_report(*option, errno.ECONNREFUSED, sockaddr(host))]
    assert control.read_error(messages) == (errno.ECONNREFUSED, expected)


@pytest.mark.parametrize("offender", [b"", bytes(16), sockaddr("192.0.2.1")[:6], sockaddr("2001:db8::1")[:20]])
def test_an_error_without_the_address_of_its_sender_has_an_unknown_one(offender: bytes) -> None:
    messages = error_report(*control.RECEIVE_ERRORS[0], errno.ECONNREFUSED, offender)
    assert control.read_error(messages) == (errno.ECONNREFUSED, b"")
    assert control.read_error([(*control.RECEIVE_ERRORS[0], b"short")]) == (0, b"")


class ErrorQueue(socket.socket):
    """A socket that holds errors about datagrams to one address, and no datagram."""

    def __init__(self, remote: tuple[str, int], reports: list[list[control.ControlMessage]]) -> None:
        self.remote, self.reports = remote, reports

    def recvmsg(self, *_: object) -> tuple[bytes, list[control.ControlMessage], int, tuple[str, int]]:
        if not self.reports:
            raise BlockingIOError
        return b"", self.reports.pop(0), 0, self.remote


@pytest.mark.parametrize(
    ("code", "offender", "expected"),
    [
        (errno.ECONNREFUSED, "192.0.2.1", [True]),  # the peer's host
        (errno.ECONNREFUSED, "192.0.2.66", []),  # any host can forge that
        (errno.EHOSTUNREACH, "192.0.2.66", [False]),  # a router on the way
    ],
)
def test_a_refused_port_is_reported_by_its_own_host_alone(code: int, offender: str, expected: list[bool]) -> None:
    wrapped = UdpSocket(bind_udp("127.0.0.1", 0))
    bound = wrapped._socket
    try:
        wrapped.receiver.reports_errors = True
        reports = [error_report(*control.RECEIVE_ERRORS[0], code, sockaddr(offender))]
        wrapped.receiver._socket = ErrorQueue(("192.0.2.1", 51820), reports)
        wrapped.receiver._take_errors()
        assert wrapped.receiver.unreachable == [((packed("192.0.2.1"), 51820, 0), refused) for refused in expected]
    finally:
        bound.close()


# --- Options ---


class Limited(UdpSocket):
    """A socket whose buffers the kernel does not raise."""

    def _raise_buffer(self, option: int, forced_option: int, wanted: int) -> None:
        pass


@pytest.mark.parametrize(("wanted", "lines"), [(1 << 10, 0), (1 << 30, 1)])
def test_a_receive_buffer_that_is_too_small_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, wanted: int, lines: int
) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(udp.log, "warning", lambda event, **fields: told.append({"event": event, **fields}))
    wrapped = Limited(bind_udp("127.0.0.1", 0))
    try:
        wrapped.take_ownership(receive_buffer=wanted)
        assert len(told) == lines
        for line in told:
            assert (line["bytes"], line["expected"]) == (wrapped.receive_buffer // 2, wanted)
            assert "net.core.rmem_max" in str(line["remedy"])
            assert "ReceiveBuffer=" in str(line["remedy"])
    finally:
        wrapped.close()
