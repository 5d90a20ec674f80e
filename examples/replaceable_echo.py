"""A UDP echo server that is replaced under traffic: start it a second time, and the first process ends.

    .venv/bin/python examples/replaceable_echo.py 127.0.0.1:7777 /tmp/echo.sock

The socket never closes, so no datagram is lost and no port is bound twice; the number of echoes goes along. A new
process that fails on the way leaves the old one serving.
"""

import contextlib
import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Any

from oxidize.takeover import Answer, Hello, NamedFd, Offer, TakeoverHost, Upgrader


class Echo(TakeoverHost):
    def __init__(self, udp: socket.socket, generation: int, selector: selectors.BaseSelector) -> None:
        self.udp = udp
        self.generation = generation
        self.echoes = 0
        self.is_finished = False
        self._selector = selector

    def serve(self) -> None:
        self._selector.register(self.udp, selectors.EVENT_READ, self.echo)

    def echo(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a datagram whose checksum was wrong
            data, sender = self.udp.recvfrom(65_536, socket.MSG_DONTWAIT)
            self.udp.sendto(data, sender)
            self.echoes += 1

    # --- What a takeover asks for: see TakeoverHost ---

    def offer(self, hello: Hello) -> Offer:
        return Offer(self.generation, (NamedFd("udp", self.udp.fileno(), "socket"),), {"echoes": self.echoes})

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        self._selector.unregister(self.udp)
        return {"echoes": self.echoes}

    def thaw(self, reason: str) -> None:
        self.serve()

    def finish(self, taken: dict[str, Any]) -> None:
        self.is_finished = True

    def answer(self, query: str) -> Answer:
        return Answer(f"generation {self.generation}, pid {os.getpid()}, {self.echoes} echoes".encode())


def main(address: str, path: str) -> None:
    host, _, port = address.rpartition(":")
    with selectors.DefaultSelector() as selector, Upgrader(Path(path), release="1.0") as upgrader:
        offer = upgrader.connect()
        if offer is None:
            echo = Echo(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 1, selector)
            echo.udp.bind((host, int(port)))
        else:
            echo = Echo(socket.socket(fileno=offer.find("udp").fd), offer.generation + 1, selector)
            commit = upgrader.ready({})  # returns once the old process has stopped, or has died
            echo.echoes = commit.info.get("echoes", offer.state["echoes"])
        echo.serve()
        upgrader.serve(echo)
        selector.register(upgrader, selectors.EVENT_READ)
        while not echo.is_finished:
            for key, _ in selector.select(upgrader.timeout()):
                if key.data is not None:
                    key.data()
            upgrader.process()  # last, for it may hand over what the others read


if __name__ == "__main__":
    main(*sys.argv[1:])
