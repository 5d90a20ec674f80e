"""Measure what one peer notices of the load of others: `python -m benchmarks fairness [--help]`, as root.

The server is alone on a processor, as in `singles`; everything else shares another one. While others load it - single
datagrams of 50 peers or of one, in or out, or one TCP connection of a peer with wireguard-go - one more peer sends an
echo request every 10 ms, and three bystanders ask every 100 ms: for a handshake, for /metrics, and for the state over
the channel of a takeover. At saturation more is offered than the server can take, so the queue of its socket is full
and loses requests like any datagram.

A ping's time is that of the whole way. "In the server" is the time from the request's passing the server's link to the
reply's: what the scheduler and the kernel add on the other processor is not in it. "Kept waiting" is the part of the
time in which the server could run and another process had its processor (proc(5), schedstat).
"""

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bystanders import HTTP, Bystanders
from benchmarks.owner import run
from benchmarks.player import QUIET_PORT, Send
from benchmarks.results import Table
from benchmarks.stand import INNER, SERVER_LINK, Measured, Setup, Stand, stands
from benchmarks.tap import tap
from benchmarks.trees import add_tree_option, spare_cores, trees_of
from benchmarks.tunnels import IPERF3
from tests.support.traffic.direct_link import PORT, DirectLink
from tests.support.traffic.server import Identity, PeerTable, wait_for
from tests.support.traffic.wireguard_go import WireguardGo

PEERS = 50
PAYLOAD = 1300
SATURATION = 200_000.0
SECS = 2.0
RUNS = 3
PART = 0.99
LOADER, CALLER = "10.10.200.1", "10.10.200.2"  # addresses inside of who loads by TCP, and who makes handshakes
IPERF3_LEAD_SECS = 1.0  # before the measurement begins, and behind it
PING = "Echo requests of a quiet peer beside a load, the whole way"
IN_SERVER = "Echo requests of a quiet peer beside a load, in the server"
QUESTIONS = "Questions beside a load"


@dataclass(frozen=True)
class Load:
    """What others do. tcp: the options of an iperf3 behind a peer, None for single datagrams."""

    name: str
    loaders: int = PEERS
    rate: float = 0.0
    inbound: bool = True
    tcp: tuple[str, ...] | None = None


LOADS = (
    Load("no load"),
    Load("UDP in, 50 peers, 10 kpps", rate=10_000.0),
    Load("UDP in, 50 peers, 40 kpps", rate=40_000.0),
    Load("UDP in, 50 peers, saturated", rate=SATURATION),
    Load("UDP in, 1 peer, saturated", loaders=1, rate=SATURATION),
    Load("UDP out, 50 peers, saturated", rate=SATURATION, inbound=False),
    Load("TCP in", tcp=()),
    Load("TCP out", tcp=("--reverse",)),
)


@dataclass
class Sample:
    """One measurement beside a load. load: how much of it there was, as text; waited: the part kept waiting."""

    measured: Measured
    in_server_ms: list[float]
    bystanders_ms: dict[str, list[float]]
    waited: float
    load: str = ""


@dataclass
class Setting:
    """One server with all who load it or ask it. keys: of the loader and the caller."""

    stand: Stand
    loader: Identity
    caller: Identity
    bystanders: Bystanders = field(init=False)

    def __post_init__(self) -> None:
        self.bystanders = Bystanders(self.stand, self.caller, CALLER)
        server = str(INNER[4][0])
        link, lab = self.stand.link, self.stand.lab
        self._go = WireguardGo(lab, link.client_side, [f"{LOADER}/16"], self.loader)
        self._go.set_peer(self.stand.server.identity.public, f"{server}/32", endpoint=f"{DirectLink.SERVER}:{PORT}")
        self._go.enlarge_buffers()
        with link.server_side.entered():
            lab.spawn((IPERF3, "--server", "--forceflush", "--bind", server), "iperf3")
        log = lab.folder / "iperf3.log"
        self._served = 0
        self._is_ready = lambda: log.read_text().count("Server listening") > self._served or None

    def stop(self) -> None:
        """End its loader, before the lab of a later tree ends all children that it did not find when it began."""
        self._go.stop()

    @contextmanager
    def tcp(self, options: Sequence[str], secs: float) -> Iterator[list[str]]:
        """Load by one TCP connection while entered; the value has what arrived, at exit."""
        wait_for("iperf3", self._is_ready)
        command = [IPERF3, "--client", str(INNER[4][0]), "--json", "--omit", "1", "--time", str(round(secs)), *options]
        arrived: list[str] = []
        with (
            self.stand.link.client_side.entered(),
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ):
            yield arrived
            output, _ = process.communicate()
        self._served += 1
        report = json.loads(output)
        arrived.append(f"{report['end']['sum_received']['bits_per_second'] / 1e9:.2f} Gbit/s")

    def measure(self, load: Load, secs: float) -> Sample:
        order = Send(load.inbound, PAYLOAD, load.rate, secs, has_quiet=True, loaders=load.loaders)
        if load.tcp is None:
            sample = self._ask(order)
            sample.load = f"{sample.measured.kpps:.1f} kpps" if load.rate else "none"
            return sample
        with self.tcp(load.tcp, secs + IPERF3_LEAD_SECS) as arrived:
            sample = self._ask(order)
        sample.load = arrived[0]
        return sample

    def _ask(self, order: Send) -> Sample:
        self.stand.connect()
        before = run_delay_secs(self.stand.pid)
        bystanders_ms: dict[str, list[float]] = {}
        with tap(self.stand.link.server_side, SERVER_LINK, QUIET_PORT) as seen:
            measured = self.stand.measure(order, self.bystanders.asking(bystanders_ms))
        waited = (run_delay_secs(self.stand.pid) - before) / measured.sent.secs
        return Sample(measured, seen.delays_ms(measured.sent.probes, measured.sent.answered), bystanders_ms, waited)


