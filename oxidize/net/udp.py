"""The UDP socket: batches in, batches out, and no datagram lost that the kernel would keep.

The rule: a socket's options belong to its open file description, which predecessor and successor share. Wrapping a
socket therefore changes nothing; `take_ownership` and `set_mark` set options, and only the owner calls them.
O_NONBLOCK is shared as well, so no method depends on it: every call carries MSG_DONTWAIT.

Sources: udp(7), ip(7), ipv6(7), socket(7), systemd.socket(5). GRO and GSO are what make Python fast enough: one system
call for up to 64 datagrams in each direction.
"""

import errno
import select
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from socket import IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_SOCKET

from oxidize import logs
from oxidize.errors import ConfigError
from oxidize.net import socket_filter
from oxidize.net.ipv6 import has_ipv6
from oxidize.net.udp_cmsg import (
    IP_PKTINFO,
    MEMINFO_DROPS,
    MEMINFO_QUEUED,
    MEMINFO_ROOM,
    RECEIVE_ERRORS,
    SEGMENTED_BYTES_MAX,
    SEGMENTS_MAX,
    SO_MEMINFO,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    UDP_GRO,
    UDP_SEGMENT,
    ControlMessage,
    Datagram,
    SocketAddress,
    endpoint_from,
    path_to,
    segment_message,
    split_runs,
)
from oxidize.net.udp_receiver import EARLIER_ERRORS, ENDPOINTS_CACHED_MAX, UdpReceiver
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.fair_share import QueueState

# --- Limits ---
SOCKET_BUFFER_BYTES = 8 << 20  # as in the socket unit: what queues while a process is replaced
SEND_WAIT_MS = 10  # one wait for room in the send buffer ...
SEND_WAITS_MAX = 5  # ... and how many one transmit may make: 50 ms in total

PORT_MAX = 65_535

# As a plain integer: the flags of the socket module are enumerations, whose operators cost a microsecond each.
_DONTWAIT = int(socket.MSG_DONTWAIT)

