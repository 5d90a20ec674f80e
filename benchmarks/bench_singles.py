"""Measure single datagrams with the server alone on a processor: `python -m benchmarks singles [--help]`, as root.

A process on another processor plays 1, 50 or 1,000 clients (`benchmarks/player.py`). What comes in goes to a socket at
the server's inner address, which is always full, so that no other process runs; what goes out comes from a socket in
the server's namespace. A figure is the processor time of the server for each packet that it passed on: at saturation,
where more is offered than it can take, and at an even pace that it can take. With several trees, their servers take
turns, so that whatever else the machine does meets all of them: compare rows of one run only.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import AF_INET, AF_INET6, SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET, socket
from typing import Any

from benchmarks.owner import run
from benchmarks.player import DISCARD_PORT, SMALLEST_BUFFER, Play, Send, Sent, refused_at_sink, sent_by_link
from benchmarks.results import Table
from benchmarks.trees import HERE, Tree, add_tree_option, cpu_secs, spare_cores, trees_of
from tests.support.traffic.direct_link import PORT, DirectLink
from tests.support.traffic.server import Identity, Lab, PeerTable, Server

PEERS = (1, 50, 1000)
PAYLOADS = (64, 1300)
RATE = 40_000.0
SATURATION = {64: 300_000.0, 1300: 200_000.0}  # offered packets in a second, by payload
SATURATION_OTHERWISE = 200_000.0
SECS = 1.0
RUNS = 5
SESSION_SECS_MAX = 90.0  # a session ends 180 s after its handshake
SETTLED_SECS = 0.15  # without a packet: the queue of the server is empty
INNER = {4: (IPv4Address("10.10.0.1"), 16), 6: (IPv6Address("fd10::1"), 64)}
FIRST_PEER = 256  # of the inner network
SERVER_LINK = "clients0"


@dataclass(frozen=True)
class Point:
    """What is measured: packets from `peers` clients (inbound) or to them. rate: offered packets in a second."""

    inbound: bool
    peers: int
    payload: int
    rate: float
    saturates: bool


@dataclass(frozen=True)
class Sample:
    """One run: microseconds of the server's processor time a packet, and thousands of packets passed on in a second."""

    us: float
    kpps: float
    share: float  # of the packets that were offered


class Stand:
    """A server of one tree with its peers, and the player of its clients. core: the server's own."""

    def __init__(self, lab: Lab, tree: Tree, core: int, peers: int, inside: int, outside: int) -> None:
        self.tree = tree
        address, prefix = INNER[inside]
        link = DirectLink(lab)
        clients = [Identity.make() for _ in range(peers)]
        addresses = [str(address + FIRST_PEER + number) for number in range(peers)]
        tables = [
            PeerTable(f"p{number}", client.public, (inner,))
            for number, (client, inner) in enumerate(zip(clients, addresses, strict=True))
        ]
        server = Server(
            lab,
            tables,
            listen=f"[::]:{PORT}",
            network="tun",
            interface=f"ox{secrets.token_hex(5)}",
            address=[f"{address}/{prefix}"],
            inside=link.server_side.entered,
        )
        server.write_config(endpoints_file="")
        self._pid = server.start(program=tree.program(core), options=tree.options)
        family = AF_INET6 if inside == 6 else AF_INET
        with link.server_side.entered():
            sink, outgoing = (lab.stack.enter_context(socket(family, SOCK_DGRAM)) for _ in range(2))
        sink.setsockopt(SOL_SOCKET, SO_RCVBUF, SMALLEST_BUFFER)
        sink.bind((str(address), DISCARD_PORT))
        outer = DirectLink.SERVER6 if outside == 6 else DirectLink.SERVER
        keys = [client.private.hex() for client in clients]
        play = Play(
            outer, PORT, server.identity.public.hex(), keys, addresses, str(address), outgoing.fileno(), self._pid,
            SERVER_LINK,
        )  # fmt: skip
        with link.client_side.entered():
            self._player = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.player"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=HERE,
                pass_fds=[outgoing.fileno()],
            )
        lab.stack.callback(self._end_player)
        self._tell(asdict(play))
        self._peers = peers
        self._connected_at = float("-inf")

    def _end_player(self) -> None:
        self._player.kill()
        with suppress(BrokenPipeError):  # it has ended by itself
            self._player.communicate()

    def _tell(self, order: object) -> None:
        assert self._player.stdin is not None
        self._player.stdin.write(json.dumps(order) + "\n")
        self._player.stdin.flush()

    def _ask(self, order: object) -> Any:
        self._tell(order)
        assert self._player.stdout is not None
        line = self._player.stdout.readline()
        if not line:
            raise RuntimeError(f"the player has ended with status {self._player.wait()}; its error is above")
        return json.loads(line)

    def measure(self, point: Point, secs: float) -> Sample:
        if time.monotonic() - self._connected_at > SESSION_SECS_MAX:
            if (connected := self._ask(None)) != self._peers:
                raise RuntimeError(f"{connected} sessions: expected {self._peers}")
            self._connected_at = time.monotonic()
        before = self._passed(point)
        cpu = cpu_secs(self._pid)
        sent = Sent(**self._ask(asdict(Send(point.inbound, point.payload, point.rate, secs))))
        passed = self._wait_settled(point) - before
        us = (cpu_secs(self._pid) - cpu) / max(passed, 1) * 1e6
        return Sample(us, sent.passed / sent.window / 1e3, passed / sent.sent)

    def _passed(self, point: Point) -> int:
        return refused_at_sink(self._pid) if point.inbound else sent_by_link(self._pid, SERVER_LINK)

    def _wait_settled(self, point: Point) -> int:
        """Return how many packets have been passed on, when no more come."""
        passed = -1
        while passed != (passed := self._passed(point)):
            time.sleep(SETTLED_SECS)
        return passed


@contextmanager
def stands(trees: list[Tree], core: int, peers: int, inside: int, outside: int) -> Iterator[list[Stand]]:
    """Yield a server of each tree with the same number of peers."""
    with ExitStack() as stack:
        made = []
        for tree in trees:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
            lab = stack.enter_context(Lab(Path(folder)))
            made.append(Stand(lab, tree, core, peers, inside, outside))
        yield made


def add_row(table: Table, point: Point, tree: Tree, samples: Sequence[Sample]) -> None:
    offered = "saturated" if point.saturates else f"{point.rate / 1e3:.0f} kpps"
    group = f"{'in' if point.inbound else 'out'}, {point.payload:,} B, {point.peers:,} peers, {offered}"
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
        with stands(trees, server_core, peers, options.inside, options.outside) as servers:
            for point in points(options, peers):
                rounds = [[stand.measure(point, options.secs) for stand in servers] for _ in range(options.runs)]
                for stand, samples in zip(servers, zip(*rounds, strict=True), strict=True):
                    add_row(table, point, stand.tree, samples)


if __name__ == "__main__":
    run(main)