def run_delay_secs(pid: int) -> float:
    """Return how long a process could run and did not, as another one had the processor."""
    return int(Path("/proc", str(pid), "schedstat").read_text().split()[1]) / 1e9


def percentile(times: Sequence[float], part: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def rows(load: Load, samples: Sequence[Sample]) -> dict[str, list[tuple[str, list[float], str]]]:
    """Return the rows of each table: group, figures of all runs, and what else was seen."""
    pings = [sample.measured.sent.round_trips_ms for sample in samples]
    lost = 1 - sum(map(len, pings)) / sum(sample.measured.sent.probes for sample in samples)
    waited = statistics.median(sample.waited for sample in samples)
    longest = max(max(sample.in_server_ms, default=0.0) for sample in samples)
    later = statistics.median(percentile(each[len(each) // 2 :], PART) for each in (s.in_server_ms for s in samples))
    found = {
        PING: [(load.name, [percentile(each, PART) for each in pings], f"{lost:.1%} lost, load {samples[-1].load}")],
        IN_SERVER: [
            (
                load.name,
                [percentile(sample.in_server_ms, PART) for sample in samples],
                f"longest {longest:.2f} ms, second half {later:.2f} ms, kept waiting {waited:.1%}",
            )
        ],
        QUESTIONS: [],
    }
    for name in samples[0].bystanders_ms:
        times = [each for sample in samples for each in sample.bystanders_ms[name]]
        answered = [each for each in times if each < float("inf")]
        more = f"median {percentile(answered, 0.5):.2f} ms, {len(times) - len(answered)} of {len(times)} without answer"
        found[QUESTIONS].append((f"{load.name}: {name}", [percentile(answered, PART)], more))
    return found


def main() -> None:
    """Print a row for each load and tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fairness", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--secs", type=float, default=SECS, help="of one run")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--load", action="append", help=f"one of: {', '.join(load.name for load in LOADS)}")
    options = parser.parse_args()
    if os.geteuid() != 0 or not Path(IPERF3).exists():
        print("left out: it needs root, for network namespaces, and iperf3: sudo make bench")
        return
    trees = trees_of(options)
    server_core, other_core = spare_cores()
    os.sched_setaffinity(0, {other_core})  # of all that is started here
    loader, caller = Identity.make(), Identity.make()
    others = [PeerTable("loader", loader.public, (LOADER,)), PeerTable("caller", caller.public, (CALLER,))]
    setup = Setup(server_core, PEERS + 1, others=others, http=f"{HTTP[0]}:{HTTP[1]}")
    with stands(trees, setup) as servers, ExitStack() as stack:
        settings = [Setting(stand, loader, caller) for stand in servers]
        for each in settings:
            stack.callback(each.stop)
        found = []
        for load in LOADS:
            if not options.load or load.name in options.load:
                rounds = [[one.measure(load, options.secs) for one in settings] for _ in range(options.runs)]
                found.append((load, list(zip(*rounds, strict=True))))
    for title in (PING, IN_SERVER, QUESTIONS):
        table = Table(title, "ms, 99th percentile")
        for load, columns in found:
            of_trees = [rows(load, samples)[title] for samples in columns]
            for of_one in zip(*of_trees, strict=True):
                for tree, row in zip(trees, of_one, strict=True):
                    table.add(row[0], tree.label, *row[1:])


if __name__ == "__main__":
    run(main)
