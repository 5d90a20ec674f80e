"""A server alone on a processor, with the player of its clients on another one (`benchmarks/player.py`)."""

import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import AF_INET, AF_INET6, SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET, socket
from typing import Any

from benchmarks.player import DISCARD_PORT, SMALLEST_BUFFER, Play, Send, Sent, refused_at_sink, sent_by_link
from benchmarks.trees import HERE, Tree, cpu_secs
from tests.support.traffic.direct_link import PORT, DirectLink
from tests.support.traffic.server import Identity, Lab, PeerTable, Server

SESSION_SECS_MAX = 90.0  # a session ends 180 s after its handshake
STARTED_SECS = 1.0  # a server that has just started to serve has work left
SETTLED_SECS = 0.15  # without a packet: the queue of the server is empty
INNER = {4: (IPv4Address("10.10.0.1"), 16), 6: (IPv6Address("fd10::1"), 64)}
FIRST_PEER = 256  # of the inner network
SERVER_LINK = "clients0"


@dataclass(frozen=True)
class Measured:
    """What a player sent, the packets that the server passed on, and the processor time that it took for them."""

    sent: Sent
    passed: int
    cpu_secs: float

    @property
    def us(self) -> float:
        """Microseconds of the server's processor time for each packet."""
        return self.cpu_secs / max(self.passed, 1) * 1e6

    @property
    def kpps(self) -> float:
        """Thousands of packets passed on in a second, after the warm-up."""
        return self.sent.passed / self.sent.window / 1e3

    @property
    def share(self) -> float:
        """The part of the offered packets that was passed on."""
        return self.passed / self.sent.sent


@dataclass(frozen=True)
class Setup:
    """What a server is measured with. core: its own; inside, outside: the versions of IP in the tunnel and below it.

    others: peers that the player does not play. http: where /metrics is served, "" for nowhere.
    """

    core: int
    peers: int
    inside: int = 4
    outside: int = 4
    others: Sequence[PeerTable] = ()
    http: str = ""


class Stand:
    """A server of one tree with its peers, and the player of its clients."""

    def __init__(self, lab: Lab, tree: Tree, setup: Setup) -> None:
        self.lab = lab
        self.tree = tree
        address, prefix = INNER[setup.inside]
        self.link = link = DirectLink(lab)
        clients = [Identity.make() for _ in range(setup.peers)]
        addresses = [str(address + FIRST_PEER + number) for number in range(setup.peers)]
        tables = [
            PeerTable(f"p{number}", client.public, (inner,))
            for number, (client, inner) in enumerate(zip(clients, addresses, strict=True))
        ]
        self.server = server = Server(
            lab,
            [*tables, *setup.others],
            listen=f"[::]:{PORT}",
            network="tun",
            interface=f"ox{secrets.token_hex(5)}",
            address=[f"{address}/{prefix}"],
            metrics_listen=setup.http,
            inside=link.server_side.entered,
        )
        server.write_config(endpoints_file="")
        self.pid = server.start(program=tree.program(setup.core), options=tree.options)
        family = AF_INET6 if setup.inside == 6 else AF_INET
        with link.server_side.entered():
            sink, outgoing = (lab.stack.enter_context(socket(family, SOCK_DGRAM)) for _ in range(2))
        sink.setsockopt(SOL_SOCKET, SO_RCVBUF, SMALLEST_BUFFER)
        sink.bind((str(address), DISCARD_PORT))
        outer = DirectLink.SERVER6 if setup.outside == 6 else DirectLink.SERVER
        keys = [client.private.hex() for client in clients]
        play = Play(
            outer, PORT, server.identity.public.hex(), keys, addresses, str(address), outgoing.fileno(), self.pid,
            SERVER_LINK,
        )  # fmt: skip
        with link.client_side.entered():
            self._player = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.player"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=HERE,
                pass_fds=[outgoing.fileno()],
            )
        lab.stack.callback(self._end_player)
        self._tell(asdict(play))
        self._peers = setup.peers
        self._connected_at = float("-inf")

    def _end_player(self) -> None:
        self._player.kill()
        with suppress(BrokenPipeError):  # it has ended by itself
            self._player.communicate()

    def _tell(self, order: object) -> None:
        assert self._player.stdin is not None
        self._player.stdin.write(json.dumps(order) + "\n")
        self._player.stdin.flush()

    def _ask(self, order: object) -> Any:
        self._tell(order)
        assert self._player.stdout is not None
        line = self._player.stdout.readline()
        if not line:
            raise RuntimeError(f"the player has ended with status {self._player.wait()}; its error is above")
        return json.loads(line)

    def connect(self) -> None:
        """Let all clients make a new session, unless theirs are young."""
        if time.monotonic() - self._connected_at > SESSION_SECS_MAX:
            if (connected := self._ask(None)) != self._peers:
                raise RuntimeError(f"{connected} sessions: expected {self._peers}")
            self._connected_at = time.monotonic()
            time.sleep(STARTED_SECS)

    def measure(self, order: Send, beside: AbstractContextManager[object] | None = None) -> Measured:
        """Carry out an order in young sessions, with `beside` entered while it is sent."""
        self.connect()
        before = self._passed(order)
        cpu = cpu_secs(self.pid)
        with beside or nullcontext():
            sent = Sent(**self._ask(asdict(order)))
        passed = self._wait_settled(order) - before
        return Measured(sent, passed, cpu_secs(self.pid) - cpu)

    def _passed(self, order: Send) -> int:
        return refused_at_sink(self.pid) if order.inbound else sent_by_link(self.pid, SERVER_LINK)

    def _wait_settled(self, order: Send) -> int:
        """Return how many packets have been passed on, when no more come."""
        passed = -1
        while passed != (passed := self._passed(order)):
            time.sleep(SETTLED_SECS)
        return passed


@contextmanager
def stands(trees: list[Tree], setup: Setup) -> Iterator[list[Stand]]:
    """Yield a server of each tree."""
    with ExitStack() as stack:
        made = []
        for tree in trees:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxidize-bench-"))
            lab = stack.enter_context(Lab(Path(folder)))
            made.append(Stand(lab, tree, setup))
        yield made
