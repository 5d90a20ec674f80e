"""What others ask of a server beside its load: a handshake, /metrics, and its state over the channel of a takeover."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network

from benchmarks.player import udp_packet
from benchmarks.stand import Stand
from oxidize.errors import OxidizeError
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots
from tests.support.traffic.direct_link import PORT, DirectLink
from tests.support.traffic.server import Identity

HTTP = ("127.0.0.1", 9100)
PAUSE_SECS = 0.1  # between two questions: initiations of one peer that come faster are dropped
ANSWER_SECS_MAX = 1.0
READ_BYTES = 65_536


class Bystanders:
    """Who asks. caller: a peer of the server that only makes handshakes; address: its own, inside."""

    def __init__(self, stand: Stand, caller: Identity, address: str) -> None:
        self._stand = stand
        self._caller = caller
        self._packet = udp_packet(address, address, 0)
        with stand.link.client_side.entered():
            self._socket = stand.lab.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.connect((DirectLink.SERVER, PORT))

    @contextmanager
    def asking(self, times: dict[str, list[float]]) -> Iterator[None]:
        """Ask while entered; `times` gets those of all answers, in ms, infinite for one that did not come."""
        ended = threading.Event()

        def ask(name: str, question: Callable[[], None]) -> None:
            while not ended.wait(PAUSE_SECS):
                began = time.perf_counter()
                try:
                    question()
                    times.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
                except (OSError, OxidizeError):
                    times.setdefault(name, []).append(float("inf"))

        questions = {"handshake": self._shake_hands, "/metrics": self._read_metrics, "status": self._ask_status}
        threads = [threading.Thread(target=ask, args=each) for each in questions.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _shake_hands(self) -> None:
        endpoint = Endpoint(ip_address(DirectLink.SERVER).packed, PORT)
        server = PeerSettings(
            self._stand.server.identity.public, allowed_ips=(ip_network("0.0.0.0/0"),), endpoint=endpoint
        )
        device = Device(self._caller.private, [server], ArraySlots(8), os.urandom, time.time, lambda _: None)
        self._socket.setblocking(False)
        with suppress(BlockingIOError):  # the answer to an earlier one, too late
            while True:
                self._socket.recv(READ_BYTES)
        self._socket.settimeout(ANSWER_SECS_MAX)
        device.send_packets([self._packet], time.monotonic())
        for transmit in device.take_transmits():
            for datagram in transmit.datagrams:
                self._socket.send(datagram)
        while not device.live_sessions(time.monotonic()):
            device.receive_datagrams([self._socket.recv(READ_BYTES)], endpoint, time.monotonic())

    def _read_metrics(self) -> None:
        with self._stand.link.server_side.entered():
            connected = socket.create_connection(HTTP, ANSWER_SECS_MAX)
        with connected:
            connected.sendall(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            while connected.recv(READ_BYTES):
                pass

    def _ask_status(self) -> None:
        self._stand.server.status()
