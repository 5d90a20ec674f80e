"""When datagrams of one port pass an interface, by the kernel's clock: how long a server takes between two of them.

The times are of the moment at which the kernel hands a datagram to the interface, or takes it from there. So they hold
what a server and its queue add, its waiting for a processor too, and nothing of what the other end adds. Sources:
packet(7), socket(7) SO_ATTACH_FILTER, linux/filter.h.
"""

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from oxidize.protocol.constants import TYPE_DATA
from tests.support.traffic.namespaces import Namespace

SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
ETH_P_ALL = 3
BUFFER_BYTES = 8 << 20
IPV4_UDP_BYTES = 28
KEEPALIVE_BYTES = 32
SNAPPED_BYTES = 64
# Accept what has the port as source (at 20) or destination (at 22) behind an IPv4 header, else drop.
_FILTER: tuple[tuple[int, int, int, int | None], ...] = (
    (0x28, 0, 0, 20),
    (0x15, 2, 0, None),
    (0x28, 0, 0, 22),
    (0x15, 0, 1, None),
    (6, 0, 0, SNAPPED_BYTES),
    (6, 0, 0, 0),
)


@dataclass
class Seen:
    """The times of data messages that were no keepalives, nanoseconds, in order."""

    came_ns: list[int]
    left_ns: list[int]

    def delays_ms(self, sent: int, answered: Sequence[int]) -> list[float]:
        """Return how long each answer took. sent: how many messages came, the last ones; answered: which of them."""
        requests, replies = self.came_ns[-sent:], self.left_ns[-len(answered) :] if answered else []
        return [(left - requests[number]) / 1e6 for number, left in zip(answered, replies, strict=True)]


@contextmanager
def tap(namespace: Namespace, link: str, port: int) -> Iterator[Seen]:
    """Note what passes a link while entered; the result is complete at exit."""
    seen = Seen([], [])
    with namespace.entered():
        tapped = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    with tapped:
        code = b"".join(struct.pack("HBBI", kind, yes, no, port if k is None else k) for kind, yes, no, k in _FILTER)
        held = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxP", len(_FILTER), ctypes.addressof(held))
        tapped.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        tapped.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        tapped.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        tapped.bind((link, ETH_P_ALL))
        yield seen
        with suppress(BlockingIOError):
            while True:
                frame, control, _, source = tapped.recvmsg(SNAPPED_BYTES, 64, socket.MSG_DONTWAIT)
                length = int.from_bytes(frame[24:26], "big") - 8
                if frame[IPV4_UDP_BYTES] == TYPE_DATA and length > KEEPALIVE_BYTES:
                    secs, ns = struct.unpack("qq", control[0][2])
                    times = seen.left_ns if source[2] == socket.PACKET_OUTGOING else seen.came_ns
                    times.append(secs * 1_000_000_000 + ns)
