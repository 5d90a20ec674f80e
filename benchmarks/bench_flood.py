"""Measure what floods of useless datagrams take from an established session: `python -m benchmarks flood`.

A client with a session sends 2,000 echo requests a second, in bursts, through a server without an interface; a process
of its own floods that server from many addresses. Each row has a server and a session of its own, so that none inherits
the load of another, and no session becomes due for a rekey. Quiet and flooded seconds are measured in one run: compare
nothing else. Three processes share the cores, so a machine with two of them, busy with other work, tells little.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.flooder import Order
from benchmarks.owner import run
from tests.support.traffic.clients import EchoClient, clock
from tests.support.traffic.server import OXIDIZE, Lab, Server, wait_for

PACKETS_PER_SECOND = 2000
BURST = 8
QUIET_SECS = 1.5
FLOODED_SECS = 2.5
FLOOD_LEAD_SECS = 0.2  # of flood before the window
LAST_REPLIES_SECS = 0.3
SETTLE_SECS = 1.5  # the load that fetching cookies caused has ended
RECORDED = 1000
SESSION_SECS = 10.0


@dataclass(frozen=True)
class Flood:
    name: str
    kind: str
    per_second: int = 20_000
    addresses: int = 200


FLOODS = (
    Flood("1 byte", "short"),
    Flood("initiation, wrong mac1", "wrong-mac1"),
    Flood("data, unknown index, 96 bytes", "unknown"),
    Flood("data, unknown index, 96 bytes", "unknown", 60_000),
    Flood("data, unknown index, 1,440 bytes", "unknown-large"),
    Flood("recorded data again", "recorded"),
    Flood("data, known index, wrong tag, 1,440 bytes", "wrong-tag"),
    Flood("response, right mac1", "response"),
    Flood("initiation, right mac1", "mac1", 5_000),
    Flood("initiation, right mac1", "mac1"),
    Flood("initiation, right mac1", "mac1", 40_000),
    Flood("initiation, wrong mac2", "wrong-mac2", 40_000),
    Flood("initiation with a cookie", "cookie", 4_000),
    Flood("initiation with a cookie", "cookie", 20_000, 1000),
)


@dataclass(frozen=True)
class Window:
    """What came back of the requests of one window of time; cpu: of the server, in cores."""

    sent: int
    latencies_ms: list[float]
    cpu: float

    @property
    def share(self) -> float:
        return len(self.latencies_ms) / self.sent

    def percentile(self, part: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


@dataclass(frozen=True)
class Row:
    flood: Flood
    quiet: Window
    flooded: Window
    sent_per_second: float  # datagrams of the flood
    kernel_drops: int

    def __str__(self) -> str:
        cells = (
            f"{self.flood.name}, {self.flood.per_second:,}/s, {self.flood.addresses:,} addresses",
            f"{self.flooded.share / self.quiet.share:.3f}",
            f"{self.quiet.percentile(0.5):.2f} / {self.quiet.percentile(0.99):.1f}",
            f"{self.flooded.percentile(0.5):.2f} / {self.flooded.percentile(0.99):.1f}",
            f"{self.quiet.cpu:.0%} -> {self.flooded.cpu:.0%}",
            f"{self.sent_per_second:,.0f}/s",
            f"{self.kernel_drops:,}",
            f"{os.getloadavg()[0]:.1f}",
        )
        return f"| {' | '.join(cells)} |"


HEADER = """\
| flood | kept | ms quiet: median / p99 | ms flooded | CPU of the server | really sent | dropped by the kernel | load |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


class Tap:
    """A socket that keeps what was sent."""

    def __init__(self, client: EchoClient) -> None:
        self.sent: list[bytes] = []
        self._socket = client.socket

    def send(self, datagram: bytes) -> int:
        self.sent.append(bytes(datagram))
        return self._socket.send(datagram)

    def __getattr__(self, name: str) -> object:
        return getattr(self._socket, name)


def connect(client: EchoClient, server: Server) -> None:
    """Give a client its session."""

    def has_replies() -> bool:
        with suppress(ConnectionRefusedError):
            client.receive()
        client.run_timers()
        return not client.waiting

    client.connect(server)
    client.send_next()
    wait_for("the session", has_replies, SESSION_SECS)


def record(client: EchoClient) -> list[str]:
    """Send requests; return their datagrams in hexadecimal."""
    tap, plain = Tap(client), client.socket
    client.socket = tap  # type: ignore[assignment]  # a socket but for the class
    for _ in range(RECORDED):
        client.send_next()
    client.socket = plain
    return [message.hex() for message in tap.sent if message[0] == 4]


def cpu_secs(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(client: EchoClient, pid: int, seconds: float) -> Window:
    """Send requests for some seconds; return what came back within LAST_REPLIES_SECS."""
    sent_at: dict[int, float] = {}
    latencies: dict[int, float] = {}
    readable = select.poll()
    readable.register(client.socket, select.POLLIN)

    def receive() -> None:
        before = len(client.replies)
        client.receive()
        if len(client.replies) != before:
            now = clock()
            for number in list(client.replies)[before:]:
                if number in sent_at:
                    latencies[number] = (now - sent_at[number]) * 1000

    cpu, began, bursts = cpu_secs(pid), clock(), 0
    while clock() - began < seconds:
        while began + bursts * BURST / PACKETS_PER_SECOND <= clock():
            for _ in range(BURST):
                sent_at[client.sent] = clock()
                client.send_next()
            bursts += 1
            receive()
        readable.poll(1)
        receive()
        client.run_timers()
    cpu = (cpu_secs(pid) - cpu) / (clock() - began)
    end = clock() + LAST_REPLIES_SECS
    while clock() < end:
        readable.poll(5)
        receive()
    return Window(len(sent_at), list(latencies.values()), cpu)


def measure_flood(flood: Flood, program: Sequence[str] = OXIDIZE) -> Row:
    """Measure one flood against a server of its own. program: how to run the `oxidize` that is the target."""
    seconds = FLOOD_LEAD_SECS + FLOODED_SECS + LAST_REPLIES_SECS
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "benchmarks.flooder"]
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        client = EchoClient(2)
        server = Server(lab, [client.table()])
        pid = server.start(program=program)
        connect(client, server)
        key, recorded = server.identity.public.hex(), record(client)
        order = Order(flood.kind, flood.per_second, flood.addresses, seconds, server.port, key, recorded)
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as flooder:
            assert flooder.stdin is not None
            assert flooder.stdout is not None
            flooder.stdin.write(json.dumps(asdict(order)) + "\n")
            flooder.stdin.flush()
            assert flooder.stdout.readline() == "ready\n"
            time.sleep(SETTLE_SECS)
            client.receive()  # what came meanwhile
            quiet = measure(client, pid, QUIET_SECS)
            drops = server.status()["kernel_drops"]
            flooder.stdin.write("\n")
            flooder.stdin.flush()
            time.sleep(FLOOD_LEAD_SECS)
            flooded = measure(client, pid, FLOODED_SECS)
            sent = int(flooder.stdout.readline())
        drops = server.status()["kernel_drops"] - drops
        client.socket.close()
        return Row(flood, quiet, flooded, sent / seconds, drops)


def main() -> None:
    print(HEADER)
    for flood in FLOODS:
        print(measure_flood(flood), flush=True)


if __name__ == "__main__":
    run(main)
