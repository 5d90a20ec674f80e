"""Measure the blackout of a reload, by the server and from outside: `python -m benchmarks blackout [--help]`.

The rule under test: neither grows with the sessions, with the packets that wait for peers without one, or with an
initiation in the queue. Servers start from stored state, as after a crash, and are replaced by `oxidize reload` while
one real client sends and receives at an even pace (`benchmarks/echoes.py`). "inside" is what the server reports,
"client" the longest time between two replies, "no reload" the same while nothing is replaced, which is the noise of
this machine. As root the server has a TUN device in a namespace of its own, else a userspace network. With several
trees, their servers take turns. No peer moves that often, so the last table measures the two devices of a hand-off in
one process: the freeze, and what the successor does from COMMIT on. Compare rows of one run only.

Where other programs run, `chrt -r 1 python -m benchmarks blackout` keeps them off the processors (sched(7)), but for
the 50 ms of each second that the kernel leaves to them, which is seen where a reload takes a second or longer.
"""

import argparse
import json
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import oxidize
from benchmarks.echoes import Heard, Order
from benchmarks.owner import run
from benchmarks.results import Table
from benchmarks.stored_server import Reload, Server
from benchmarks.trees import HERE, Tree, add_tree_option, revision_of, trees_of
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.state.session_state import SessionState
from tests.support.traffic.namespaces import Namespace

RATE = 20_000.0  # packets in a second through the server, half of them each way
RELOADS = 100
SECS_MAX = 150.0  # of one case, for each tree
LIFE_SECS_MAX = 75.0  # of a server: packets wait for 90 s, and sessions end after 180 s
QUIET_EVERY = 5  # reloads for each play without one
BEFORE_SECS, AFTER_SECS = 0.1, 0.3  # of traffic; after a reload its predecessor ends
STARTED_SECS = 1.0  # a server that has just started to serve has work left
MOVED = (0, 10, 1_000, 20_000)  # endpoints
MOVED_RUNS = 3
INITIATING_SECS = 3.0  # longer than a reload of a few sessions


@dataclass(frozen=True)
class Case:
    """sessions: that no client holds; waiting: peers without one for which packets wait; initiations: in a second."""

    name: str
    sessions: int
    waiting: int = 0
    initiations: float = 0.0

    @property
    def initiators(self) -> int:
        """The number of peers that begin a session during a reload."""
        return round(self.initiations * INITIATING_SECS)


CASES = (
    *(Case(f"{sessions:,} sessions", sessions) for sessions in (10, 1_000, 10_000, 100_000)),
    Case("4,000 peers with packets", 10, waiting=4_000),
    Case("an initiation waits", 10, initiations=200.0),
)


@dataclass(frozen=True)
class Sample:
    """One reload, None for a play without one, and what the client heard."""

    reload: Reload | None
    heard: Heard

    @property
    def met_initiation(self) -> bool:
        """Whether an initiation came while no process read."""
        if self.reload is None:
            return False
        ended = self.reload.ended_unix
        return any(ended - self.reload.blackout_ms / 1e3 <= sent <= ended for sent in self.heard.initiations)


