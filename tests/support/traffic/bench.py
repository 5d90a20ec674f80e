"""A server under the traffic of two clients, for tests in which one of its processes dies, hangs or is stopped."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import Lab, Server, wait_for
from tests.support.traffic.transport_messages import assert_no_nonce_twice


@dataclass(slots=True)
class Bench:
    """A server under traffic, and the file that marks a fault of its successors."""

    lab: Lab
    server: Server
    traffic: Traffic
    pid: int
    mark: Path
    more_sessions: int = 0  # of clients that are not part of the traffic

    def assert_served_by(self, pid: int, *, lost_at_most: int = 0) -> None:
        """Fail unless this process alone serves, with the same sessions and no loss, duplicate or reused nonce.

        It ends the traffic.
        """
        self.assert_still_served_by(pid)
        self.traffic.assert_unharmed(lost_at_most=lost_at_most)
        assert_no_nonce_twice(self.traffic.pairs(), at_least=20)

    def assert_still_served_by(self, pid: int) -> None:
        """Fail unless this process alone serves, with the same sessions."""
        self.traffic.wait_for_more()
        wait_for("one process to be left", lambda: self.server.processes() == {pid})
        status = self.server.status()
        assert (status["pid"], status["state"]) == (pid, "healthy")
        assert status["sessions"] == len(self.traffic.clients) + self.more_sessions

    def last_takeover(self) -> dict[str, object]:
        last: dict[str, object] = self.server.status()["takeovers"][-1]
        return last


@contextlib.contextmanager
def open_bench(
    folder: Path, rate: float, env: Mapping[str, str] | None = None, more_clients: Sequence[EchoClient] = ()
) -> Iterator[Bench]:
    """Yield a server under traffic, and end all its processes. rate: packets per second of all clients together.

    env: of the first process. more_clients: peers of the server that are not part of the traffic.
    """
    clients = [EchoClient(number) for number in (2, 3)]
    with Lab(folder) as lab:
        peers = [client.table() for client in (*clients, *more_clients)]
        server = Server(lab, peers, metrics_listen="127.0.0.1:0")
        pid = server.start(env)
        with Traffic(server, clients, rate) as traffic:
            yield Bench(lab, server, traffic, pid, folder / "stalled")
