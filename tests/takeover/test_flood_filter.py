"""The filter of a flood does not outlive the process that attached it, however that ends."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from demo.processes import reap, spawn
from tests.support.socket_filter import is_filtered
from tests.support.traffic.server import OXIDIZE, Lab, Server, kill, wait_for

INITIATION = b"\1\0\0\0" + bytes(144)  # without a cookie
BURST = 2000


class Flooded:
    """A server whose socket a service manager holds, which is this process."""

    def __init__(self, lab: Lab, udp: socket.socket, sender: socket.socket) -> None:
        self.server = Server(lab, [])
        self.udp = udp
        self._sender = sender
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        sender.connect(udp.getsockname())

    def start(self) -> int:
        """Start a process of the server; return its pid once it serves."""
        command = (*OXIDIZE, "server", "--no-holder", "-c", str(self.server.config_path))
        with self.server.log_path.open("wb") as log:
            pid = spawn(command, os.environ, log.fileno(), [("udp", self.udp.fileno())])

        def serves() -> bool:
            assert reap(pid) is None, self.server.log_path.read_text()
            return " serving " in self.server.log_path.read_text()

        wait_for("the server to serve", serves)
        return pid

    def flood(self) -> None:
        """Send initiations until the server sheds them."""

        def is_shed() -> bool:
            for _ in range(BURST):
                self._sender.send(INITIATION)
            return is_filtered(self.udp)

        wait_for("a filter", is_shed)

    def empty_queue(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.udp.recv(1)

    def wait_for_no_filter(self) -> None:
        wait_for("the end of the filter", lambda: not is_filtered(self.udp))


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[Flooded]:
    with (
        Lab(tmp_path) as lab,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket(type=socket.SOCK_DGRAM) as peer,
    ):
        yield Flooded(lab, udp, peer)


def test_the_process_after_one_that_was_killed_in_a_flood_has_no_filter(flooded: Flooded) -> None:
    pid = flooded.start()
    flooded.flood()
    kill(pid, signal.SIGKILL)
    flooded.server.lab.wait_ended(pid)
    assert is_filtered(flooded.udp)
    flooded.empty_queue()  # of what would be a flood for the next process as well
    flooded.start()
    assert not is_filtered(flooded.udp)


def test_a_flood_is_shed_before_and_after_a_reload_and_the_filter_goes_with_it(flooded: Flooded) -> None:
    flooded.start()
    flooded.flood()
    assert flooded.server.reload().status == 0
    flooded.flood()
    assert flooded.server.status()["generation"] == 2
    wait_for("the count of what is shed", lambda: flooded.server.status()["totals"]["shed_datagrams"] > 0)
    flooded.wait_for_no_filter()
    flooded.flood()
    kill(flooded.server.status()["pid"], signal.SIGTERM)
    flooded.wait_for_no_filter()
