"""Measure what a crash and a reload cost beside the first packet: later replies, and processor time.

The rule under test: the first packet waits for nothing that it does not need, and what comes after it does not stop the
loop. A server under its holder serves real clients that ask all the time. It is killed by SIGKILL; the wait ends with
the first reply that a client reads. The slowest reply to a later request, with /metrics asked for meanwhile, shows what
the rest of the start takes from the loop. Compare rows of one run only. The row with a TUN device needs root, for a
network namespace.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.owner import run
from benchmarks.results import Table
from demo.clients import FleetSettings
from demo.fleet import FleetProcess
from demo.records import Kind, Record
from demo.server import HeldServer
from demo.workspace import Workspace
from oxidize.clock import boot_time
from oxidize.control.query import IDENTITY, fetch
from oxidize.runtime.crash_loop import STARTS_WITHOUT_DELAY
from tests.support.traffic.namespaces import Namespace

CLIENTS = 10
ECHOES_PER_SECOND = 1000.0
SERVERS = 2  # for each row, with as many kills each as are no crash loop
KILLS = STARTS_WITHOUT_DELAY
RELOADS = 5
REPLY_SECS_MAX = 10.0
DRAIN_SECS = 0.1  # from the first reply after a crash, for what had waited
METRICS_AFTER_SECS, SETTLE_SECS = 0.5, 1.5  # from the same
CLIENT_SECS_MAX = 120.0
TUN = 'interface = "oxidize-crash"'
NETWORKS = {"tun": TUN, "userspace": 'network = "userspace"'}


@dataclass(slots=True)
class Row:
    """The results with one kind of network."""

    first_reply_ms: list[float] = field(default_factory=list)
    slowest_later_ms: list[float] = field(default_factory=list)
    command_cpu_ms: list[float] = field(default_factory=list)
    successor_cpu_ms: list[float] = field(default_factory=list)


class Crashing:
    """A server under its holder, with clients that ask until this is closed."""

    def __init__(self, stack: ExitStack, network: str) -> None:
        workspace = Workspace()
        stack.callback(workspace.close)
        clients = workspace.write(CLIENTS, ECHOES_PER_SECOND, CLIENT_SECS_MAX)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._metrics = f"127.0.0.1:{free.getsockname()[1]}"
        text = workspace.config_path.read_text().replace(NETWORKS["userspace"], network)
        workspace.config_path.write_text(text.replace('metrics_listen = ""', f'metrics_listen = "{self._metrics}"'))
        self._workspace = workspace
        self.server = HeldServer(workspace.config_path, workspace.takeover_socket, workspace.directory)
        stack.callback(self.server.close)
        self.server.start()
        self._replies: list[Record] = []
        self._fleet = self._start_clients(clients)
        stack.callback(self._fleet.close)

    def _start_clients(self, clients: FleetSettings) -> FleetProcess:
        host, port = self.server.address()
        fleet = FleetProcess(
            replace(clients, server_host=host, server_port=port), self._workspace.directory / "clients.log"
        )
        while not any(record.kind is Kind.STARTED for record in fleet.read()):
            time.sleep(0.01)
        return fleet

    def _pid(self) -> int:
        return int(fetch(self._workspace.takeover_socket, IDENTITY)["pid"])

    def _replies_since(self, since: float) -> list[Record]:
        self._replies += [record for record in self._fleet.read() if record.kind is Kind.REPLY]
        return [record for record in self._replies if record.at >= since]

    def crash(self, row: Row) -> None:
        """Kill the server, and note when it serves again and how well it does afterwards."""
        pid = self._pid()
        self._replies.clear()
        killed_at = boot_time()
        os.kill(pid, signal.SIGKILL)
        # A reply to an earlier request may be the killed process's.
        while not (replies := [record for record in self._replies_since(killed_at) if record.sent_at > killed_at]):
            if boot_time() > killed_at + REPLY_SECS_MAX:
                raise SystemExit(self.server.log_path.read_text())
            time.sleep(0.005)
        first_at = min(record.at for record in replies)
        row.first_reply_ms.append((first_at - killed_at) * 1e3)
        time.sleep(METRICS_AFTER_SECS)
        urllib.request.urlopen(f"http://{self._metrics}/metrics").read()
        time.sleep(SETTLE_SECS - METRICS_AFTER_SECS)
        later = [
            record.at - record.sent_at
            for record in self._replies_since(first_at)
            if record.sent_at > first_at + DRAIN_SECS
        ]
        row.slowest_later_ms.append(max(later) * 1e3)

    def reload(self, row: Row) -> None:
        """Replace the server, and note the processor time that the command and the successor use until it returns."""
        command = [sys.executable, "-P", "-m", "oxidize", "reload", "-c", str(self._workspace.config_path)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        run_ns = int(Path(f"/proc/{self._pid()}/schedstat").read_text().split()[0])
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"oxidize reload: exit status {process.returncode}; expected 0")
        row.command_cpu_ms.append((used.ru_utime + used.ru_stime) * 1e3)
        row.successor_cpu_ms.append(run_ns / 1e6)


@contextlib.contextmanager
def crashing(network: str) -> Iterator[Crashing]:
    with ExitStack() as stack:
        if network == TUN:
            stack.enter_context(Namespace(stack).entered())
        yield Crashing(stack, network)


def measure(network: str) -> Row:
    """Crash and reload servers with this kind of network."""
    row = Row()
    for _ in range(SERVERS):
        with crashing(network) as server:
            for _ in range(KILLS):
                server.crash(row)
            for _ in range(RELOADS):
                server.reload(row)
    return row


def main() -> None:
    """Print the tables, with a row for each kind of network."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a release has its byte-code
    rows = {name: measure(network) for name, network in NETWORKS.items() if network != TUN or os.geteuid() == 0}
    if "tun" not in rows:
        print("a TUN device is left out: it needs root, for a network namespace: sudo make bench")
    killed = Table("A server under its holder is killed", "ms")
    for name, row in rows.items():
        killed.add("to the first reply", name, row.first_reply_ms)
        killed.add("the slowest reply later", name, row.slowest_later_ms)
    reloaded = Table("A server is reloaded", "ms of processor time")
    for name, row in rows.items():
        reloaded.add("oxidize reload", name, row.command_cpu_ms)
        reloaded.add("the successor", name, row.successor_cpu_ms)


if __name__ == "__main__":
    run(main)