class Stage:
    """A server of one tree and its clients."""

    def __init__(self, tree: Tree, case: Case) -> None:
        self._case = case
        self._stack = ExitStack()
        with ExitStack() as undo:
            undo.push(self._stack)
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
            network = 'network = "userspace"'
            self._inside: Callable[[], AbstractContextManager[None]] = nullcontext
            if os.geteuid() == 0:
                network, self._inside = f'interface = "ox{secrets.token_hex(5)}"', Namespace(self._stack).entered
            with self._inside():
                self._server = Server(
                    Path(folder), case.sessions, case.waiting, tree.program(), tree.options, network, case.initiators
                )
                self._stack.callback(self._server.close)
                self._server.wait_healthy()
                time.sleep(STARTED_SECS)
                self._client = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.echoes"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=HERE,
                )
            self._stack.callback(self._end_client)
            self._tell(json.dumps(asdict(self._server.play())))
            self.play(is_reload=False)  # until it has a session
            self._began = time.monotonic()
            undo.pop_all()

    def close(self) -> None:
        self._stack.close()

    @property
    def is_old(self) -> bool:
        return time.monotonic() - self._began > LIFE_SECS_MAX

    def play(self, *, is_reload: bool, secs: float = 0.0) -> Sample:
        """Reload the server under traffic, or let it serve for `secs`."""
        self._tell(json.dumps(asdict(Order(RATE / 2, self._case.initiations))))
        self._read()
        time.sleep(BEFORE_SECS)
        reload = None
        if is_reload:
            with self._inside():
                reload = self._server.reload()
        time.sleep(AFTER_SECS if is_reload else secs)
        self._tell("")
        return Sample(reload, Heard(**json.loads(self._read())))

    def check(self) -> None:
        """Raise SystemExit unless all stored sessions are there still."""
        if (sessions := self._server.sessions()) < self._case.sessions + 1:
            raise SystemExit(f"{sessions} sessions; expected {self._case.sessions + 1} at least")

    def _tell(self, line: str) -> None:
        assert self._client.stdin is not None
        self._client.stdin.write(line + "\n")
        self._client.stdin.flush()

    def _read(self) -> str:
        assert self._client.stdout is not None
        if not (line := self._client.stdout.readline()):
            raise RuntimeError(f"the client has ended with status {self._client.wait()}; its error is above")
        return line

    def _end_client(self) -> None:
        self._client.kill()
        self._client.communicate()


