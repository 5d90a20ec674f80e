"""Measure a tunnel as a whole, beside wireguard-go's, in one run: `python -m benchmarks bulk [--help]`, as root.

One TCP connection in each direction, and UDP from a wireguard-go client that sends one datagram at a time. Both ends
and iperf3 share the processors of this machine, and the tunnels take turns: only ratios within one run say something.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trees import add_tree_option, trees_of
from benchmarks.tunnels import IPERF3, Kind, Load, Tunnel, tunnels

RUNS = 5
SECS = 2
TCP = {"up": (), "down": ("--reverse",)}
UDP_PER_SECOND = 60_000
UDP_PAYLOADS = (1300, 64)


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


def summary(values: Sequence[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f}-{max(values):.2f})"


def print_rows(title: str, unit: str, servers: Sequence[Tunnel], rounds: Sequence[Sequence[Sample]]) -> None:
    """Print a line for each tunnel. The ratio is to the last one, which is wireguard-go's."""
    columns = [list(column) for column in zip(*rounds, strict=True)]
    base = statistics.median(sample.arrived for sample in columns[-1])
    for tunnel, samples in zip(servers, columns, strict=True):
        arrived = [sample.arrived for sample in samples]
        server, client = (
            statistics.median(cores)
            for cores in zip(*((sample.load.server, sample.load.client) for sample in samples), strict=True)
        )
        cost = ""
        if unit == "kpps":
            us = [sample.load.server / sample.arrived * 1e3 for sample in samples]
            share = statistics.median(sample.share for sample in samples)
            cost = f"  {summary(us)} us a packet, {share:.1%} arrived"
        print(
            f"{title:12} {tunnel.label:36} {summary(arrived):22} {unit} {statistics.median(arrived) / base:5.2f}x  "
            f"cores {server:.2f} server, {client:.2f} client{cost}",
            flush=True,
        )


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


def main() -> None:
    """Print a row for each figure and tunnel."""
    options = parse()
    if os.geteuid() != 0 or not Path(IPERF3).exists():
        print("left out: it needs root, for network namespaces, and iperf3: sudo make bench")
        return
    kinds = [*(Kind(tree) for tree in trees_of(options)), Kind()]
    inside, runs = options.inside, range(options.runs)
    print(f"server / client; IPv{inside} in IPv{options.outside}; medians and ranges of {options.runs} runs")
    if options.only != "udp":
        with tunnels([(kind, kind) for kind in kinds], outside=options.outside, single=options.single) as made:
            for tunnel in made:
                tunnel.serve_iperf3()
            for direction in TCP:
                rounds = [[tcp(tunnel, direction, options.secs, inside) for tunnel in made] for _ in runs]
                print_rows(f"TCP {direction}", "Gbit/s", made, rounds)
    if options.only != "tcp":
        with tunnels([(kind, Kind()) for kind in kinds], outside=options.outside, single=options.single) as made:
            for tunnel in made:
                tunnel.serve_iperf3()
            for payload in UDP_PAYLOADS:
                rounds = [[udp(tunnel, payload, options.secs, inside) for tunnel in made] for _ in runs]
                print_rows(f"UDP {payload} B", "kpps", made, rounds)


if __name__ == "__main__":
    main()
