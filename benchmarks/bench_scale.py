"""Measure a server with many peers in session: `python -m benchmarks scale [--help]`.

What an operator does - start, reload, `status`, `/metrics`, `check`, `peer add` - by the number of peers: how long it
takes, and for how long the packets of one real client wait meanwhile. All other sessions are stored ones, put there by
this project's own code as after a crash; before anything is measured, some of them are used. The last table is what a
server that is given more than it can take passes on while its successor restores, relative to before. With several
trees their servers take turns, each with as many peers as its release takes.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path

from benchmarks.echoes import Heard, Order
from benchmarks.owner import run
from benchmarks.player import udp_packet
from benchmarks.results import Table
from benchmarks.stored_server import BOOT_ID, FIRST_ADDRESS, SERVER_ADDRESS, Server
from benchmarks.trees import HERE, Tree, add_tree_option, cpu_secs, trees_of
from oxidize.protocol.changes import KeypairState, PeerKeypairs
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.counters import Total
from oxidize.protocol.keypair import Keypair
from oxidize.state.arena import HEADER_BYTES
from oxidize.state.session_state import SessionState
from tests.support.counters import ArraySlots

PEERS = (1_000, 10_000, 100_000)
FIGURES = {  # the tables, in this order: their titles by the names of the figures
    "start": "seconds from the start of the process to a healthy /health",
    "reload": "seconds of `oxidize reload`",
    "reload_cpu": "seconds of processor time of a reload: command and successor",
    "blackout": "ms of a reload's blackout",
    "memory": "bytes of the process's own memory for each session",
    "files": "bytes of journal and arena for each session",
    "status": "seconds of `oxidize status --json`",
    "metrics": "seconds of GET /metrics",
    "metrics_size": "bytes of /metrics",
    "check": "seconds of `oxidize check`",
    "add": "seconds of `oxidize peer add`, with its reload",
    "reload_wait": "ms that an echo waits at most during a reload",
    "status_wait": "ms that an echo waits at most during `oxidize status`",
    "metrics_wait": "ms that an echo waits at most during GET /metrics",
    "kept": "percent of its throughput that a loaded server keeps during a reload",
}
PUSHED_SESSIONS = 64
PUSHED_PER_SECOND = 120_000  # more than a server on one processor takes
PUSHED_SECS = 10.0  # they are sealed beforehand
PUSHED_AT_ONCE = 32  # then this process sleeps: it must leave processor time to a successor
PAYLOAD_BYTES = 64
ECHOES_PER_SECOND = 500.0
BEFORE_SECS = 2.0
MTU = 1420
HEALTHY_SECS_MAX = 120.0
POLL_SECS = 0.01
START_POLL_SECS = 0.05
QUIET_SECS = 0.3  # after each figure


def peers_max_of(tree: Tree) -> int:
    """Return the number of peers that a tree's server takes."""
    code = "from oxidize.protocol.constants import PEERS_MAX; print(PEERS_MAX)"
    done = subprocess.run([tree.python, "-P", "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def memory_of(pid: int) -> int:
    """Return the bytes of memory that this process alone has, without its memory files (proc(5), smaps)."""
    total, is_file = 0, False
    for line in Path("/proc", str(pid), "smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_file = "/memfd:" in line
        elif (found := re.match(r"Private_\w+: +(\d+) kB", line)) and not is_file:
            total += 1024 * int(found[1])
    return total


class Subject(Server):
    """A server with stored sessions, and packets in some of them."""

    def __init__(self, folder: Path, tree: Tree, peers: int) -> None:
        self._tree = tree
        self._folder = folder
        self.session_count = peers - 2  # one more is the real client's, and one is left to be added
        super().__init__(folder, self.session_count, 0, tree.program(), tree.options)
        self._counters = memoryview(mmap(self.kept["arena"], 0, MAP_SHARED, PROT_READ))[HEADER_BYTES:].cast("Q")
        self._pushed: list[bytes] = []

    def start(self) -> None:
        self._started = time.perf_counter()
        super().start()

    def wait_started(self) -> float:
        """Return the seconds from the start of the process to the first healthy answer."""
        while self.health() != "healthy":
            time.sleep(START_POLL_SECS)  # an answer takes the time of ten peers
        return time.perf_counter() - self._started

    # --- Packets in stored sessions ---

    def seal(self, count: int) -> None:
        """Seal packets of PUSHED_SESSIONS clients, whose keys the stored state has."""
        fds = [os.dup(self.kept[name]) for name in ("journal", "arena")]
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        state = SessionState.open(*fds, boot_id=BOOT_ID.read_text().strip(), public_key=None, now=now)
        stored = (change for change in state.changes() if isinstance(change, PeerKeypairs) and change.current)
        chosen = [change.current for change in islice(stored, PUSHED_SESSIONS)]
        state.close()
        slots = ArraySlots(PUSHED_SESSIONS)
        clients = []
        for pair in chosen:
            assert pair is not None
            turned = KeypairState(
                pair.remote_index, pair.local_index, pair.receive_key, pair.send_key, now, True, slots.allocate()
            )
            # The state numbers its sessions from 1 on, and the configuration its peers, of which the first is real.
            source = str(FIRST_ADDRESS + pair.local_index)
            packet = udp_packet(source, str(SERVER_ADDRESS), PAYLOAD_BYTES)
            clients.append((Keypair(turned, None, slots.counters), packet))
        while len(self._pushed) < count:
            batches = [keypair.seal([packet] * BATCH_PACKETS_MAX, MTU) for keypair, packet in clients]
            self._pushed += [message for messages in zip(*batches, strict=True) for message in messages]

    def opened(self) -> int:
        """Return how many packets of peers the server has opened."""
        return int(self._counters[Total.RECEIVED_PACKETS])

    def check_sessions(self) -> None:
        """Use each of the chosen sessions once; raises SystemExit if a packet is not opened."""
        before = self.opened()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.connect(self.address)
            for message in self._pushed[:PUSHED_SESSIONS]:
                link.send(message)
        del self._pushed[:PUSHED_SESSIONS]
        time.sleep(QUIET_SECS)
        if (opened := self.opened() - before) < PUSHED_SESSIONS:
            raise SystemExit(f"{opened} packets of {PUSHED_SESSIONS} stored sessions were opened; expected all")

    @property
    def address(self) -> tuple[str, int]:
        """The server's UDP address."""
        host, port = self._udp.getsockname()
        return host, port

    def throughput_kept(self) -> float:
        """Return the percentage of its throughput that the server keeps during a reload, or its first seconds."""
        pusher = multiprocessing.get_context("fork").Process(target=push, args=(self.address, self._pushed))
        reload, pid = threading.Thread(target=self.reload), self.pid
        pusher.start()
        try:
            time.sleep(QUIET_SECS)
            before = self._rate_of(lambda: time.sleep(BEFORE_SECS))
            reload.start()
            during = self._rate_of(lambda: _wait_while(lambda: reload.is_alive() and pusher.is_alive()))
        finally:
            pusher.kill()
            pusher.join()
            reload.join()
        if self.pid == pid:
            raise SystemExit("the loaded server was not replaced; expected a reload")
        return 100 * during / before

    def _rate_of(self, work: Callable[[], object]) -> float:
        began, opened = time.perf_counter(), self.opened()
        work()
        return (self.opened() - opened) / (time.perf_counter() - began)

    # --- What an operator does ---

    def timed_reload(self) -> tuple[float, float, float]:
        """Return the seconds of a reload, its processor time in seconds, and its blackout in ms."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        predecessor_cpu = cpu_secs(self.pid)  # it is reaped, too
        done = self.reload()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        command_cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        return done.secs, command_cpu - predecessor_cpu + cpu_secs(self.pid), done.blackout_ms

    def run_command(self, *words: str) -> float:
        """Run one of the tree's commands; return its seconds. Raises SystemExit if it fails."""
        began = time.perf_counter()
        done = subprocess.run([*self._tree.program(), *words, "-c", str(self.config)], capture_output=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.stderr.decode())
        return time.perf_counter() - began

    def get_metrics(self) -> tuple[float, int]:
        """Return the seconds of a scrape, and its bytes."""
        began = time.perf_counter()
        with socket.create_connection(self._http.getsockname(), HEALTHY_SECS_MAX) as link:
            link.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            size = sum(map(len, iter(lambda: link.recv(1 << 16), b"")))
        return time.perf_counter() - began, size

    def file_bytes(self) -> int:
        """Return the bytes of journal and arena that have memory."""
        return sum(512 * os.fstat(self.kept[name]).st_blocks for name in ("journal", "arena"))


def _wait_while(condition: Callable[[], bool]) -> None:
    while condition():
        time.sleep(POLL_SECS)


def push(address: tuple[str, int], messages: Sequence[bytes]) -> None:
    """Send messages at PUSHED_PER_SECOND, some at once; those that the server's queue cannot hold are lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect(address)
        due = time.perf_counter()
        for first in range(0, len(messages), PUSHED_AT_ONCE):
            for message in messages[first : first + PUSHED_AT_ONCE]:
                link.send(message)
            due += PUSHED_AT_ONCE / PUSHED_PER_SECOND
            if (left := due - time.perf_counter()) > 0:
                time.sleep(left)


@contextmanager
def subject(tree: Tree, peers: int) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="oxidize-bench-") as folder:
        server = Subject(Path(folder), tree, peers)
        try:
            yield server
        except BaseException:  # cleans up, and raises it again
            print(server.log.read_text()[-4000:])
            raise
        finally:
            server.close()


class Echoes:
    """The real client of a server, which sends echo requests at an even pace while something is done."""

    def __init__(self, server: Subject) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.echoes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
        )
        self._tell(json.dumps(asdict(server.play())))

    def longest_wait(self, work: Callable[[], object]) -> float:
        """Return the longest time in ms from a request to its reply while `work` is done."""
        self._tell(json.dumps(asdict(Order(ECHOES_PER_SECOND))))
        self._read()
        time.sleep(QUIET_SECS)
        work()
        time.sleep(QUIET_SECS)
        self._tell("")
        return Heard(**json.loads(self._read())).slowest_ms

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the client has ended with status {self._process.wait()}; its error is above")
        return line


def measure(tree: Tree, peers: int, memory_base: int, runs: int) -> tuple[dict[str, list[float]], int]:
    """Return the figures of one server by their names, and the bytes of its own memory.

    memory_base: of a server with PEERS[0] peers, 0 to measure that.
    """
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}

    def note(name: str, value: float) -> None:
        print(f"# {tree.label}, {peers:,} peers: {name} {value:.2f}", flush=True)
        figures[name].append(value)

    with subject(tree, peers) as server:
        note("start", server.wait_started())
        memory = memory_of(server.pid)
        if memory_base:
            note("memory", (memory - memory_base) / (peers - PEERS[0]))
        note("files", server.file_bytes() / peers)
        server.seal(PUSHED_SESSIONS)
        server.check_sessions()
        for _ in range(runs):
            for name, value in zip(("reload", "reload_cpu", "blackout"), server.timed_reload(), strict=True):
                note(name, value)
        note("status", server.run_command("status", "--json"))
        secs, size = server.get_metrics()
        note("metrics", secs)
        note("metrics_size", size)
        note("check", server.run_command("check"))
        with closing(Echoes(server)) as echoes:
            note("status_wait", echoes.longest_wait(lambda: server.run_command("status", "--json")))
            note("metrics_wait", echoes.longest_wait(server.get_metrics))
            note("reload_wait", echoes.longest_wait(server.reload))
        if (sessions := server.sessions()) < server.session_count:
            raise SystemExit(f"{sessions} sessions are left: expected {server.session_count}; is the machine too slow?")
        note("add", server.run_command("peer", "add", "another", "--endpoint", "192.0.2.1"))
    with subject(tree, peers) as server:  # sessions are valid for three minutes
        server.wait_started()
        server.seal(int(PUSHED_PER_SECOND * PUSHED_SECS))
        note("kept", server.throughput_kept())
    return figures, memory


def main() -> None:
    """Print a table of each figure, with a row for each number of peers and each tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--runs", type=int, default=3, help="reloads that are measured (default: %(default)s)")
    parser.add_argument("--peers", type=int, action="append", help=f"numbers of peers (default: {PEERS})")
    options = parser.parse_args()
    trees = trees_of(options)
    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    bases: dict[str, int] = {}
    for peers in options.peers or PEERS:
        for tree in trees:
            if peers > peers_max_of(tree):
                continue
            measured, memory = measure(tree, peers, bases.get(tree.label, 0), options.runs)
            if peers == PEERS[0]:
                bases[tree.label] = memory
            found[peers, tree.label] = measured
    for name, title in FIGURES.items():
        unit, _, rest = title.partition(" ")
        table = Table(rest.removeprefix("of ").capitalize(), unit)
        for (peers, label), figures in found.items():
            if figures[name]:
                table.add(f"{peers:,} peers", label, figures[name])


if __name__ == "__main__":
    run(main)
