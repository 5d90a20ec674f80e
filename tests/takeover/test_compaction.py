"""A server whose journal is compacted under traffic, while it is replaced and killed."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import oxidize
from demo.processes import reap, spawn
from oxidize.errors import OxidizeError
from oxidize.net.udp_cmsg import SO_RCVBUFFORCE
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.state.journal import ACTIVATIONS, HEADER_WORDS, WORD_BYTES
from oxidize.state.session_state import SessionState
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, Lab, Server, kill, wait_for
from tests.support.traffic.transport_messages import assert_no_nonce_twice

pytestmark = pytest.mark.handoff

PACKETS_PER_SECOND = 50.0
CHURNING = range(100, 120)
HANDSHAKES_PER_SECOND = 200.0
RECEIVE_BUFFER_BYTES = 4 << 20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
KILLS = 2
RELOADS = 2


class Churn:
    """Peers that begin a handshake over and over while entered, which fills the journal with dead records.

    Each is at an address of its own, since the server limits the handshakes of one address.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._clients = [EchoClient(number) for number in CHURNING]
        self.tables = [client.table() for client in self._clients]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        for client in self._clients:
            client.socket.bind((f"127.0.1.{client.number}", 0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for client in self._clients:
            client.socket.close()

    def _run(self) -> None:
        port = self._server.port
        while not self._stopping.is_set():
            for client in self._clients:
                client.connect_to(self._server.identity.public, port)  # without the session before
                client.send_next()
                time.sleep(1 / HANDSHAKES_PER_SECOND)


class Holding:
    """A server whose socket and state this process holds, as a service manager does."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._udp = socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(PermissionError):  # an ordinary user's buffer holds a second of this traffic
            self._udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._udp.bind(("127.0.0.1", 0))
        state = SessionState.create(oxidize.__version__, 1, BOOT_ID, server.identity.public)
        self._fds = {name: os.dup(fd) for name, fd in state.fds.items()}
        state.close()

    def start(self) -> int:
        """Start the server with all that is held; return its pid once it serves."""
        fds = [("udp", self._udp.fileno()), *self._fds.items()]
        with self.server.log_path.open("ab") as log:
            pid = spawn(
                (*OXIDIZE, "server", "--no-holder", "-c", str(self.server.config_path)), os.environ, log.fileno(), fds
            )
        wait_for("the server to serve", lambda: self._serves(pid))
        return pid

    def _serves(self, pid: int) -> bool:
        assert reap(pid) is None, self.server.log_path.read_text()
        with contextlib.suppress(OxidizeError):
            return bool(self.server.status()["pid"] == pid)
        return False

    def activations(self) -> int:
        """Return how often the regions of the journal have changed sides."""
        header = os.pread(self._fds["journal"], HEADER_WORDS * WORD_BYTES, 0)
        return int(memoryview(header).cast("Q")[ACTIVATIONS])

    def wait_for_compaction(self) -> None:
        """Wait until the journal has been compacted once more."""
        before = self.activations()
        wait_for("a compaction", lambda: self.activations() > before)

    def close(self) -> None:
        self._udp.close()
        for fd in self._fds.values():
            os.close(fd)


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Holding]:
    with Lab(tmp_path) as lab:
        server = Server(lab, [])
        holding = Holding(server)
        yield holding
        holding.close()


def test_a_journal_is_compacted_under_traffic_while_its_server_is_replaced_and_killed(holding: Holding) -> None:
    server = holding.server
    clients, churn = [EchoClient(2), EchoClient(3)], Churn(server)
    server.peers = [*(client.table() for client in clients), *churn.tables]
    server.write_config()
    pid = holding.start()
    with Traffic(server, clients, PACKETS_PER_SECOND) as traffic, churn:
        holding.wait_for_compaction()
        for _ in range(RELOADS):
            pid = server.replace()["pid"]
            holding.wait_for_compaction()
        for _ in range(KILLS):
            kill(pid)
            assert server.lab.wait_ended(pid) == -signal.SIGKILL
            pid = holding.start()
            assert server.status()["sessions"] >= len(clients)
            holding.wait_for_compaction()
        traffic.wait_for_more()
        assert server.status()["totals"]["errors_logged"] == 0
        traffic.assert_unharmed(lost_at_most=KILLS * BATCH_PACKETS_MAX)
        assert_no_nonce_twice(traffic.pairs(), at_least=20)
