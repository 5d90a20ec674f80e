"""TCP throughput of a tunnel whose server is Oxidize, beside one whose server is wireguard-go, in one run.

The client is an unmodified wireguard-go in both tunnels. Client, server and iperf3 share the processors of this
machine, and the servers take turns, so only the ratio says something about the server. As root: it needs network
namespaces and iperf3.
"""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.support.traffic.direct_link import PORT, DirectLink, GoServer, OxidizeServer
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Lab, wait_for
from tests.support.traffic.wireguard_go import WireguardGo

IPERF3 = "/usr/bin/iperf3"
RUNS = 5
SECONDS = 4
TIMEOUT_SECS = 30
DIRECTIONS = {"client to server": (), "server to client": ("--reverse",)}
SERVERS: dict[str, Callable[[DirectLink], GoServer | OxidizeServer]] = {
    "oxidize": lambda link: OxidizeServer(link, remembers=False),
    "wireguard-go": GoServer,
}


class Tunnel:
    """A server of one kind, a wireguard-go client, and an iperf3 that listens at the server's inner address."""

    def __init__(self, lab: Lab, make_server: Callable[[DirectLink], GoServer | OxidizeServer]) -> None:
        self._link = DirectLink(lab)
        server = make_server(self._link)
        client = WireguardGo(lab, self._link.client_side, [f"{DirectLink.INNER_CLIENT}/24"])
        server.serve(client.identity.public)
        client.set_peer(server.public_key, "10.9.0.0/24", endpoint=f"{DirectLink.SERVER}:{PORT}")
        client.enlarge_buffers()
        ping(lab, self._link.client_side, DirectLink.INNER_SERVER, 2)
        with self._link.server_side.entered():
            lab.spawn((IPERF3, "--server", "--forceflush", "--bind", DirectLink.INNER_SERVER), "iperf3")
        log = lab.folder / "iperf3.log"
        wait_for("iperf3", lambda: "listening" in log.read_text() or None)

    def megabits_per_second(self, options: tuple[str, ...]) -> float:
        """Return what arrives at the receiver of one TCP connection."""
        command = [
            IPERF3,
            "--client",
            DirectLink.INNER_SERVER,
            "--time",
            str(SECONDS),
            "--omit",
            "1",
            "--json",
            *options,
        ]
        with self._link.client_side.entered():
            done = subprocess.run([*command, *options], capture_output=True, check=True, timeout=TIMEOUT_SECS)
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6


def main() -> None:
    """Print a row for each direction: medians of both servers, and the median of the ratios of neighbouring runs."""
    if os.geteuid() != 0 or not Path(IPERF3).exists():
        print("left out: it needs root, for network namespaces, and iperf3: sudo make bench")
        return
    print(f"TCP, Mbit/s, medians of {RUNS} runs of {SECONDS} s")
    print(f"{'':20} {'oxidize':>9} {'wireguard-go':>13} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, ExitStack() as stack:
        lab = stack.enter_context(Lab(Path(first)))
        other = Lab(Path(second))  # files of its own; its processes end with those of the first
        stack.callback(other.stack.close)
        tunnels = [Tunnel(each, make) for each, make in zip((lab, other), SERVERS.values(), strict=True)]
        for direction, options in DIRECTIONS.items():
            pairs = [[tunnel.megabits_per_second(options) for tunnel in tunnels] for _ in range(RUNS)]
            oxidize, wireguard_go = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(first / second for first, second in pairs)
            print(f"{direction:20} {oxidize:9.0f} {wireguard_go:13.0f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
