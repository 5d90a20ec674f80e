"""Packets that leave a client's uplink past its tunnel, while programs of the client and its neighbours send.

Rule: a capture that sees nothing proves nothing, so a test also runs without the protection and must see packets.
Sources: packet(7) for PACKET_OUTGOING.
"""

import contextlib
import ipaddress
import socket
import struct
import threading
from typing import Self

from oxidize.net.udp_cmsg import SO_RCVBUFFORCE
from tests.support.traffic.capture import BUFFER_BYTES, ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, FRAME_BYTES_MAX
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.routed_client import FAR4, FAR6, PORT, SERVER4, SERVER6
from tests.support.traffic.server import wait_for

_UDP = 17
_DISCARD = 9  # the port of RFC 863
PAUSE_SECS = 0.01  # between two rounds: the programs must not fill the tunnel's queue
# Beyond the uplink: behind the tunnel, inside of it, and the server's own address.
TARGETS = (FAR4, FAR6, "10.9.0.1", "fd09::1", SERVER4, SERVER6)
LOCAL = tuple(
    ipaddress.ip_network(text) for text in ("192.0.2.0/30", "2001:db8:1::/64", "fe80::/10", "ff02::/16", "224.0.0.0/24")
)


class Leaks:
    """The packets that left `up0` of a namespace in the clear while entered: (protocol, source, destination, port)."""

    def __init__(self, here: Namespace) -> None:
        self.seen: set[tuple[int, str, str, int]] = set()
        self.own = 0  # datagrams of the tunnel
        with here.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            self._socket.bind(("up0", ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                packet, address = self._socket.recvfrom(FRAME_BYTES_MAX)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            except OSError:  # the link is down
                continue
            if address[2] == socket.PACKET_OUTGOING:
                self._look(address[1], packet)

    def _look(self, protocol: int, packet: bytes) -> None:
        if protocol == ETH_P_IP:
            kind, addresses, start = packet[9], (packet[12:16], packet[16:20]), (packet[0] & 0x0F) * 4
        elif protocol == ETH_P_IPV6:
            kind, addresses, start = packet[6], (packet[8:24], packet[24:40]), 40
        else:
            return
        source, destination = map(ipaddress.ip_address, addresses)
        port = struct.unpack_from(">H", packet, start + 2)[0] if kind == _UDP else 0
        if kind == _UDP and str(destination) in {SERVER4, SERVER6} and port == PORT:
            self.own += 1
        elif not any(destination in network for network in LOCAL):
            self.seen.add((kind, str(source), str(destination), port))


class Senders:
    """Programs that send to all targets all the time while entered, as on the client and on a neighbour behind it."""

    def __init__(self, *namespaces: Namespace) -> None:
        self.rounds = 0
        self._sockets = [self._open(namespace, family) for namespace in namespaces for family in (4, 6)]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _open(self, namespace: Namespace, version: int) -> tuple[socket.socket, int]:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with namespace.entered():
            return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK), version

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for opened in self._sockets:
            opened[0].close()

    def send_on(self, rounds: int = 30) -> None:
        """Wait until every program has sent this many times more to every target."""
        goal = self.rounds + rounds
        wait_for("the programs to send", lambda: self.rounds >= goal)

    def _run(self) -> None:
        while not self._ending.wait(PAUSE_SECS):
            for each, version in self._sockets:
                for target in TARGETS:
                    if (":" in target) == (version == 6):
                        with contextlib.suppress(OSError):  # no route, or dropped: that is the question
                            each.sendto(b"in the clear", (target, _DISCARD))
            self.rounds += 1
