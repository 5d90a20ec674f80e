"""Measure what one peer notices of the load of others: `python -m benchmarks fairness [--help]`, as root.

The server is alone on a processor, as in `singles`. While 50 peers, or a single one, send single datagrams to it, one
more peer sends an echo request every 10 ms; the kernel's times of arrival say how long each took. At saturation the
others offer more than the server can take, so the queue of its socket is full and loses requests like any datagram.
"""

import argparse
import os
import statistics
from collections.abc import Sequence

from benchmarks.owner import run
from benchmarks.player import Send
from benchmarks.results import Table
from benchmarks.stand import Measured, stands
from benchmarks.trees import Tree, add_tree_option, spare_cores, trees_of

LOADERS = (50, 1)
PAYLOAD = 1300
RATES = {"no load": 0.0, "10 kpps": 10_000.0, "40 kpps": 40_000.0, "saturated": 200_000.0}
SECS = 2.0
RUNS = 3
PART = 0.99


def percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def add_row(table: Table, group: str, tree: Tree, samples: Sequence[Measured]) -> None:
    """Add the 99th percentiles of all runs."""
    times = [sorted(sample.sent.round_trips_ms) for sample in samples]
    middle = statistics.median(percentile(each, 0.5) for each in times)
    lost = 1 - sum(map(len, times)) / sum(sample.sent.probes for sample in samples)
    kpps = statistics.median(sample.kpps for sample in samples)
    more = f"median {middle:.2f} ms, {lost:.1%} lost, others {kpps:.1f} kpps"
    table.add(group, tree.label, [percentile(each, PART) for each in times], more)


def main() -> None:
    """Print a row for each load and tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fairness", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--secs", type=float, default=SECS, help="of one run")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("left out: it needs root, for network namespaces: sudo make bench")
        return
    trees = trees_of(options)
    server_core, other_core = spare_cores()
    os.sched_setaffinity(0, {other_core})  # the player's, too
    table = Table("Echo requests of a quiet peer beside a load", "ms, 99th percentile of the round trips")
    for loaders in LOADERS:
        with stands(trees, server_core, loaders + 1, 4, 4) as servers:
            for name, rate in RATES.items():
                order = Send(True, PAYLOAD, rate, options.secs, has_quiet=True)
                rounds = [[stand.measure(order) for stand in servers] for _ in range(options.runs)]
                for stand, samples in zip(servers, zip(*rounds, strict=True), strict=True):
                    add_row(table, f"{loaders} other peers, {name}", stand.tree, samples)


if __name__ == "__main__":
    run(main)
