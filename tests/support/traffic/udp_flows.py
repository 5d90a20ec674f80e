"""Many UDP flows of one datagram each: NAT takes a new decision for every one.

Rule: the receiver records every source address, so a single untranslated flow shows. Source: only the first packet of a
flow passes the nat chains (nft(8), "nat").
"""

import socket
import threading
from collections import Counter
from typing import Self

from tests.support.traffic.namespaces import Namespace

FLOWS_PER_SECOND = 200


class Flows:
    """A stream of flows from one namespace to an address in another while entered."""

    def __init__(self, sender: Namespace, receiver: Namespace, address: str) -> None:
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._sender = sender
        with receiver.entered():
            self._receiving = socket.socket(self._family, socket.SOCK_DGRAM)
        self._receiving.bind((address, 0))
        self._receiving.settimeout(0.2)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._send, self._receive)]
        self.sent = 0
        self.sources: Counter[str] = Counter()  # source addresses, and how often each was seen

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._receiving.close()

    def stop(self) -> None:
        """Stop sending and receive what is in flight; idempotent."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        target = self._receiving.getsockname()
        with self._sender.entered():
            while not self._stopping.wait(1 / FLOWS_PER_SECOND):
                with socket.socket(self._family, socket.SOCK_DGRAM) as sending:
                    sending.sendto(b"?", target)
                self.sent += 1

    def _receive(self) -> None:
        while True:
            try:
                _, address = self._receiving.recvfrom(100)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            self.sources[str(address[0])] += 1
