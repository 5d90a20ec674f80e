"""Measure the blackout of a takeover, by the number of sessions, of packets that wait and of endpoints that moved.

The rule under test: the blackout grows with none of them. Servers start from stored state with synthetic sessions, and
packets that wait for peers without one, as after a crash, and are then replaced by `oxidize reload` under the traffic
of one real client. No real client moves that often, so the second table measures the two devices of a hand-off in one
process: the freeze, and what the successor does from COMMIT on. Compare rows of one run only.
"""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import oxidize
from benchmarks.owner import run
from demo import processes
from demo.clients import ClientSettings, FleetSettings
from demo.fleet import FleetProcess
from demo.records import Kind
from oxidize.control.query import IDENTITY, fetch
from oxidize.protocol.changes import KeypairState, PeerEndpoint, PeerKeypairs, PeerSeen, PeerStaged, PeerTimestamp
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import PeerSettings
from oxidize.state.session_state import SessionState
from tests.support.traffic.server import OXIDIZE, WITHOUT_HOLDER

# Sessions, and peers without one for each of which WAITING_PACKETS wait.
LOADS = ((1, 0), (10, 0), (1_000, 0), (10_000, 0), (19_000, 0), (10, 100), (10, 400), (10_000, 400))
WAITING_PACKETS, WAITING_PACKET_BYTES = 117, 1_400  # 64 MB for 400 peers, which is all that is staged
MOVED = (0, 10, 1_000, 20_000)  # endpoints
RELOADS = 5
START_SECS_MAX = 60.0
ECHOES_PER_SECOND = 500.0
CLIENT_SECS_MAX = 120.0  # the client is ended after the reloads
SERVER_ADDRESS = IPv4Address("10.64.0.1")
FIRST_ADDRESS = IPv4Address("10.64.0.2")
LOOPBACK = IPv4Address("127.0.0.1")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

CONFIG = """\
[server]
listen = "{udp}"
address = ["{address}/10"]
private_key_file = "server.key"
takeover_socket = "takeover.sock"
{network}
metrics_listen = "{http}"
"""
PEER = '[[peer]]\nname = "p{number}"\npublic_key = "{key}"\nallowed_ips = ["{address}/32"]\n'


@dataclass(frozen=True)
class Row:
    """The result for one number of sessions."""

    sessions: int
    waiting: int
    start_secs: float  # from the start of the process to a healthy /health
    health_ms_max: float  # the longest response time of /health during the restore
    reload_secs: float
    blackouts_ms: list[float]
    echo_ms_max: float  # the highest latency of the real client during the takeovers

    def print(self, base: float) -> None:
        median = statistics.median(self.blackouts_ms)
        print(
            f"{self.sessions:8d}  {self.waiting:7d}  "
            f"{self.start_secs:6.2f} s  {self.health_ms_max:8.1f} ms  {self.reload_secs:6.2f} s  "
            f"{median:8.2f} ms  {max(self.blackouts_ms):8.2f} ms  {median / base:5.2f}  {self.echo_ms_max:9.1f} ms"
        )


HEADINGS = "sessions  packets     start  slowest health   reload     blackout      largest  ratio  slowest echo"


def stored_state(public_key: bytes, peers: list[bytes], waiting: list[bytes]) -> SessionState:
    """Return the state of a server with a fresh session of each of `peers`, and packets for each of `waiting`."""
    state = SessionState.create(oxidize.__version__, 1, BOOT_ID.read_text().strip(), public_key)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for number, peer in enumerate(peers, 1):
        state.record(PeerSeen(peer, state.arena.allocate()))
        state.record(PeerTimestamp(peer, bytes(12), now))
        state.record(PeerEndpoint(peer, Endpoint((LOOPBACK + number).packed, 9)))
        keys = (os.urandom(32), os.urandom(32))
        keypair = KeypairState(number, number, *keys, now, False, state.arena.allocate())
        state.record(PeerKeypairs(peer, None, keypair, None, time.time()))
    for peer in waiting:
        state.record(PeerEndpoint(peer, Endpoint(bytes([127, 0, 0, 1]), 9)))
        state.record(PeerStaged(peer, (bytes(WAITING_PACKET_BYTES),) * WAITING_PACKETS))
    return state


