"""Receiving from the UDP socket: single datagrams into rows, and batches that the kernel has joined (GRO).

The rule: what one `receive` takes is at most BATCH_PACKETS_MAX packets. Before a further datagram is taken, its size is
asked for: it may be a batch of as many messages as its bytes have room for, and then it has to wait.

Sources: udp(7) UDP_GRO, ip(7) "Error handling" and IP_RECVERR, ioctl_tty(2) FIONREAD, which udp(7) has for the size of
the next datagram.
"""

import errno
import fcntl
import socket
from array import array
from termios import FIONREAD
from typing import NamedTuple

from oxidize.net.udp_cmsg import (
    UDP_GRO,
    SocketAddress,
    endpoint_from,
    read_control,
    read_error,
)
from oxidize.protocol.constants import BATCH_PACKETS_MAX, DATA_OVERHEAD, INITIATION_SIZE, TYPE_INITIATION
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.rows import ROW_BYTES, ReceivedRows

# --- Limits ---
ENDPOINTS_CACHED_MAX = 131_072  # above PEERS_MAX, so that only forged source addresses can fill it
QUEUED_ERRORS_MAX = 16  # errors taken from the error queue at a time

# Room for the segment size, both kinds of packet info, and other messages that a unit file may have switched on.
_CONTROL_BYTES = 256

# As plain integers: the flags of the socket module are enumerations, whose operators cost a microsecond each.
_DONTWAIT = int(socket.MSG_DONTWAIT)
_CONTROL_CUT = int(socket.MSG_CTRUNC)
_CUT = int(socket.MSG_TRUNC) | _CONTROL_CUT
_FROM_ERRORS = int(socket.MSG_ERRQUEUE) | _DONTWAIT

# ICMP errors of an earlier send: ip(7), "Error handling". They say nothing about the next datagram.
# First those that mean that a peer cannot be reached at all.
UNREACHABLE = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.ENONET,
        errno.EACCES,
    }
)
EARLIER_ERRORS = UNREACHABLE | {errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPROTO, errno.EMSGSIZE}


class ReceivedBatch(NamedTuple):
    """Datagrams that came by one path, in order.

    datagrams: views of the one receive buffer, valid until the next `receive`: copy what must last. At most 64; a
    sender on this host may segment into 128, which the kernel then hands over as they are.
    truncated: bytes were lost on the way into the buffer; a datagram that was cut is left out of `datagrams`.
    """

    endpoint: Endpoint
    datagrams: list[memoryview]
    truncated: bool


