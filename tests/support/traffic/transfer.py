"""A paced TCP transfer through a tunnel, checked byte for byte.

Rule: sender and receiver hash their bytes independently; only equal hashes prove an intact transfer.
"""

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import WAIT_SECS

CHUNK_BYTES = 8_192
BYTES_PER_SECOND = 500_000
# Small enough that all bytes in flight fit into wireguard-go's receive buffer (the kernel's default of 212,992 bytes)
# when they arrive at once after a blackout: a drop at that socket is not the server's loss.
WINDOW_BYTES = 65_536


class Transfer:
    """A transfer from one namespace to an address in another while entered.

    wait_secs: the longest pause before the transfer fails.
    """

    def __init__(self, sender: Namespace, receiver: Namespace, address: str, wait_secs: float = WAIT_SECS) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with receiver.entered():
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
            self._listener.bind((address, 0))
            self._listener.listen(1)
        with sender.entered():
            self._sending = socket.socket(family, socket.SOCK_STREAM)
        self._wait_secs = wait_secs
        self._sending.settimeout(wait_secs)
        self._listener.settimeout(wait_secs)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(run,)) for run in (self._send, self._receive)]
        self._errors: list[BaseException] = []
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self.sent_bytes = self.received_bytes = 0
        self.longest_gap_secs = 0.0  # between two reads

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._join()
        self._sending.close()
        self._listener.close()

    def assert_intact(self) -> None:
        """End the transfer; fail unless all bytes were received, in order and unchanged."""
        self._join()
        if self._errors:
            raise self._errors[0]
        assert self.sent_bytes > 0
        assert self.received_bytes == self.sent_bytes
        assert self._received.digest() == self._sent.digest()

    def _join(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - `assert_intact` raises it
            self._errors.append(error)

    def _send(self) -> None:
        stream = random.Random(1)  # any bytes in which no two chunks are equal
        self._sending.connect(self._listener.getsockname())
        started = time.monotonic()
        while not self._stopping.is_set():
            chunk = stream.randbytes(CHUNK_BYTES)
            self._sending.sendall(chunk)
            self._sent.update(chunk)
            self.sent_bytes += len(chunk)
            ahead = self.sent_bytes / BYTES_PER_SECOND - (time.monotonic() - started)
            if ahead > 0:
                self._stopping.wait(ahead)
        self._sending.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(self._wait_secs)
            last = time.monotonic()
            while data := connection.recv(CHUNK_BYTES):
                now = time.monotonic()
                self.longest_gap_secs = max(self.longest_gap_secs, now - last)
                last = now
                self._received.update(data)
                self.received_bytes += len(data)
