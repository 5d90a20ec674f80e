"""Measure what floods of useless datagrams take from an established session: `python -m benchmarks flood`.

A session sends echo requests in bursts through a server in userspace; a process of its own floods the server from many
addresses. The quiet and the flooded part of a row are measured in one run; compare nothing else. With BASE_PYTHON, the
interpreter of another revision's environment, each row is measured with that revision's server as well.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.flooder import Order
from tests.support.traffic.clients import EchoClient, clock
from tests.support.traffic.server import OXIDIZE, Lab, Server

PACKETS_PER_SECOND = 2000
BURST = 8
QUIET_SECS = 1.5
FLOODED_SECS = 2.5
LAST_REPLIES_SECS = 0.3
RECORDED = 1000
# Kind, datagrams a second, addresses.
FLOODS = (
    ("short", 20_000, 200),
    ("wrong-mac1", 20_000, 200),
    ("unknown", 20_000, 200),
    ("unknown", 60_000, 200),
    ("unknown-large", 20_000, 200),
    ("recorded", 20_000, 200),
    ("wrong-tag", 20_000, 200),
    ("response", 20_000, 200),
    ("mac1", 5_000, 200),
    ("mac1", 20_000, 200),
    ("mac1", 40_000, 200),
    ("wrong-mac2", 40_000, 200),
    ("cookie", 4_000, 200),
    ("cookie", 20_000, 1000),
)
SESSION_FLOODS = (("mac1", 20_000, 200), ("cookie", 20_000, 1000))
SESSION_SECS_MAX = 20.0


@dataclass(frozen=True)
class Window:
    """What came back of the requests of one window of time; latencies in milliseconds."""

    sent: int
    latencies_ms: list[float]
    cpu: float  # of the server, in cores

    @property
    def share(self) -> float:
        return len(self.latencies_ms) / self.sent

    def percentile(self, part: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


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


class Target:
    """A running server with one client that has a session."""

    def __init__(self, stack: ExitStack, name: str, program: Sequence[str]) -> None:
        self.name = name
        self.quiet = Window(0, [], 0.0)  # of the last flood, before it
        self.flooded_with = 0  # datagrams
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(Lab(folder))
        self.client, self.others = EchoClient(2), [EchoClient(number) for number in (3, 4)]
        self.server = Server(lab, [each.table() for each in (self.client, *self.others)])
        self.pid = self.server.start(program=program)
        self.client.connect(self.server)
        wait_for_session(self.client, 10.0)
        self.recorded = self._record()

    def _record(self) -> list[str]:
        tap, plain = Tap(self.client), self.client.socket
        self.client.socket = tap  # type: ignore[assignment]
        for _ in range(RECORDED):
            self.client.send_next()
        self.client.socket = plain
        return [message.hex() for message in tap.sent if message[0] == 4]

    def cpu_secs(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure(self, seconds: float) -> Window:
        """Send requests for some seconds; return what came back."""
        client = self.client
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

        cpu, began, bursts = self.cpu_secs(), clock(), 0
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
        cpu = (self.cpu_secs() - cpu) / (clock() - began)
        end = clock() + LAST_REPLIES_SECS
        while clock() < end:
            readable.poll(5)
            receive()
        return Window(len(sent_at), list(latencies.values()), cpu)


def wait_for_session(client: EchoClient, seconds: float) -> float:
    """Send a request and wait for its reply; return how long that took, seconds, at most `seconds`."""
    began = clock()
    client.send_next()
    while client.waiting and clock() - began < seconds:
        select.select([client.socket], [], [], 0.01)
        with suppress(ConnectionRefusedError):
            client.receive()
        client.run_timers()
    return clock() - began


@contextmanager
def flood(
    target: Target, kind: str, per_second: int, addresses: int, seconds: float
) -> Iterator[subprocess.Popen[str]]:
    """Flood a server from the moment of entering."""
    key = target.server.identity.public.hex()
    order = Order(kind, per_second, seconds, target.server.port, key, addresses, target.recorded)
    command = [sys.executable, "-m", "benchmarks.flooder"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as flooder:
        assert flooder.stdin is not None
        assert flooder.stdout is not None
        flooder.stdin.write(json.dumps(asdict(order)) + "\n")
        flooder.stdin.flush()
        assert flooder.stdout.readline() == "ready\n"
        time.sleep(1.2)  # the load that fetching the cookies caused has ended
        target.quiet = target.measure(QUIET_SECS)
        flooder.stdin.write("\n")
        flooder.stdin.flush()
        time.sleep(0.2)
        yield flooder
        target.flooded_with = int(flooder.stdout.readline() or 0)


def row(target: Target, kind: str, per_second: int, addresses: int) -> str:
    with flood(target, kind, per_second, addresses, FLOODED_SECS + 0.7):
        flooded = target.measure(FLOODED_SECS)
    quiet = target.quiet
    time.sleep(1.2)
    return (
        f"| {kind}, {per_second}/s, {addresses} addresses | {target.name} | {flooded.share / quiet.share:.3f} "
        f"| {quiet.percentile(0.5):.2f} / {quiet.percentile(0.99):.1f} "
        f"| {flooded.percentile(0.5):.2f} / {flooded.percentile(0.99):.1f} "
        f"| {quiet.cpu:.0%} -> {flooded.cpu:.0%} | {target.flooded_with / (FLOODED_SECS + 0.7):.0f}/s |"
    )


def session_row(target: Target, kind: str, per_second: int, addresses: int) -> str:
    """Return how long two clients without a session wait for one under a flood; they retry as the paper says."""
    client = target.others[0]
    client.connect(target.server)
    wait_for_session(client, 10.0)
    with flood(target, kind, per_second, addresses, SESSION_SECS_MAX * 2 + 1.0) as flooder:
        client.connect(target.server)  # a new device at the same address: its server knows where it is
        times = [wait_for_session(client, SESSION_SECS_MAX)]
        stranger = target.others[1]
        stranger.connect(target.server)
        times.append(wait_for_session(stranger, SESSION_SECS_MAX))
        flooder.terminate()
    shown = [f"{each:.2f} s" if each < SESSION_SECS_MAX else f"more than {SESSION_SECS_MAX:.0f} s" for each in times]
    return f"| {kind}, {per_second}/s, {addresses} addresses | {target.name} | {shown[0]} | {shown[1]} |"


def main() -> None:
    with ExitStack() as stack:
        programs = {"this": OXIDIZE}
        if base := os.environ.get("BASE_PYTHON"):
            programs = {"base": (base, "-P", "-m", "oxidize"), **programs}
        targets = [Target(stack, name, program) for name, program in programs.items()]
        print("| flood | server | kept | ms quiet: median / p99 | ms flooded | CPU of the server | sent |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for kind, per_second, addresses in FLOODS:
            for target in targets:
                print(row(target, kind, per_second, addresses), flush=True)
        print("\n| flood | server | session of a client whose address is known | of one that is not known |")
        print("| --- | --- | --- | --- |")
        for kind, per_second, addresses in SESSION_FLOODS:
            for target in targets:
                print(session_row(target, kind, per_second, addresses), flush=True)


if __name__ == "__main__":
    main()