@dataclass
class Series:
    """What was measured with one tree."""

    tree: Tree
    case: Case
    reloads: list[Sample] = field(default_factory=list)
    quiet: list[Sample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    stage: Stage | None = None

    def measure(self) -> None:
        """Do one reload, and now and then a play without one."""
        if self.stage is None:
            self.stage = Stage(self.tree, self.case)
        sample = self.stage.play(is_reload=True)
        assert sample.reload is not None
        self._note(sample, self.reloads)
        if len(self.reloads) % QUIET_EVERY == 1:
            self._note(self.stage.play(is_reload=False, secs=AFTER_SECS + sample.reload.secs), self.quiet)
        if self.stage.is_old:
            self.stage.check()
            self.end()

    def _note(self, sample: Sample, samples: list[Sample]) -> None:
        samples.append(sample)
        if faults := sample.heard.faults():
            kind = "a reload" if sample.reload is not None else "no reload"
            self.faults.append(f"{self.tree.label}, {self.case.name}, {kind}: {faults} of {sample.heard.sent}")

    def end(self) -> None:
        if self.stage is not None:
            self.stage.close()
            self.stage = None

    def add_to(self, table: Table) -> None:
        """Print the rows of this tree."""
        met = [sample for sample in self.reloads if sample.met_initiation]
        reloads = met if self.case.initiations else self.reloads
        if not reloads:
            print(f"{self.case.name}, {self.tree.label}: no initiation came while no process read")
            return
        count = f"{len(reloads)} reloads" + (f" of {len(self.reloads)}" if self.case.initiations else "")
        inside = [sample.reload.blackout_ms for sample in reloads if sample.reload is not None]
        secs = statistics.median(sample.reload.secs for sample in reloads if sample.reload is not None)
        table.add(f"{self.case.name}, inside", self.tree.label, inside, f"{p99(inside)}, {count} of {secs:.2f} s")
        for kind, samples in (("client", reloads), ("no reload", self.quiet)):
            gaps = [sample.heard.gap_ms for sample in samples]
            slowest, late = ([getattr(sample.heard, name) for sample in samples] for name in ("slowest_ms", "late_ms"))
            more = f"slowest reply {statistics.median(slowest):.2f}, {p99(slowest)}; client late {max(late):.2f}"
            table.add(f"{self.case.name}, {kind}", self.tree.label, gaps, f"{p99(gaps)}; {more}")


def p99(figures: Sequence[float]) -> str:
    """Return the 99th percentile, by the nearest rank, as text."""
    return f"p99 {sorted(figures)[math.ceil(0.99 * len(figures)) - 1]:.2f}"


def measure_case(case: Case, trees: Sequence[Tree], reloads: int, secs_max: float) -> list[Series]:
    """Return a series for each tree."""
    series = [Series(tree, case) for tree in trees]
    ends_at = time.monotonic() + secs_max * len(trees)
    try:
        for _ in range(reloads):
            for each in series:
                each.measure()
            if time.monotonic() >= ends_at:
                break
    finally:
        for each in series:
            each.end()
    return series


def measure_moved(moved: int) -> tuple[float, float, float]:
    """Return the milliseconds of the slowest slice before a freeze, of the freeze, and of what the successor does."""
    private_key = X25519PrivateKey.generate()
    identity, now = private_key.public_key().public_bytes_raw(), time.clock_gettime(time.CLOCK_BOOTTIME)
    peers = [PeerSettings(os.urandom(32)) for _ in range(moved)]

    def device_on(state: SessionState) -> Device:
        return Device(private_key.private_bytes_raw(), peers, state.arena, os.urandom, time.time, state.record)

    old_state = SessionState.create(oxidize.__version__, 1, "boot", identity)
    old = device_on(old_state)
    journal, arena = (os.dup(fd) for fd in old_state.fds.values())
    new_state = SessionState.open(journal, arena, boot_id="boot", public_key=identity, now=now)
    new = device_on(new_state)
    new.restore(new_state.changes(), now)
    for port in (1, 2):
        for peer in old.peers.values():
            old.set_endpoint(peer, Endpoint(bytes([127, 0, 0, 1]), port), now)
    slices = [0.0]
    while not old.unrecorded.is_small:
        began = time.perf_counter()
        old.unrecorded.record_slice(now)
        slices.append(time.perf_counter() - began)
    new.restore(new_state.sync(), now)
    frozen = time.perf_counter()
    old.freeze()
    old_state.stop_writing()
    committed = time.perf_counter()
    new.restore(new_state.sync(), now)
    new_state.become_writer()
    new_state.begin_generation(oxidize.__version__, 2)
    new.own()
    owned = time.perf_counter()
    if any(peer.endpoint is None or peer.endpoint.port != 2 for peer in new.peers.values()):
        raise SystemExit("an endpoint was not handed over; expected all of them")
    for state in (old_state, new_state):
        state.close()
    return max(slices) * 1e3, (committed - frozen) * 1e3, (owned - committed) * 1e3


def add_moved() -> None:
    """Print three rows for each number of endpoints that moved, of this tree."""
    table = Table("The two devices of a hand-off", "ms")
    for moved in MOVED:
        measured = zip(*(measure_moved(moved) for _ in range(MOVED_RUNS)), strict=True)
        for part, figures in zip(("slowest slice before", "freeze", "from COMMIT on"), measured, strict=True):
            table.add(f"{moved:,} endpoints moved, {part}", revision_of(HERE), figures)


def peers_max(tree: Tree) -> int:
    """Return how many peers the servers of a tree take."""
    code = "from oxidize.protocol.constants import PEERS_MAX; print(PEERS_MAX)"
    done = subprocess.run([tree.python, "-c", code], cwd=tree.folder, capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Print three rows for each case and tree, then the work of a hand-off with endpoints that moved."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks blackout", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--reloads", type=int, default=RELOADS)
    parser.add_argument("--secs", type=float, default=SECS_MAX, help="of one case at most, for each tree")
    parser.add_argument("--case", type=int, action="append", help=f"a number from 0 to {len(CASES) - 1}; default: all")
    options = parser.parse_args()
    trees = trees_of(options)
    most = min(map(peers_max, trees)) - 1
    table = Table(f"Reloads under {RATE / 1e3:.0f} kpps", "ms")
    faults = []
    for wanted in [CASES[number] for number in options.case or range(len(CASES))]:
        case = wanted if wanted.sessions <= most else Case(f"{most:,} sessions", most)
        for series in measure_case(case, trees, options.reloads, options.secs):
            series.add_to(table)
            faults += series.faults
    print("\n".join(faults) if faults else "no packet lost, twice or out of order; no handshake")
    if options.case is None:
        add_moved()
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
