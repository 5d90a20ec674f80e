"""Capture the outer datagrams and ICMP errors on an interface with a raw socket.

Rule: an incomplete capture proves nothing, so `stop` fails if the kernel dropped a packet of it. Sources:
packet(7), RFC 792 and RFC 4443 for the errors.
"""

import socket
import struct
import threading
from typing import Self

from oxidize.net.udp_cmsg import SO_RCVBUFFORCE
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.transport_messages import UDP_PAYLOAD_BYTES_MAX

ETH_P_ALL = 0x0003
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
SOL_PACKET = 263
PACKET_STATISTICS = 6
BUFFER_BYTES = 256 << 20
FRAME_BYTES_MAX = 65_600
_ICMP, _UDP, _ICMPV6 = 1, 17, 58
_PORT_UNREACHABLE = {ETH_P_IP: (_ICMP, 3, 3), ETH_P_IPV6: (_ICMPV6, 1, 4)}


class Capture:
    """A capture on interface `name` while entered. port: the UDP source port whose datagrams are kept."""

    def __init__(self, namespace: Namespace, name: str, port: int) -> None:
        self.port = port
        self.datagrams: list[bytes] = []
        self.port_unreachables = 0
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            self._socket.bind((name, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close()

    def stop(self) -> None:
        """Read the queued packets and end the capture; fail if the kernel dropped any."""
        self._stopping.set()
        self._thread.join()
        _, drops = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert drops == 0, f"the capture missed {drops} packets"

    def _run(self) -> None:
        while True:
            try:
                packet, address = self._socket.recvfrom(FRAME_BYTES_MAX)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            self._look(address[1], packet)

    def _look(self, protocol: int, packet: bytes) -> None:
        if protocol == ETH_P_IP:
            kind, start = packet[9], (packet[0] & 0x0F) * 4
        elif protocol == ETH_P_IPV6:
            kind, start = packet[6], 40  # no sender in these tests uses extension headers
        else:
            return
        if kind == _UDP:
            source, _, length = struct.unpack_from(">HHH", packet, start)
            if source == self.port:
                assert length - 8 <= UDP_PAYLOAD_BYTES_MAX, f"a datagram of {length - 8} bytes: several in one"
                self.datagrams.append(packet[start + 8 : start + length])
        elif (kind, packet[start], packet[start + 1]) == _PORT_UNREACHABLE[protocol]:
            self.port_unreachables += 1