class Server:
    """A server that starts from a state with `sessions` sessions and has one more peer, a real client.

    waiting: peers without a session for which packets wait.
    """

    def __init__(
        self,
        directory: Path,
        sessions: int,
        waiting: int,
        program: Sequence[str] = OXIDIZE,
        options: Sequence[str] = WITHOUT_HOLDER,
        network: str = 'network = "userspace"',
    ) -> None:
        self._program, self._options, self._network = program, options, network
        self.config = directory / "server.toml"
        self.log = directory / "server.log"
        self._takeover_socket = directory / "takeover.sock"
        self._key, self._client_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._peers = [os.urandom(32) for _ in range(sessions + waiting)]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._http = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        for bound in (self._udp, self._http):
            bound.bind(("127.0.0.1", 0))
        self._http.listen()
        self._write_config(directory)
        state = stored_state(self._key.public_key().public_bytes_raw(), self._peers[:sessions], self._peers[sessions:])
        # What a service manager keeps for the next process.
        self.kept = {name: os.dup(fd) for name, fd in state.fds.items()}
        self.kept |= {"udp": os.dup(self._udp.fileno()), "http": os.dup(self._http.fileno())}
        state.close()
        self.start()

    def start(self) -> None:
        """Start a process from what is kept."""
        with self.log.open("ab") as log:
            self.pid = processes.spawn(
                self._command("server", *self._options), os.environ, log.fileno(), list(self.kept.items())
            )

    def _write_config(self, directory: Path) -> None:
        udp, http = (f"127.0.0.1:{bound.getsockname()[1]}" for bound in (self._udp, self._http))
        text = CONFIG.format(udp=udp, http=http, address=SERVER_ADDRESS, network=self._network)
        keys = [self._client_key.public_key().public_bytes_raw(), *self._peers]
        for number, key in enumerate(keys):
            text += PEER.format(number=number, key=b64encode(key).decode(), address=FIRST_ADDRESS + number)
        self.config.write_text(text)
        key_file = directory / "server.key"
        key_file.touch(0o600)
        key_file.write_bytes(b64encode(self._key.private_bytes_raw()) + b"\n")

    def _command(self, *words: str) -> list[str]:
        return [*self._program, *words, "-c", str(self.config)]

    def health(self) -> str:
        with socket.create_connection(self._http.getsockname(), START_SECS_MAX) as link:
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b"".join(iter(lambda: link.recv(4096), b""))
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["status"])

    def wait_healthy(self) -> float:
        """Return the longest response time of /health in ms, after the first response."""
        slowest = 0.0
        state = self.health()  # the first request waits for the interpreter
        while state != "healthy":
            asked = time.perf_counter()
            state = self.health()
            slowest = max(slowest, time.perf_counter() - asked)
            time.sleep(0.002)
        return slowest * 1e3

    def clients(self) -> FleetSettings:
        """Return the settings of the real client."""
        host, port = self._udp.getsockname()
        client = ClientSettings(self._client_key.private_bytes_raw().hex(), bytes(32).hex(), str(FIRST_ADDRESS))
        key = self._key.public_key().public_bytes_raw().hex()
        return FleetSettings(host, port, key, str(SERVER_ADDRESS), (client,), ECHOES_PER_SECOND, CLIENT_SECS_MAX)

    def reload(self) -> float:
        """Replace the process; return the blackout in ms."""
        done = subprocess.run(self._command("reload"), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        identity = fetch(self._takeover_socket, IDENTITY)
        self.pid = identity["pid"]
        return float(done.stdout.partition("blackout ")[2].split()[0])

    def blackouts_ms(self) -> list[float]:
        status = fetch(self._takeover_socket)
        return [entry["blackout_ms"] for entry in status["takeovers"][-RELOADS:]]

    def sessions(self) -> int:
        return int(fetch(self._takeover_socket)["sessions"])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._udp.close()
        self._http.close()
        for fd in self.kept.values():
            os.close(fd)


@contextlib.contextmanager
def running(sessions: int, waiting: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oxidize-bench-") as directory:
        server = Server(Path(directory), sessions, waiting)
        try:
            yield server
        except BaseException:
            print(server.log.read_text(), file=sys.stderr)
            raise
        finally:
            server.close()


@contextlib.contextmanager
def echoing(server: Server) -> Iterator[list[float]]:
    """Let a real client send echo requests while entered; at exit the list has all latencies in ms."""
    latencies: list[float] = []
    fleet = FleetProcess(server.clients(), server.log.with_name("client.log"))
    try:
        started = False
        while not started:
            started = any(record.kind is Kind.STARTED for record in fleet.read())
            time.sleep(0.01)
        yield latencies
        latencies += [(record.at - record.sent_at) * 1e3 for record in fleet.read() if record.kind is Kind.REPLY]
    finally:
        fleet.close()


def measure(sessions: int, waiting: int) -> Row:
    began = time.perf_counter()
    with running(sessions, waiting) as server:
        health_ms_max = server.wait_healthy()
        start_secs = time.perf_counter() - began
        reload_secs = []
        with echoing(server) as latencies:
            for _ in range(RELOADS):
                began = time.perf_counter()
                server.reload()
                reload_secs.append(time.perf_counter() - began)
            time.sleep(0.2)  # for the last replies
        if server.sessions() != sessions + 1:
            raise SystemExit(f"{server.sessions()} sessions after {RELOADS} reloads; expected {sessions + 1}")
        blackouts = server.blackouts_ms()
        return Row(
            sessions,
            waiting * WAITING_PACKETS,
            start_secs,
            health_ms_max,
            statistics.median(reload_secs),
            blackouts,
            max(latencies),
        )


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


def main() -> None:
    print(HEADINGS)
    base = 0.0
    for sessions, waiting in LOADS:
        row = measure(sessions, waiting)
        base = base or statistics.median(row.blackouts_ms)
        row.print(base)
    print("   moved  slowest slice    freeze  from COMMIT on")
    for moved in MOVED:
        slice_ms, freeze_ms, own_ms = measure_moved(moved)
        print(f"{moved:8d}  {slice_ms:10.2f} ms  {freeze_ms:5.2f} ms  {own_ms:11.2f} ms")


if __name__ == "__main__":
    run(main)
