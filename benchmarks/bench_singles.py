"""Measure single datagrams with the server alone on a processor: `python -m benchmarks singles [--help]`, as root.

A process on another processor plays 1, 50 or 1,000 clients (`benchmarks/player.py`). What comes in goes to a socket at
the server's inner address, which is always full, so that no other process runs; what goes out comes from a socket in
the server's namespace. A figure is the processor time of the server for each packet that it passed on: at saturation,
where more is offered than it can take, and at an even pace that it can take. With several trees, their servers take
turns, so that whatever else the machine does meets all of them: compare rows of one run only.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.owner import run
from benchmarks.player import Send
from benchmarks.results import Table
from benchmarks.stand import Measured, Setup, stands
from benchmarks.trees import Tree, add_tree_option, spare_cores, trees_of

PEERS = (1, 50, 1000)
PAYLOADS = (64, 1300)
RATE = 40_000.0
SATURATION = {64: 300_000.0, 1300: 200_000.0}  # offered packets in a second, by payload
SATURATION_OTHERWISE = 200_000.0
SECS = 0.5
RUNS = 5


@dataclass(frozen=True)
class Point:
    """What is measured: packets from `peers` clients (inbound) or to them. rate: offered packets in a second."""

    inbound: bool
    peers: int
    payload: int
    rate: float
    saturates: bool


def add_row(table: Table, point: Point, tree: Tree, samples: Sequence[Measured]) -> None:
    offered = "saturated" if point.saturates else f"{point.rate / 1e3:.0f} kpps"
    peers = f"{point.peers:,} peer{'s' if point.peers > 1 else ''}"
    group = f"{'in' if point.inbound else 'out'}, {point.payload:,} B, {peers}, {offered}"
    kpps, share = (statistics.median(column) for column in zip(*((s.kpps, s.share) for s in samples), strict=True))
    table.add(group, tree.label, [sample.us for sample in samples], f"{kpps:.1f} kpps, {share:.1%} of what was offered")


def points(options: argparse.Namespace, peers: int) -> list[Point]:
    """Return what is measured with this number of peers."""
    made = []
    for inbound in (direction == "in" for direction in options.direction):
        for payload in options.payload:
            most = options.offered or SATURATION.get(payload, SATURATION_OTHERWISE)
            made.append(Point(inbound, peers, payload, most, saturates=True))
            made.append(Point(inbound, peers, payload, options.rate, saturates=False))
    return made


def list_of(kind: type) -> Any:
    """Return the type of an option that is a list with commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks singles", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--peers", type=list_of(int), default=list(PEERS))
    parser.add_argument("--payload", type=list_of(int), default=list(PAYLOADS), help="of UDP, bytes")
    parser.add_argument("--direction", type=list_of(str), default=["in", "out"], help="in, out or in,out")
    parser.add_argument("--inside", type=int, choices=(4, 6), default=4, help="the version of IP in the tunnel")
    parser.add_argument("--outside", type=int, choices=(4, 6), default=4, help="the version of IP that carries it")
    parser.add_argument("--rate", type=float, default=RATE, help="packets in a second, at an even pace")
    parser.add_argument("--offered", type=float, default=0.0, help="packets in a second that saturate the server")
    parser.add_argument("--secs", type=float, default=SECS, help="of one run")
    parser.add_argument("--runs", type=int, default=RUNS)
    return parser.parse_args()


def main() -> None:
    """Print a row for each figure and tree: median and range of the runs, and the ratio to the first tree."""
    if os.geteuid() != 0:
        print("left out: it needs root, for network namespaces: sudo make bench")
        return
    options = parse()
    trees = trees_of(options)
    server_core, other_core = spare_cores()
    os.sched_setaffinity(0, {other_core})  # the player's, too
    title = f"Single datagrams, IPv{options.inside} in IPv{options.outside}"
    table = Table(title, "microseconds of the server's processor a packet")
    for peers in options.peers:
        with stands(trees, Setup(server_core, peers, options.inside, options.outside)) as servers:
            for point in points(options, peers):
                order = Send(point.inbound, point.payload, point.rate, options.secs)
                rounds = [[stand.measure(order) for stand in servers] for _ in range(options.runs)]
                for stand, samples in zip(servers, zip(*rounds, strict=True), strict=True):
                    add_row(table, point, stand.tree, samples)


if __name__ == "__main__":
    run(main)
