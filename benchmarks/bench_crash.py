"""Measure the time from kill -9 to the first packet: `python -m benchmarks crash [--help]`, as root.

A server with a TUN device and ten stored sessions is killed under the traffic of a real client, and started at once
with the descriptors that it has given to its service manager: sockets, state, device, and what else it has stored. With
several trees, their servers take turns. On a machine with other work compare the processor time.
"""

import argparse
import contextlib
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.owner import run
from benchmarks.results import Table
from benchmarks.stored_server import Server
from benchmarks.trees import Tree, add_tree_option, cpu_secs, trees_of
from demo.fleet import FleetProcess
from demo.processes import reap
from demo.records import Kind
from oxidize.clock import boot_time
from oxidize.holder.fd_store import FdStore, bind_notify_socket, receive_notification
from oxidize.runtime.crash_loop import STARTS_WITHOUT_DELAY
from oxidize.service_manager.notify import HOLDER_VARIABLE
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import wait_for

SESSIONS = 10
RUNS = 8
KILLS_MAX = STARTS_WITHOUT_DELAY - 1  # of one server, which is started before the first; more are a crash loop
STARTED_SECS = 1.0  # before the first kill, and between the first packet and the next
LOOK_SECS = 0.002
REPLY_SECS_MAX = 20.0
INTERFACE = "oxbench0"


class Victim:
    """A server of one tree in a namespace of its own, and its client."""

    def __init__(self, stack: ExitStack, tree: Tree) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
        self.namespace = Namespace(stack)
        self._notifications = stack.enter_context(bind_notify_socket(f"{folder}/notify"))
        self._store = FdStore()
        stack.callback(self._store.close)
        environ = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify", HOLDER_VARIABLE: "benchmark"}
        with self.namespace.entered():
            network = f'network = "tun"\ninterface = "{INTERFACE}"'
            self._server = Server(Path(folder), SESSIONS, 0, tree.program(), tree.options, network, environ=environ)
            stack.callback(self._server.close)
            self._server.wait_healthy()
            self._fleet = FleetProcess(self._server.clients(), self._server.log.with_name("client.log"))
            stack.callback(self._fleet.close)
        wait_for("the client", lambda: any(record.kind is Kind.REPLY for record in self._fleet.read()))

    def crash(self) -> tuple[float, float]:
        """Kill the server and start the next; return the milliseconds from the kill to the first reply.

        And those of the processor that the next one used until the reply was seen, LOOK_SECS later at most.
        """
        time.sleep(STARTED_SECS)
        while (notification := receive_notification(self._notifications)) is not None:
            with contextlib.closing(notification):
                self._store.apply(notification)
        self._server.kept |= self._store.entries
        with self.namespace.entered():
            os.kill(self._server.pid, signal.SIGKILL)
            reap(self._server.pid, block=True)
            killed = boot_time()
            self._server.start()

        def first_reply() -> float:
            replies = (record.at for record in self._fleet.read() if record.kind is Kind.REPLY)
            return min((at for at in replies if at > killed), default=0.0)

        while not (replied := first_reply()):
            if boot_time() > killed + REPLY_SECS_MAX:
                raise SystemExit(self._server.log.read_text())
            time.sleep(LOOK_SECS)
        return (replied - killed) * 1e3, cpu_secs(self._server.pid) * 1e3


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
    rounds: list[list[tuple[float, float]]] = []
    while len(rounds) < options.runs:
        with ExitStack() as stack:
            victims = [Victim(stack, tree) for tree in trees]
            kills = min(KILLS_MAX, options.runs - len(rounds))
            rounds += [[victim.crash() for victim in victims] for _ in range(kills)]
    table = Table(f"A server with a TUN device and {SESSIONS} sessions is killed", "ms to the first packet")
    for tree, results in zip(trees, zip(*rounds, strict=True), strict=True):
        table.add("kill -9", tree.label, [wall for wall, _ in results])
    table = Table("The start until then", "ms of processor time")
    for tree, results in zip(trees, zip(*rounds, strict=True), strict=True):
        table.add("start", tree.label, [cpu for _, cpu in results])


if __name__ == "__main__":
    run(main)
