"""Measure what each stage of one packet's way through a server costs: `make profile`, as root.

Processor time in microseconds a packet, on the server's own code in one process (`benchmarks/stages.py`): each stage
alone, and the whole. The whole takes longer than the sum of its stages: calls between them, and caches that one stage
leaves cold for the next. What the kernel does for a packet up to a socket that is full is in its system calls.

single: one datagram of 64 B, for which the server wakes up. paused: the same after 10 ms in which it slept. many: 60
datagrams of 50 peers in one batch. bulk: full packets of one peer, whose datagrams GRO joined (into one batch), or that
leave segmented (GSO). What is sent is the first since the peer was heard, as an answer is.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.owner import run
from benchmarks.player import udp_packet
from benchmarks.stages import Order
from benchmarks.stand import FIRST_PEER, INNER
from benchmarks.trees import Tree, add_tree_option, spare_cores, trees_of
from tests.support.traffic.namespaces import Namespace

PAYLOAD = 64
MANY = 50
BATCH = 60  # of small datagrams: behind more, the next one might be a batch of GRO that exceeds 64
INNER_BYTES = 1420  # of a packet of bulk
JOINED = 45  # of them fit into one segmented send
PAUSE_SECS = 0.01
OUTER = {4: "127.0.0.1", 6: "::1"}
STAGES_SECS_MAX = 120
WHOLE = "whole"
NAME_WIDTH, FIGURE_WIDTH = 34, 10


def orders(inbound: bool, inside: int, outside: int) -> dict[str, Order]:
    """Return what is measured in one direction, by name."""
    address, prefix = INNER[inside]
    header = 28 if inside == 4 else 48

    def order(peers: int, count: int, payload: int, *, joined: bool = False, pause_secs: float = 0.0) -> Order:
        addresses = [str(address + FIRST_PEER + number) for number in range(peers)]
        counts = [count // peers + (number < count % peers) for number in range(peers)]
        packets = [
            [udp_packet(each, str(address), payload).hex()] * many for each, many in zip(addresses, counts, strict=True)
        ]
        return Order(inbound, OUTER[outside], f"{address}/{prefix}", addresses, packets, joined, pause_secs)

    return {
        "single": order(1, 1, PAYLOAD),
        "paused": order(1, 1, PAYLOAD, pause_secs=PAUSE_SECS),
        "many": order(MANY, BATCH, PAYLOAD),
        "bulk": order(1, JOINED if inbound else BATCH, INNER_BYTES - header, joined=inbound),
    }


def measure(tree: Tree, order: Order) -> dict[str, float]:
    """Return the costs by stage that a process of a tree finds, in a namespace and on a processor of its own."""
    core, _ = spare_cores()
    program = str(Path(__file__).with_name("stages.py"))
    command = ["/usr/bin/taskset", "-c", str(core), tree.python, "-P", program]
    with ExitStack() as stack, Namespace(stack).entered():
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
        done = subprocess.run(
            command,
            input=json.dumps(asdict(order)),
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=STAGES_SECS_MAX,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{tree.label}: the stages could not be measured: {done.stderr.strip()}")
    costs: dict[str, float] = json.loads(done.stdout)
    return costs


def lines(title: str, columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a table of what each stage costs in each column, its sum, the rest, and the whole."""

    def line(name: str, figures: list[float]) -> str:
        return f"{name:{NAME_WIDTH}}" + "".join(f"{figure:{FIGURE_WIDTH}.2f}" for figure in figures)

    names = dict.fromkeys(name for costs in columns.values() for name in costs if name != WHOLE)
    sums = [sum(cost for name, cost in costs.items() if name != WHOLE) for costs in columns.values()]
    wholes = [costs[WHOLE] for costs in columns.values()]
    made = [f"{title:{NAME_WIDTH}}" + "".join(f"{name:>{FIGURE_WIDTH}}" for name in columns)]
    made += [line(name, [costs.get(name, 0.0) for costs in columns.values()]) for name in names]
    made.append(line("sum of the stages", sums))
    made.append(line("between them", [whole - part for whole, part in zip(wholes, sums, strict=True)]))
    made.append(line("whole", wholes))
    return made


def main() -> None:
    """Print a table for each direction and tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--inside", type=int, choices=(4, 6), default=4, help="the version of IP in the tunnel")
    parser.add_argument("--outside", type=int, choices=(4, 6), default=4, help="the version of IP that carries it")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("left out: it needs root, for network namespaces: sudo make profile")
        return
    for tree in trees_of(options):
        versions = f"IPv{options.inside} in IPv{options.outside}"
        print(f"Stages of one packet's way, {tree.label}, {versions}: microseconds a packet", flush=True)
        for direction, inbound in (("receiving", True), ("sending", False)):
            made = orders(inbound, options.inside, options.outside)
            columns = {name: measure(tree, order) for name, order in made.items()}
            print("", *lines(direction, columns), sep="\n", flush=True)


if __name__ == "__main__":
    run(main)
