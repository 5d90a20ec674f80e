"""Measure the time to reconnect after a server outage: `oxidize client` compared with wireguard-go in one run.

Each client has its own link to its own server of the same kind, and both servers have the same outage at the same time:
the server ends, its port is unbound for some seconds, and it starts without its sessions. The result is the time from
the server's return to the first reply to a ping through the tunnel; a ping is sent every 20 ms. Compare rows of one run
only. It needs root for network namespaces.
"""

import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.owner import run
from tests.support.traffic.direct_link import PORT, DirectLink, GoServer, OxidizeServer
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.ping import Ping, ping
from tests.support.traffic.server import Lab, wait_for
from tests.support.traffic.wireguard_go import WireguardGo

OUTAGES_SECS = (1.0, 10.0)
RUNS = 3
BACK_SECS_MAX = 60.0
_SERVING = re.compile(r"^(\S+)Z INFO \S+ serving ", re.MULTILINE)
_REPLY = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from", re.MULTILINE)
SERVERS: dict[str, Callable[[DirectLink], GoServer | OxidizeServer]] = {
    "oxidize": lambda link: OxidizeServer(link, remembers=True),
    "oxidize, endpoints_file off": lambda link: OxidizeServer(link, remembers=False),
    "wireguard-go": GoServer,
}


@dataclass(frozen=True)
class Row:
    """The times from the server's return to the first packet through the tunnel, seconds, for both clients."""

    server: str
    outage_secs: float
    oxidize: list[float]
    wireguard_go: list[float]

    def __str__(self) -> str:
        oxidize, wireguard_go = statistics.median(self.oxidize) * 1000, statistics.median(self.wireguard_go) * 1000
        worst = max(self.oxidize) * 1000
        figures = f"{oxidize:9.0f} {worst:9.0f} {wireguard_go:12.0f} {wireguard_go / oxidize:8.0f}"
        return f"{self.server:28} {self.outage_secs:6.0f} s {figures}"


class Tunnel:
    """A link with a server, a client and a continuous ping."""

    def __init__(self, lab: Lab, name: str, make_server: Callable[[DirectLink], GoServer | OxidizeServer]) -> None:
        self.link = DirectLink(lab)
        self.server = make_server(self.link)
        self._connect(name)
        ping(lab, self.link.client_side, DirectLink.INNER_SERVER, 2)
        self._ping = StampedPing(lab, self.link.client_side, DirectLink.INNER_SERVER, f"{name}-ping")
        self._ping.wait_for_replies(5)

    def _connect(self, name: str) -> None:
        client = self.link.client(self.server.public_key, name=name, reconnect_buffer_size=1000)
        self.server.serve(client.identity.public)
        client.start()

    def leave(self) -> None:
        """End the server."""
        self.server.stop()

    def come_back(self) -> float:
        """Restart the server; return the time at which it serves, seconds since the epoch."""
        if isinstance(self.server, OxidizeServer):
            self.server.start()
            stamp = _SERVING.findall(self.server.server.log_path.read_text())[-1]
            return datetime.fromisoformat(f"{stamp}+00:00").timestamp()
        self.server.start()
        return self.server.serves_since

    def wait_for_reply_since(self, since: float) -> float:
        """Return the seconds from `since` to the first reply after it."""
        return wait_for("a reply", lambda: self._ping.first_reply_since(since), BACK_SECS_MAX) - since

    def settle(self) -> None:
        """Wait until pings are answered without delay."""
        self._ping.wait_for_replies(50)


class GoTunnel(Tunnel):
    """The same with wireguard-go as client."""

    def _connect(self, name: str) -> None:
        client = WireguardGo(self.link.lab, self.link.client_side, [f"{DirectLink.INNER_CLIENT}/24"])
        self.server.serve(client.identity.public)
        client.set_peer(self.server.public_key, "10.9.0.0/24", endpoint=f"{DirectLink.SERVER}:{PORT}", keepalive=25)


class StampedPing(Ping):
    """A ping that records the time of each reply."""

    OPTIONS = ("-D",)

    def __init__(self, lab: Lab, namespace: Namespace, target: str, name: str) -> None:
        super().__init__(lab, namespace, target, name)
        self._path = lab.folder / f"{name}.log"

    def first_reply_since(self, since: float) -> float | None:
        """Return the time of the first reply after `since`, seconds since the epoch."""
        stamps = (float(stamp) for stamp in _REPLY.findall(self._path.read_text()))
        return next((stamp for stamp in stamps if stamp >= since), None)


def measure(server: str) -> list[Row]:
    """Measure all outages with one kind of server."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, ExitStack() as stack:
        lab = stack.enter_context(Lab(Path(first)))
        other = Lab(Path(second))  # separate files; its processes end with those of the first
        stack.callback(other.stack.close)
        tunnels = [Tunnel(lab, "oxidize", SERVERS[server]), GoTunnel(other, "wireguard-go", SERVERS[server])]
        rows = []
        for outage in OUTAGES_SECS:
            times: list[list[float]] = [[], []]
            for _ in range(RUNS):
                for tunnel in tunnels:
                    tunnel.leave()
                time.sleep(outage)
                since = [tunnel.come_back() for tunnel in tunnels]
                for found, tunnel, moment in zip(times, tunnels, since, strict=True):
                    found.append(tunnel.wait_for_reply_since(moment))
                for tunnel in tunnels:
                    tunnel.settle()
            rows.append(Row(server, outage, *times))
        return rows


def main() -> None:
    """Print a row for each kind of server and length of outage."""
    if os.geteuid() != 0:
        print("left out: it needs root, for network namespaces: sudo make bench-reconnect")
        return
    print("from the server's return to the first packet through the tunnel; ms, medians and the worst of oxidize")
    print(f"{'server':28} {'outage':>8} {'oxidize':>9} {'(worst)':>9} {'wireguard-go':>12} {'ratio':>8}")
    for server in SERVERS:
        for row in measure(server):
            print(row, flush=True)


if __name__ == "__main__":
    run(main)
