"""Measure IPv6 inside and outside the tunnel against IPv4, in one run: `python -m benchmarks ipv6 [--help]`, as root.

One TCP connection through a tunnel with both ends of a kind, and single datagrams to a server alone on a processor. The
combinations take turns.
"""

import argparse
import os
import statistics
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bench_bulk import GBIT, TCP, tcp
from benchmarks.owner import run
from benchmarks.player import Send
from benchmarks.results import Table
from benchmarks.stand import Setup, stands
from benchmarks.trees import Tree, add_tree_option, spare_cores, trees_of
from benchmarks.tunnels import IPERF3, Kind, tunnels

COMBINATIONS = ((4, 4), (6, 4), (4, 6), (6, 6))  # inside, outside
PEERS, PAYLOAD, OFFERED, SINGLES_SECS = 50, 64, 300_000.0, 0.5
TCP_SECS = 2
RUNS = 5


def bulk(table: Table, tree: Tree, runs: int) -> None:
    """Add a row for each direction and combination."""
    kind = Kind(tree)
    with ExitStack() as stack:
        outsides = {each: stack.enter_context(tunnels([(kind, kind)], outside=each))[0] for each in (4, 6)}
        for tunnel in outsides.values():
            tunnel.serve_iperf3()
        for direction in TCP:
            rounds = [
                [tcp(outsides[outside], direction, TCP_SECS, inside) for inside, outside in COMBINATIONS]
                for _ in range(runs)
            ]
            for (inside, outside), samples in zip(COMBINATIONS, zip(*rounds, strict=True), strict=True):
                group, label = f"TCP {direction}, {tree.label}", f"IPv{inside} in IPv{outside}"
                table.add(group, label, [sample.arrived for sample in samples])


def singles(table: Table, tree: Tree, core: int, runs: int) -> None:
    """Add a row for each combination."""
    order = Send(True, PAYLOAD, OFFERED, SINGLES_SECS)
    with ExitStack() as stack:
        made = [
            stack.enter_context(stands([tree], Setup(core, PEERS, inside, outside)))[0]
            for inside, outside in COMBINATIONS
        ]
        rounds = [[stand.measure(order) for stand in made] for _ in range(runs)]
        for (inside, outside), samples in zip(COMBINATIONS, zip(*rounds, strict=True), strict=True):
            kpps = statistics.median(sample.kpps for sample in samples)
            label = f"IPv{inside} in IPv{outside}"
            table.add(f"{PEERS} peers, {tree.label}", label, [sample.us for sample in samples], f"{kpps:.1f} kpps")


def main() -> None:
    """Print a row for each figure and combination."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ipv6", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    if os.geteuid() != 0 or not Path(IPERF3).exists():
        print("left out: it needs root, for network namespaces, and iperf3: sudo make bench")
        return
    table = Table("IPv6 and IPv4, one TCP connection, both ends of a kind", GBIT)
    for tree in trees_of(options):
        bulk(table, tree, options.runs)
    server_core, other_core = spare_cores()
    os.sched_setaffinity(0, {other_core})  # the player's, too
    table = Table("IPv6 and IPv4, single datagrams of 64 B", "microseconds of the server's processor a packet")
    for tree in trees_of(options):
        singles(table, tree, server_core, options.runs)


if __name__ == "__main__":
    run(main)
