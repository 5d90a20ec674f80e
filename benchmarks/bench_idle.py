"""Measure an idle tunnel, beside wireguard-go's, in one run: `python -m benchmarks idle [--help]`, as root.

The round trip of an echo request every 20 ms, and then the memory of both ends. Both ends share the processors of this
machine, and the tunnels take turns.
"""

import argparse
import os
import statistics

from benchmarks.owner import run
from benchmarks.results import Table
from benchmarks.trees import add_tree_option, resident_mb, trees_of
from benchmarks.tunnels import Kind, tunnels

REQUESTS = 50
INTERVAL_SECS = 0.02
RUNS = 5
WARM_UP = 5  # requests of each run that are not counted


def main() -> None:
    """Print a row for each pair of ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks idle", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--inside", type=int, choices=(4, 6), default=4, help="the version of IP in the tunnel")
    parser.add_argument("--outside", type=int, choices=(4, 6), default=4, help="the version of IP that carries it")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("left out: it needs root, for network namespaces: sudo make bench")
        return
    kinds = [Kind(tree) for tree in trees_of(options)]
    pairs = [(Kind(), Kind()), *((kind, kind) for kind in kinds), *((kind, Kind()) for kind in kinds)]
    with tunnels(pairs, outside=options.outside) as made:
        runs = [
            [
                tunnel.round_trips_us(REQUESTS + WARM_UP, INTERVAL_SECS, options.inside)[WARM_UP:]
                for tunnel in made
            ]
            for _ in range(options.runs)
        ]  # fmt: skip
        versions = f"IPv{options.inside} in IPv{options.outside}, server / client"
        table = Table(f"Idle round trip, {versions}", "microseconds, medians of the runs")
        for tunnel, times in zip(made, zip(*runs, strict=True), strict=True):
            lowest = min(min(each) for each in times)
            table.add("ping", tunnel.label, [statistics.median(each) for each in times], f"fastest {lowest:.0f}")
        memory = Table("Memory of an idle tunnel with one peer", "MB, resident")
        for side in ("server", "client"):
            for tunnel in made:
                pid = tunnel.server_pid if side == "server" else tunnel.client_pid
                memory.add(side, tunnel.label, [resident_mb(pid)])


if __name__ == "__main__":
    run(main)
