"""Measure a tunnel as a whole, beside wireguard-go's, in one run: `python -m benchmarks bulk [--help]`, as root.

One TCP connection in each direction, and UDP from a wireguard-go client that sends one datagram at a time. Both ends
and iperf3 share the processors of this machine, and the tunnels take turns: only ratios within one run say something.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.owner import run
from benchmarks.results import Table
from benchmarks.trees import add_tree_option, trees_of
from benchmarks.tunnels import IPERF3, Kind, Load, Tunnel, tunnels

RUNS = 5
SECS = 2
TCP = {"up": (), "down": ("--reverse",)}
UDP_PER_SECOND = 60_000
UDP_PAYLOADS = (1300, 64)
GBIT, KPPS = "Gbit/s", "thousands of packets a second that arrived"


@dataclass(frozen=True)
class Sample:
    """One run: what arrived, in Gbit/s or in thousands of packets a second, and what both ends took for it."""

    arrived: float
    load: Load
    share: float = 1.0  # of the packets that the client was given


def tcp(tunnel: Tunnel, direction: str, secs: float, inside: int) -> Sample:
    with tunnel.loaded() as loads:
        end = tunnel.iperf3([f"--time={secs}", *TCP[direction]], inside)
    return Sample(end["sum_received"]["bits_per_second"] / 1e9, loads[0])


def udp(tunnel: Tunnel, payload: int, secs: float, inside: int) -> Sample:
    bits = UDP_PER_SECOND * payload * 8
    with tunnel.loaded() as loads:
        end = tunnel.iperf3(["--udp", f"--bitrate={bits}", f"--length={payload}", f"--time={secs}"], inside)["sum"]
    arrived = end["packets"] - end["lost_packets"]
    return Sample(arrived / end["seconds"] / 1e3, loads[0], arrived / end["packets"])


def add_rows(table: Table, group: str, made: Sequence[Tunnel], rounds: Sequence[Sequence[Sample]]) -> None:
    """Add a row for each tunnel."""
    for tunnel, samples in zip(made, zip(*rounds, strict=True), strict=True):
        server, client = (
            statistics.median(cores) for cores in zip(*((s.load.server, s.load.client) for s in samples), strict=True)
        )
        more = f"cores {server:.2f} server, {client:.2f} client"
        if table.unit == KPPS:
            us = statistics.median(sample.load.server / sample.arrived * 1e3 for sample in samples)
            share = statistics.median(sample.share for sample in samples)
            more += f", {us:.1f} us a packet at the server, {share:.1%} arrived"
        table.add(group, tunnel.label, [sample.arrived for sample in samples], more)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks bulk", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--inside", type=int, choices=(4, 6), default=4, help="the version of IP in the tunnel")
    parser.add_argument("--outside", type=int, choices=(4, 6), default=4, help="the version of IP that carries it")
    parser.add_argument("--single", action="store_true", help="a link that carries one datagram at a time")
    parser.add_argument("--only", choices=("tcp", "udp"))
    parser.add_argument("--secs", type=int, default=SECS, help="of one run")
    parser.add_argument("--runs", type=int, default=RUNS)
    return parser.parse_args()


@contextmanager
def serving(pairs: Sequence[tuple[Kind, Kind]], options: argparse.Namespace) -> Iterator[list[Tunnel]]:
    """Yield tunnels behind whose servers an iperf3 listens."""
    with tunnels(pairs, outside=options.outside, single=options.single) as made:
        for tunnel in made:
            tunnel.serve_iperf3()
        yield made


def main() -> None:
    """Print a row for each figure and tunnel."""
    options = parse()
    if os.geteuid() != 0 or not Path(IPERF3).exists():
        print("left out: it needs root, for network namespaces, and iperf3: sudo make bench")
        return
    kinds = [Kind(), *(Kind(tree) for tree in trees_of(options))]
    versions = f"IPv{options.inside} in IPv{options.outside}, server / client"
    if options.only != "udp":
        with serving([(kind, kind) for kind in kinds], options) as made:
            table = Table(f"One TCP connection, {versions}", GBIT)
            for direction in TCP:
                runs = range(options.runs)
                rounds = [[tcp(tunnel, direction, options.secs, options.inside) for tunnel in made] for _ in runs]
                add_rows(table, f"TCP {direction}", made, rounds)
    if options.only != "tcp":
        with serving([(kind, Kind()) for kind in kinds], options) as made:
            table = Table(f"UDP at {UDP_PER_SECOND / 1e3:.0f} kpps, {versions}", KPPS)
            for payload in UDP_PAYLOADS:
                runs = range(options.runs)
                rounds = [[udp(tunnel, payload, options.secs, options.inside) for tunnel in made] for _ in runs]
                add_rows(table, f"UDP {payload:,} B", made, rounds)


if __name__ == "__main__":
    run(main)
