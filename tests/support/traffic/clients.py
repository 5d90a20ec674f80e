"""Clients in this process: devices with a socket each, which send numbered echo requests and record all replies.

Rule: the verdict uses only the clients' own observations. A request without a reply at the end is lost; a reply that
arrives twice is duplicated, whether the client or the replay window noticed it.
"""

import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_network
from typing import Self

from demo.echo import EchoPath
from oxidize.net.udp_cmsg import MEMINFO_DROPS, SO_MEMINFO
from oxidize.protocol.counters import DROPS_START, DropReason, Total
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots
from tests.support.traffic.server import WAIT_SECS, Identity, PeerTable, Server, wait_for
from tests.support.traffic.transport_messages import transport_pairs

SERVER_INNER = IPv4Address("10.9.0.1")
DATAGRAM_BYTES_MAX = 2048
LINGER_SECS = 3.0  # the longest wait for missing replies
LAST_LOOK_SECS = 0.2  # for duplicates that arrive after the last reply


def clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class EchoClient:
    """One peer of a server. number: 2 to 254, the last byte of its tunnel address."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.identity = Identity.make()
        self.address = IPv4Address(f"10.9.0.{number}")
        self.datagrams: list[bytes] = []  # all datagrams from the server
        self.sent = 0
        self.replies: Counter[int] = Counter()
        self.corrupted = 0
        self._path = EchoPath(self.address, SERVER_INNER, number)
        self._slots = ArraySlots(16)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._endpoint: Endpoint
        self._device: Device

    def table(self) -> PeerTable:
        """Return the table of this client for the server's configuration."""
        return PeerTable(f"client-{self.number}", self.identity.public, (f"{self.address}/32",))

    def connect(self, server: Server) -> None:
        """Connect to a running server."""
        self.connect_to(server.identity.public, server.port)

    def connect_to(self, server_public_key: bytes, port: int) -> None:
        """Connect to the server at a port of this machine, without any earlier session or count."""
        self._slots = ArraySlots(16)
        self._endpoint = Endpoint(bytes([127, 0, 0, 1]), port)
        self.socket.connect(("127.0.0.1", port))  # so that the kernel reports an unreachable port
        settings = PeerSettings(server_public_key, allowed_ips=(ip_network(SERVER_INNER),), endpoint=self._endpoint)
        self._device = Device(self.identity.private, [settings], self._slots, os.urandom, time.time, lambda _: None)

    def send_next(self) -> None:
        now = clock()
        self._device.send_packets([self._path.request(self.sent, int(now * 1e9))], now)
        self.sent += 1
        self._transmit()

    def receive(self) -> None:
        """Read all queued datagrams; raises ConnectionRefusedError if the server's port was unbound at any time."""
        while True:
            try:
                datagram = self.socket.recv(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                return
            self.datagrams.append(datagram)
            for packet in self._device.receive_datagrams([datagram], self._endpoint, clock()):
                reply = self._path.read_reply(packet)
                if reply is None or reply[0] >= self.sent:
                    self.corrupted += 1
                else:
                    self.replies[reply[0]] += 1
            self._transmit()

    def run_timers(self) -> None:
        self._device.handle_timeout(clock())
        self._transmit()

    def _transmit(self) -> None:
        for transmit in self._device.take_transmits():
            for datagram in transmit.datagrams:
                self.socket.send(datagram)

    # --- The verdict ---

    @property
    def waiting(self) -> int:
        return self.sent - len(self.replies)

    @property
    def duplicated(self) -> int:
        """The number of duplicated replies, including datagrams that the replay window refused."""
        replayed = self._slots.counters[DROPS_START + DropReason.REPLAYED_COUNTER]
        return sum(self.replies.values()) - len(self.replies) + replayed

    @property
    def handshakes(self) -> int:
        """The number of handshakes that this client completed."""
        return self._slots.counters[Total.HANDSHAKES_INITIATOR]

    @property
    def queue_drops(self) -> int:
        """The number of datagrams that the kernel dropped at this client's socket."""
        words = struct.unpack("9I", self.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
        return int(words[MEMINFO_DROPS])


class Traffic:
    """A thread that sends echo requests of all clients on a schedule while entered; sessions are made before.

    packets_per_second: of all clients together.
    """

    def __init__(self, server: Server, clients: Sequence[EchoClient], packets_per_second: float) -> None:
        self.server = server
        self.clients = clients
        self._interval = 1 / packets_per_second
        self._by_fd = {client.socket.fileno(): client for client in clients}
        self._thread = threading.Thread(target=self._run)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self.handshakes: list[int] = []

    def __enter__(self) -> Self:
        for client in self.clients:
            client.connect(self.server)
            client.send_next()
        deadline = clock() + WAIT_SECS
        while any(client.waiting for client in self.clients):
            assert clock() < deadline, f"no session: {self.server.log_path.read_text()}"
            self._turn(0.01)
        self.handshakes = [client.handshakes for client in self.clients]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for client in self.clients:
            client.socket.close()

    def stop(self) -> None:
        """Stop sending and wait for the last replies; raises the thread's exception. Idempotent."""
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def requests(self) -> int:
        return sum(client.sent for client in self.clients)

    def replies(self) -> int:
        return sum(len(client.replies) for client in self.clients)

    def wait_for_requests(self, more: int = 40) -> None:
        """Wait until the given number of further requests was sent."""
        wanted = self.requests() + more
        wait_for("more requests", lambda: self._error is not None or self.requests() >= wanted)

    def wait_for_more(self, replies: int = 20) -> None:
        """Wait until the given number of further replies has arrived."""
        wanted = self.replies() + replies
        wait_for("more replies", lambda: self._error is not None or self.replies() >= wanted)

    def _run(self) -> None:
        try:
            started, done = clock(), 0
            while not self._stopping.is_set():
                while started + done * self._interval <= clock():
                    self.clients[done % len(self.clients)].send_next()
                    done += 1
                    self._turn(0)
                self._turn(max(0.0, started + done * self._interval - clock()))
            self._settle()
        except BaseException as error:  # noqa: BLE001 - `stop` raises it
            self._error = error

    def _settle(self) -> None:
        deadline = clock() + LINGER_SECS
        while any(client.waiting for client in self.clients) and clock() < deadline:
            self._turn(0.01)
        deadline = clock() + LAST_LOOK_SECS
        while clock() < deadline:
            self._turn(0.01)

    def _turn(self, timeout: float) -> None:
        readable, _, _ = select.select(list(self._by_fd), [], [], timeout)
        for fd in readable:
            self._by_fd[fd].receive()
        for client in self.clients:
            client.run_timers()

    # --- The verdict ---

    def pairs(self) -> list[tuple[int, int]]:
        """Return (receiver index, counter) of all transport messages that the server sent to any client."""
        return [pair for client in self.clients for pair in transport_pairs(client.datagrams)]

    @property
    def lost(self) -> int:
        return sum(client.waiting for client in self.clients)

    def assert_unharmed(self, *, lost_at_most: int = 0) -> None:
        """Fail unless every request was answered exactly once, in the sessions from the start."""
        self.stop()
        assert self.lost <= lost_at_most, f"{self.lost} of {self.requests()} lost"
        assert sum(client.duplicated for client in self.clients) == 0
        assert sum(client.corrupted for client in self.clients) == 0
        assert [client.handshakes for client in self.clients] == self.handshakes
        assert [client.queue_drops for client in self.clients] == [0] * len(self.clients)