class UdpReceiver:
    """The receiving half of a UDP socket.

    errors: how many errors of earlier sends the socket has reported. reports_errors: whether ICMP errors are taken from
    its error queue. unreachable: the peers that cannot be reached according to an error (`Endpoint.remote`), each with
    whether its host refused; the reader of the list empties it. is_empty: whether the latest `receive` left nothing.
    is_cut: whether it ended before or behind an initiation.
    """

    def __init__(self, bound: socket.socket) -> None:
        self.errors = 0
        self.reports_errors = False
        self.unreachable: list[tuple[tuple[bytes, int, int], bool]] = []
        self.is_empty = True
        self.is_cut = False
        self._socket = bound
        self._pending = array("i", [0])
        self._endpoints: dict[tuple[SocketAddress, bytes], Endpoint] = {}

    def receive(self, rows: ReceivedRows, *, parts_initiations: bool = False) -> ReceivedBatch | None:
        """Fill `rows` with datagrams that came singly, or were joined; return what has no place in rows, or None.

        parts_initiations: whether one is a batch of its own, for its handshake takes as long as a batch of data.
        That is a batch that came behind single datagrams, a datagram longer than a row, or what was cut. Errors that
        ICMP left on the socket are counted and skipped. Raises OSError if the socket itself is unusable: a bug.
        """
        rows.clear()
        self.is_empty = self.is_cut = False
        receive, descriptor, pending = self._socket.recvmsg_into, self._socket.fileno(), self._pending
        for number, room in enumerate(rows.room):
            try:
                size, control, flags, address = receive(room, _CONTROL_BYTES, _DONTWAIT)
            except OSError as error:
                self._note_error(error)
                return None
            if len(control) == 1 and (message := control[0])[1] != UDP_GRO:
                segment_size, packet_info = 0, message[2]
            else:
                segment_size, packet_info = read_control(control)
            endpoint = self._endpoints.get((address, packet_info)) or self._learn_endpoint((address, packet_info))
            if segment_size or size > ROW_BYTES or flags & _CUT:
                if number == 0 and not flags & _CUT and _has_rows(size, segment_size):
                    rows.fill_joined(size, segment_size, endpoint)
                    fcntl.ioctl(descriptor, FIONREAD, pending)
                    self.is_empty = pending[0] == 0
                    return None
                return self._batch(rows, number, size, segment_size, flags, endpoint)
            rows.sizes.append(size)
            rows.endpoints.append(endpoint)
            if size == INITIATION_SIZE and parts_initiations and room[0][0] == TYPE_INITIATION:
                self.is_cut = True
                return None
            fcntl.ioctl(descriptor, FIONREAD, pending)
            following = pending[0]
            if following == 0:
                self.is_empty = True  # or an empty datagram comes next, for which the socket stays readable
                return None
            if following == INITIATION_SIZE and parts_initiations:  # nearly always: the size of no padded data message
                self.is_cut = True
                return None
            if following > ROW_BYTES or number + 1 + following // DATA_OVERHEAD > BATCH_PACKETS_MAX:
                return None
        return None

    def _note_error(self, error: OSError) -> None:
        """Note why nothing could be received; raise an error that is none of an earlier send."""
        if error.errno == errno.EAGAIN:
            self.is_empty = True
            if self.reports_errors:
                self._take_errors()
        elif error.errno in EARLIER_ERRORS:
            self.errors += 1
        else:
            raise error

    def _batch(
        self, rows: ReceivedRows, number: int, size: int, segment_size: int, flags: int, endpoint: Endpoint
    ) -> ReceivedBatch:
        """Return the batch of `size` bytes that was received into a row."""
        start = number * ROW_BYTES
        received, step = rows.memory[start : start + size], segment_size or size
        datagrams = [received[at : at + step] for at in range(0, size, step)]
        if flags & _CUT:
            # Without its control message a batch has lost the size of its segments: its datagrams cannot be separated.
            return ReceivedBatch(endpoint, [] if flags & _CONTROL_CUT else datagrams[:-1], True)
        return ReceivedBatch(endpoint, datagrams, False)

    def _take_errors(self) -> None:
        """Empty the socket's error queue: as long as it holds an error, the socket counts as readable."""
        for _ in range(QUEUED_ERRORS_MAX):
            try:
                _, control, _, address = self._socket.recvmsg(0, _CONTROL_BYTES, _FROM_ERRORS)
            except OSError:
                return
            code, offender = read_error(control)
            remote = endpoint_from(address, b"").remote
            # Any host can forge an error, but only a host on the way to the peer one that comes from the peer itself.
            if code != errno.ECONNREFUSED or offender == remote[0]:
                self.note_unreachable(remote, code)

    def note_unreachable(self, remote: tuple[bytes, int, int], code: int) -> None:
        """Note a peer that cannot be reached according to an errno, where errors are reported."""
        if self.reports_errors and code in UNREACHABLE:
            self.unreachable.append((remote, code == errno.ECONNREFUSED))

    def _learn_endpoint(self, key: tuple[SocketAddress, bytes]) -> Endpoint:
        if len(self._endpoints) >= ENDPOINTS_CACHED_MAX:
            self._endpoints.clear()
        endpoint = self._endpoints[key] = endpoint_from(*key)
        return endpoint


def _has_rows(size: int, segment_size: int) -> bool:
    """Return whether joined datagrams, the first of `segment_size` bytes, have a place in rows."""
    return DATA_OVERHEAD <= segment_size <= ROW_BYTES and size <= segment_size * BATCH_PACKETS_MAX
