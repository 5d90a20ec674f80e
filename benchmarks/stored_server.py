"""A server that starts from stored state, with sessions that no client holds and packets that wait, as after a crash.

Rule: what is stored is written by the code that every server of this tree restores with, so a server of an older tree
reads it as that of a newer release. Real clients have sessions beside it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import oxidize
from benchmarks.player import Play
from demo import processes
from demo.clients import ClientSettings, FleetSettings
from oxidize.control.query import VITALS, fetch
from oxidize.protocol.changes import KeypairState, PeerEndpoint, PeerKeypairs, PeerSeen, PeerStaged, PeerTimestamp
from oxidize.protocol.endpoint import Endpoint
from oxidize.state.session_state import SessionState
from tests.support.traffic.server import OXIDIZE, WITHOUT_HOLDER

WAITING_PACKETS, WAITING_PACKET_BYTES = 11, 1_400  # 62 MB for 4,000 peers, of 64 that are staged at most
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


@dataclass(frozen=True)
class Reload:
    """What the server says of a reload. ended_unix: when the successor had read for the first time."""

    blackout_ms: float
    ended_unix: float
    secs: float


class Server:
    """A server that starts from a state with `sessions` sessions and has one more peer, a real client.

    waiting: peers without a session for which packets wait. others: more real clients, without a session. environ: of
    its processes.
    """

    def __init__(
        self,
        directory: Path,
        sessions: int,
        waiting: int,
        program: Sequence[str] = OXIDIZE,
        options: Sequence[str] = WITHOUT_HOLDER,
        network: str = 'network = "userspace"',
        others: int = 0,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._program, self._options, self._network = program, options, network
        self.config = directory / "server.toml"
        self.log = directory / "server.log"
        self._takeover_socket = directory / "takeover.sock"
        self._key = X25519PrivateKey.generate()
        self._real = [X25519PrivateKey.generate() for _ in range(1 + others)]
        self._peers = [os.urandom(32) for _ in range(sessions + waiting)]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._http = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        for bound in (self._udp, self._http):
            bound.bind(("127.0.0.1", 0))
        self._http.listen()
        self._write_config(directory)
        state = stored_state(self._key.public_key().public_bytes_raw(), self._peers[:sessions], self._peers[sessions:])
        self._environ = environ
        # What a service manager keeps for the next process.
        self.kept = {name: os.dup(fd) for name, fd in state.fds.items()}
        self.kept |= {"udp": os.dup(self._udp.fileno()), "http": os.dup(self._http.fileno())}
        state.close()
        self.start()

    def start(self) -> None:
        """Start a process from what is kept."""
        with self.log.open("ab") as log:
            self.pid = processes.spawn(
                self._command("server", *self._options), self._environ, log.fileno(), list(self.kept.items())
            )

    def _write_config(self, directory: Path) -> None:
        udp, http = (f"127.0.0.1:{bound.getsockname()[1]}" for bound in (self._udp, self._http))
        text = CONFIG.format(udp=udp, http=http, address=SERVER_ADDRESS, network=self._network)
        keys = [*(key.public_key().public_bytes_raw() for key in self._real), *self._peers]
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
        """Return the settings of the real client, in `demo.clients`."""
        host, port = self._udp.getsockname()
        client = ClientSettings(self._real[0].private_bytes_raw().hex(), bytes(32).hex(), str(FIRST_ADDRESS))
        key = self._key.public_key().public_bytes_raw().hex()
        return FleetSettings(host, port, key, str(SERVER_ADDRESS), (client,), ECHOES_PER_SECOND, CLIENT_SECS_MAX)

    def play(self) -> Play:
        """Return the settings of all real clients, in `benchmarks.player`."""
        host, port = self._udp.getsockname()
        addresses = [str(FIRST_ADDRESS + number) for number in range(len(self._real))]
        keys = [key.private_bytes_raw().hex() for key in self._real]
        return Play(host, port, self._key.public_key().public_bytes_raw().hex(), keys, addresses, str(SERVER_ADDRESS))

    def reload(self) -> Reload:
        """Replace the process."""
        began, before = time.perf_counter(), self.pid
        done = subprocess.run(self._command("reload"), capture_output=True, text=True, check=False)
        secs = time.perf_counter() - began
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        vitals = fetch(self._takeover_socket, VITALS)
        self.pid = vitals["pid"]
        processes.reap(before)
        last = vitals["takeovers"][-1]
        return Reload(last["blackout_ms"], last["at_unix"], secs)

    def sessions(self) -> int:
        """Return the number of sessions."""
        return int(fetch(self._takeover_socket, VITALS)["sessions"])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._udp.close()
        self._http.close()
        for fd in self.kept.values():
            os.close(fd)
