"""Measure the time from kill -9 to the first packet: `python -m benchmarks crash [--help]`, as root.

A server with a TUN device and ten stored sessions is killed under the traffic of a real client, and started at once
with the descriptors that a service manager keeps: sockets, state, device. With several trees, their servers take turns.
"""

import argparse
import ctypes
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.owner import run
from benchmarks.results import Table
from benchmarks.stored_server import Server
from benchmarks.trees import Tree, add_tree_option, trees_of
from demo.fleet import FleetProcess
from demo.processes import reap
from demo.records import Kind
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import wait_for

SESSIONS = 10
RUNS = 5
STARTED_SECS = 1.0  # before the first kill, and between the first packet and the next
INTERFACE = "oxbench0"
_PIDFD_GETFD = 438  # asm-generic/unistd.h
_libc = ctypes.CDLL(None, use_errno=True)


class Victim:
    """A server of one tree in a namespace of its own, and its client."""

    def __init__(self, stack: ExitStack, tree: Tree) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
        self.namespace = Namespace(stack)
        with self.namespace.entered():
            network = f'network = "tun"\ninterface = "{INTERFACE}"'
            self._server = Server(Path(folder), SESSIONS, 0, tree.program(), tree.options, network)
            stack.callback(self._server.close)
            self._server.wait_healthy()
            self._server.kept["tun"] = _tun_of(self._server.pid)
            self._fleet = FleetProcess(self._server.clients(), self._server.log.with_name("client.log"))
            stack.callback(self._fleet.close)
        wait_for("the client", lambda: any(record.kind is Kind.REPLY for record in self._fleet.read()))

    def crash(self) -> float:
        """Kill the server and start the next; return the milliseconds from the kill to the first reply."""
        time.sleep(STARTED_SECS)
        with self.namespace.entered():
            os.kill(self._server.pid, signal.SIGKILL)
            reap(self._server.pid, block=True)
            killed = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._server.start()

        def first_reply() -> float:
            replies = (record.at for record in self._fleet.read() if record.kind is Kind.REPLY)
            return min((at for at in replies if at > killed), default=0.0)

        return (wait_for("a reply", first_reply) - killed) * 1e3


def _tun_of(pid: int) -> int:
    """Return a descriptor of the TUN device of a process."""
    for entry in Path("/proc", str(pid), "fd").iterdir():
        if str(entry.readlink()) == "/dev/net/tun":
            pidfd = os.pidfd_open(pid)
            try:
                return int(_libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0))
            finally:
                os.close(pidfd)
    raise RuntimeError(f"process {pid} has no TUN device; expected one")


def main() -> None:
    """Print a row for each tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks crash", description=__doc__)
    add_tree_option(parser)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("left out: it needs root, for network namespaces: sudo make bench")
        return
    trees = trees_of(options)
    with ExitStack() as stack:
        victims = [Victim(stack, tree) for tree in trees]
        rounds = [[victim.crash() for victim in victims] for _ in range(options.runs)]
        table = Table(f"A server with a TUN device and {SESSIONS} sessions is killed", "ms to the first packet")
        for tree, times in zip(trees, zip(*rounds, strict=True), strict=True):
            table.add("kill -9", tree.label, times)


if __name__ == "__main__":
    run(main)
