"""A tunnel between two namespaces for a measurement: its ends are of any source tree, or Debian's wireguard-go.

Inside, the server is 10.9.0.1 and fd09::1, the client 10.9.0.2 and fd09::2. The link carries what one send call made
(GSO) whole, as network cards do by segmentation and GRO; with `single`, one datagram at a time.
"""

import json
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from benchmarks.trees import Tree, cpu_secs
from tests.support.traffic.direct_link import PORT, DirectLink
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, Lab, PeerTable, Server, wait_for
from tests.support.traffic.wireguard_go import WireguardGo

IPERF3 = "/usr/bin/iperf3"
IPERF3_SECS_MAX = 30  # more than a measurement takes
REPLY_SECS_MAX = 10  # without it, ping waits for twice the longest round trip so far
GSO_SEGMENTS = 65_535  # the kernel's GSO_MAX_SEGS: no limit
SERVER = {4: "10.9.0.1", 6: "fd09::1"}
CLIENT = {4: "10.9.0.2", 6: "fd09::2"}
SERVER_OUTSIDE = {4: DirectLink.SERVER, 6: f"[{DirectLink.SERVER6}]"}
BOTH_CLIENTS = tuple(f"{CLIENT[version]}/{bits}" for version, bits in ((4, 32), (6, 128)))
BOTH_SERVERS = tuple(f"{SERVER[version]}/{bits}" for version, bits in ((4, 32), (6, 128)))
_RTT = re.compile(r"time=([\d.]+) ms")


@dataclass(frozen=True)
class Kind:
    """What one end is: a source tree, or wireguard-go where there is none."""

    tree: Tree | None = None

    @property
    def label(self) -> str:
        return "wireguard-go" if self.tree is None else f"oxidize {self.tree.label}"


@dataclass(frozen=True)
class Load:
    """The processor time that both ends used in a measurement, in cores."""

    server: float
    client: float


class Tunnel:
    """Two ends, which have a session when this returns. outside: the version of IP that carries it."""

    def __init__(self, lab: Lab, server: Kind, client: Kind, *, outside: int = 4, single: bool = False) -> None:
        self.lab = lab
        self._iperf3_runs = 0
        self.label = f"{server.label} / {client.label}"
        self.link = DirectLink(lab)
        if not single:
            for side, name in ((self.link.server_side, "clients0"), (self.link.client_side, DirectLink.LINK)):
                _carry_batches(side, name)
        keys = Identity.make(), Identity.make()
        self.server_pid = self._start_server(server, keys)
        self.client_pid = self._start_client(client, keys, f"{SERVER_OUTSIDE[outside]}:{PORT}")
        for version in (4, 6):
            ping(lab, self.link.client_side, SERVER[version], 2)

    def _start_server(self, kind: Kind, keys: tuple[Identity, Identity]) -> int:
        own, other = keys
        side = self.link.server_side
        addresses = [f"{SERVER[4]}/24", f"{SERVER[6]}/64"]
        if kind.tree is None:
            go = WireguardGo(self.lab, side, addresses, own)
            go.set_peer(other.public, ",".join(BOTH_CLIENTS))
            go.wg("set", go.name, "listen-port", str(PORT))
            go.enlarge_buffers()
            return go.pid
        server = Server(
            self.lab,
            [PeerTable("client", other.public, BOTH_CLIENTS)],
            listen=f"[::]:{PORT}",
            network="tun",
            interface=f"ox{secrets.token_hex(5)}",
            address=addresses,
            inside=side.entered,
        )
        server.change_key(own)
        server.write_config(endpoints_file="")
        return server.start(program=kind.tree.program(), options=kind.tree.options)

    def _start_client(self, kind: Kind, keys: tuple[Identity, Identity], endpoint: str) -> int:
        other, own = keys
        side = self.link.client_side
        addresses = [f"{CLIENT[4]}/24", f"{CLIENT[6]}/64"]
        if kind.tree is None:
            go = WireguardGo(self.lab, side, addresses, own)
            go.set_peer(other.public, ",".join(BOTH_SERVERS), endpoint=endpoint)
            go.enlarge_buffers()
            return go.pid
        client = OxidizeClient(
            self.lab,
            endpoint,
            other.public,
            address=addresses,
            allowed_ips=BOTH_SERVERS,
            inside=side.entered,
            identity=own,
            interface=f"ox{secrets.token_hex(5)}",
        )
        return client.start(options=kind.tree.options, program=kind.tree.program())

    @contextmanager
    def loaded(self) -> Iterator[list[Load]]:
        """Measure while entered; at exit the list has the load."""
        loads: list[Load] = []
        pids = self.server_pid, self.client_pid
        before, began = [cpu_secs(pid) for pid in pids], time.perf_counter()
        yield loads
        secs = time.perf_counter() - began
        loads.append(Load(*((cpu_secs(pid) - then) / secs for pid, then in zip(pids, before, strict=True))))

    def serve_iperf3(self) -> None:
        """Let an iperf3 listen behind the server, for both versions of IP."""
        with self.link.server_side.entered():
            self.lab.spawn((IPERF3, "--server", "--forceflush"), "iperf3")
        self._wait_for_iperf3()

    def _wait_for_iperf3(self) -> None:
        """Wait until iperf3 listens for the next client: it opens another socket for each."""
        log = self.lab.folder / "iperf3.log"
        wait_for("iperf3", lambda: log.read_text().count("Server listening") > self._iperf3_runs or None)

    def iperf3(self, options: Sequence[str], inside: int = 4) -> dict[str, Any]:
        """Run an iperf3 behind the client to its end; return what it reports of the end."""
        command = [IPERF3, "--client", SERVER[inside], "--json", *options]
        with self.link.client_side.entered():
            done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=IPERF3_SECS_MAX)
        report = json.loads(done.stdout)
        self._iperf3_runs += 1
        self._wait_for_iperf3()
        if "error" in report:
            raise RuntimeError(f"{self.label}: {report['error']}")
        end: dict[str, Any] = report["end"]
        return end

    def round_trips_us(self, count: int, interval_secs: float, inside: int = 4) -> list[float]:
        """Send echo requests from the client to the server; return the time of each round trip, microseconds."""
        command = [
            *("/usr/bin/ping", "-n", "-c", str(count), "-i", str(interval_secs)),
            *("-W", str(REPLY_SECS_MAX), SERVER[inside]),
        ]
        with self.link.client_side.entered():
            done = subprocess.run(command, capture_output=True, check=True, text=True)
        return [float(found) * 1e3 for found in _RTT.findall(done.stdout)]


def _carry_batches(side: Namespace, name: str) -> None:
    with side.entered(), IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=index, gso_max_segs=GSO_SEGMENTS)


@contextmanager
def tunnels(pairs: Sequence[tuple[Kind, Kind]], *, outside: int = 4, single: bool = False) -> Iterator[list[Tunnel]]:
    """Yield a tunnel for each pair of a server and a client."""
    with ExitStack() as stack:
        made = []
        for server, client in pairs:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
            lab = stack.enter_context(Lab(Path(folder)))
            made.append(Tunnel(lab, server, client, outside=outside, single=single))
        yield made