_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOBUFS})
# This host no longer has the source address of an answer (EINVAL for IPv6, ENETUNREACH for IPv4).
_SOURCE_GONE = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL})
# EINVAL and EMSGSIZE concern one path (its MTU), the others the socket for good.
_SEGMENTATION_UNSUPPORTED = frozenset({errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
_SEGMENTATION_REFUSED = _SEGMENTATION_UNSUPPORTED | {errno.EINVAL, errno.EMSGSIZE}

log = logs.get(__name__)


class UdpSocket:
    """A bound UDP socket, IPv4 or IPv6 with or without IPv4-mapped addresses.

    Only the loop drives it: `receiver.receive`, `transmit`, and `take_ownership` once this generation owns it. It
    owns the socket that is passed to it, and closes it.

    receiver: its receiving half. send_failures: datagrams that the kernel refused.
    """

    def __init__(self, bound: socket.socket) -> None:
        """Wrap a bound socket without changing any of its options; raises ConfigError if it is not a UDP socket."""
        if bound.family not in (socket.AF_INET, socket.AF_INET6) or bound.type != socket.SOCK_DGRAM:
            kind = f"{bound.family.name}/{bound.type.name}"
            remedy = "use ListenDatagram= in the socket unit"
            raise ConfigError(f"the socket passed for UDP is {kind}; expected AF_INET(6)/SOCK_DGRAM: {remedy}")
        self.send_failures = 0
        self._socket = bound
        self._family = int(bound.family)
        self._segmentation = _has_option(bound, IPPROTO_UDP, UDP_SEGMENT)
        self._paths: dict[Endpoint, tuple[SocketAddress, list[ControlMessage]]] = {}
        self._writable = select.poll()
        self._writable.register(bound, select.POLLOUT)
        self._waits_left = 0
        self._lacks: set[str] = set()
        self.receiver = UdpReceiver(bound)

    # --- Options: for the owner only ---

    def take_ownership(
        self,
        receive_buffer: int = SOCKET_BUFFER_BYTES,
        send_buffer: int = SOCKET_BUFFER_BYTES,
        *,
        report_errors: bool = False,
    ) -> None:
        """Set the options that this release wants; idempotent, for the owner only.

        receive_buffer, send_buffer: bytes as SO_RCVBUF takes them (the kernel doubles the figure). A buffer is raised
        as far as allowed and never lowered; the properties of the same names return the result. report_errors: whether
        ICMP errors of this socket's datagrams are noted in `receiver.unreachable`.
        """
        socket_filter.detach(self._socket)  # of an owner that was killed
        if self._family == socket.AF_INET6:
            # On a dual stack socket this one covers IPv4-mapped packets too.
            self._socket.setsockopt(IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self._socket.setsockopt(IPPROTO_IP, IP_PKTINFO, 1)
        try:
            self._socket.setsockopt(IPPROTO_UDP, UDP_GRO, 1)
        except OSError:  # before Linux 5.0
            self._note_lack("datagrams are received singly: the kernel does not join them")
        if not self._segmentation:
            self._note_lack("datagrams are sent singly: the kernel does not segment")
        self._set_error_reports(enabled=report_errors)
        self._raise_buffer(socket.SO_RCVBUF, SO_RCVBUFFORCE, receive_buffer)
        self._raise_buffer(socket.SO_SNDBUF, SO_SNDBUFFORCE, send_buffer)
        if (granted := self.receive_buffer) < 2 * receive_buffer:
            log.warning(
                "the receive buffer is small: packets are lost sooner while no process reads",
                bytes=granted // 2,
                expected=receive_buffer,
                remedy="raise net.core.rmem_max (sysctl), or set ReceiveBuffer= in oxidize.socket",
            )

    def _note_lack(self, lack: str) -> None:
        """Log what the kernel lacks, once."""
        if lack not in self._lacks:
            self._lacks.add(lack)
            log.info(lack)

    def set_mark(self, fwmark: int) -> None:
        """Set the mark by which policy routing and a kill switch know this socket's packets; for the owner only.

        fwmark: 0 for none.
        """
        if self.mark != fwmark:
            try:
                self._socket.setsockopt(SOL_SOCKET, socket.SO_MARK, fwmark)
            except PermissionError:  # checked before the hand-off; harmless where no rule needs the mark
                log.warning("the UDP socket is not marked: that needs CAP_NET_ADMIN")

    def end_ownership(self) -> None:
        """Switch off the options that the next owner may not know; for the owner that stops.

        A release that does not read the error queue would find the socket readable forever, and one that does not know
        of filters would lose handshakes.
        """
        socket_filter.detach(self._socket)
        if self.receiver.reports_errors:
            self._set_error_reports(enabled=False)

    def shed(
        self, shares: Sequence[float], spared: Collection[tuple[bytes, int]], sessions: Mapping[int, float]
    ) -> None:
        """Have the kernel drop a part of each class of datagrams and of some sessions' data; for the owner only.

        Parameters as for `socket_filter.assemble`; with shares of 1 and without sessions there is no filter. Raises
        OSError, without a filter, where the kernel refuses one.
        """
        if not sessions and min(shares) == 1.0:
            socket_filter.detach(self._socket)
            return
        program = socket_filter.assemble(shares, spared, sessions)
        try:
            socket_filter.attach(self._socket, program)  # over the one before, so that no datagram passes between them
        except OSError as error:
            socket_filter.detach(self._socket)
            if error.errno != errno.ENOMEM:
                raise
            socket_filter.attach(self._socket, program)  # two together exceed net.core.optmem_max

    def _set_error_reports(self, *, enabled: bool) -> None:
        self.receiver.reports_errors = enabled
        for level, option in RECEIVE_ERRORS:  # on a dual stack socket, each is for its own family
            with suppress(OSError):
                self._socket.setsockopt(level, option, int(enabled))  # 0 empties the queue, too

    def _raise_buffer(self, option: int, forced_option: int, wanted: int) -> None:
        current = self._socket.getsockopt(SOL_SOCKET, option)
        if current >= 2 * wanted or self._force_buffer(forced_option, wanted):
            return
        # Without CAP_NET_ADMIN the kernel cuts the figure to its limit, which may be less than systemd has set: try on
        # a scratch socket first.
        try:
            with socket.socket(self._family, socket.SOCK_DGRAM) as trial:
                trial.setsockopt(SOL_SOCKET, option, wanted)
                granted = trial.getsockopt(SOL_SOCKET, option)
        except OSError as error:  # no descriptor or no memory is left: a smaller buffer is better than no owner
            log.warning("a buffer of the UDP socket is not raised", bytes=current, wanted=2 * wanted, reason=str(error))
            return
        if granted > current:
            self._socket.setsockopt(SOL_SOCKET, option, wanted)

    def _force_buffer(self, forced_option: int, wanted: int) -> bool:
        try:
            self._socket.setsockopt(SOL_SOCKET, forced_option, wanted)
        except PermissionError:
            return False
        return True

    @property
    def receive_buffer(self) -> int:
        """The receive buffer in bytes as the kernel accounts it: twice what was asked for."""
        return self._socket.getsockopt(SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def send_buffer(self) -> int:
        """The send buffer in bytes as the kernel accounts it: twice what was asked for."""
        return self._socket.getsockopt(SOL_SOCKET, socket.SO_SNDBUF)

    @property
    def local_address(self) -> str:
        """The address that the socket is bound to, as `192.0.2.1:51820` or `[::]:51820`."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if self._family == socket.AF_INET6 else f"{host}:{port}"

    @property
    def port(self) -> int:
        """The port that the socket is bound to."""
        port: int = self._socket.getsockname()[1]
        return port

    def framing(self) -> dict[str, object]:
        """Return how this socket frames datagrams, for the OFFER of a takeover."""
        gro = _has_option(self._socket, IPPROTO_UDP, UDP_GRO) and self._socket.getsockopt(IPPROTO_UDP, UDP_GRO) != 0
        return {"family": "inet6" if self._family == socket.AF_INET6 else "inet", "gro": gro}

    @property
    def mark(self) -> int:
        """The mark of the socket's packets, by which policy routing may choose their route."""
        return self._socket.getsockopt(SOL_SOCKET, socket.SO_MARK)

    def follow_route(self, endpoint: Endpoint, *, is_moved: bool) -> None:
        """Leave the source address towards an endpoint to the kernel, or (not `is_moved`) send from its own again."""
        self._paths.pop(endpoint, None)
        path = path_to(Endpoint(*endpoint.remote), self._family) if is_moved else None
        if path is not None:
            self._paths[endpoint] = path

    def kernel_drops(self) -> int:
        """Return how many datagrams the kernel dropped at this socket since it was made, across generations (mod 2^32).

        0 if the kernel does not report it.
        """
        return self.queue_state().dropped

    def queue_state(self) -> QueueState:
        """Return what waits in the receive buffer, its room, and `kernel_drops`; zeros if the kernel tells nothing."""
        try:
            raw = self._socket.getsockopt(SOL_SOCKET, SO_MEMINFO, 256)
        except OSError:
            return QueueState(0, 0, 0)
        words = struct.unpack(f"={len(raw) // 4}I", raw[: len(raw) // 4 * 4])
        if len(words) <= MEMINFO_DROPS:
            return QueueState(0, 0, 0)
        return QueueState(words[MEMINFO_QUEUED], words[MEMINFO_ROOM], words[MEMINFO_DROPS])

    def fileno(self) -> int:
        """Return the file descriptor, -1 after `close` or `detach`."""
        return self._socket.fileno()

    def detach(self) -> int:
        """Give up the socket without closing it and return its file descriptor, which the caller now owns."""
        return self._socket.detach()

    def close(self) -> None:
        """Close this process's hold on the socket; idempotent."""
        self._socket.close()

    # --- Sending ---

    def transmit(self, endpoint: Endpoint, datagrams: Sequence[Datagram], joined: memoryview | None = None) -> int:
        """Send datagrams to an endpoint in order, from its local address; return how many the kernel took.

        joined: all datagrams without gaps, where only the last may be shorter.
        The others are counted in `send_failures`: UDP promises nothing, so no send error is raised. Waits for room in
        the send buffer, 50 ms at most in total.
        """
        count = len(datagrams)
        path = self._paths.get(endpoint) or self._find_path(endpoint)
        taken = 0
        if path is not None:
            self._waits_left = SEND_WAITS_MAX
            if count == 1:
                taken = self._send(path, datagrams)
            elif not self._segmentation:
                taken = self._send_singly(path, datagrams)
            elif joined is not None and count <= SEGMENTS_MAX and len(joined) <= SEGMENTED_BYTES_MAX:
                taken = self._send(path, datagrams, (joined,))
            else:
                for start, end in split_runs([len(datagram) for datagram in datagrams]):
                    taken += self._send(path, datagrams[start:end])
        self.send_failures += count - taken
        return taken

    def _find_path(self, endpoint: Endpoint) -> tuple[SocketAddress, list[ControlMessage]] | None:
        path = path_to(endpoint, self._family)
        if path is None:
            log.debug("not sent: the socket is for IPv4 only", endpoint=endpoint)
            return None
        if len(self._paths) >= ENDPOINTS_CACHED_MAX:
            self._paths.clear()
        self._paths[endpoint] = path
        return path

    def _send_singly(self, path: tuple[SocketAddress, list[ControlMessage]], datagrams: Sequence[Datagram]) -> int:
        return sum(self._send(path, (datagram,)) for datagram in datagrams)

    def _send(
        self,
        path: tuple[SocketAddress, list[ControlMessage]],
        run: Sequence[Datagram],
        joined: Sequence[Datagram] = (),
    ) -> int:
        """Send one run in one call, or in a fallback where the kernel refuses; return how many datagrams it took.

        joined: the same bytes in fewer pieces, or nothing.
        """
        address, control = path
        from_address = bool(control)
        segmented = len(run) > 1
        may_be_old = self.receiver.reports_errors  # a call may report an earlier send's error, and then has not sent
        if segmented:
            control = [*control, segment_message(len(run[0]))]
        while True:
            try:
                self._sendmsg(joined or run, control, address)
            except OSError as error:
                code = error.errno
            else:
                return len(run)
            if code in _NO_ROOM and self._wait_for_room():
                continue
            if may_be_old and code in EARLIER_ERRORS:
                may_be_old = False
                continue
            if segmented and code in _SEGMENTATION_REFUSED:
                if code in _SEGMENTATION_UNSUPPORTED:
                    self._note_lack("datagrams are sent singly: the kernel does not segment")
                    self._segmentation = False
                return self._send_singly(path, run)
            if from_address and code in _SOURCE_GONE:
                # A reply from another address of this host is better than none: the peer follows authenticated packets.
                from_address = False
                control = control[1:]
                continue
            log.debug("not sent", datagrams=len(run), address=address, error=errno.errorcode.get(code or 0, code))
            if code != errno.ECONNREFUSED:  # an earlier send's, and the error queue has it with who reports it
                self.receiver.note_unreachable(endpoint_from(address, b"").remote, code or 0)
            return 0

    def _sendmsg(self, run: Sequence[Datagram], control: list[ControlMessage], address: SocketAddress) -> None:
        self._socket.sendmsg(run, control, _DONTWAIT, address)

    def _wait_for_room(self) -> bool:
        """Wait for room in the send buffer; return False once this transmit has waited long enough."""
        if self._waits_left == 0:
            return False
        self._waits_left -= 1
        self._writable.poll(SEND_WAIT_MS)
        return True


def bind_udp(host: str | IPv4Address | IPv6Address, port: int) -> socket.socket:
    """Bind a UDP socket where none was passed; `::` takes IPv4 as well. Raises ConfigError if it cannot be bound.

    Where the kernel has no IPv6, `::` is all addresses that there are: those of IPv4.
    SO_REUSEADDR stays off: with it on both sockets, another process could bind the same port and take all packets.
    """
    if not 0 <= port <= PORT_MAX:  # getaddrinfo would take it modulo 65536
        raise ConfigError(f"listen address {host} port {port}: expected a port from 0 (any) to {PORT_MAX}")
    if str(host) == "::" and not has_ipv6():
        host = "0.0.0.0"  # noqa: S104  # as the configuration says
    try:
        info = socket.getaddrinfo(str(host), port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        family, _, _, _, address = info[0]
        bound = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                bound.setsockopt(IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind(address)
        except BaseException:  # cleans up, and raises it again
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(f"listen address {host} port {port}: {_bind_problem(error)}") from error
    return bound


_BIND_REMEDIES = {
    errno.EADDRINUSE: "the port is taken; stop its owner, or replace a running server with `oxidize reload`",
    errno.EADDRNOTAVAIL: "this host does not have the address; use one of its own, or [::] for all",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; use a higher port, or a systemd socket unit",
    errno.EAFNOSUPPORT: "this kernel has no IPv6; use an address of IPv4, or [::] for all",
}


def _bind_problem(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"expected an IPv4 or IPv6 address, not a name ({error.strerror})"
    return _BIND_REMEDIES.get(error.errno or 0, f"cannot be bound ({error.strerror})")


def _has_option(bound: socket.socket, level: int, option: int) -> bool:
    """Return whether the kernel knows an option; otherwise it would silently ignore the control message."""
    try:
        bound.getsockopt(level, option)
    except OSError:
        return False
    return True
