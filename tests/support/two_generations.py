"""Two generations of a server in this process: a real node and its real successor, with real sockets and memory files.

Only the messages between the two are replaced: `Peering.ready` freezes the predecessor where READY and COMMIT would.
The predecessor's clock can be moved on.
"""

import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from oxidize import clock, config
from oxidize.control.reload_channel import Control
from oxidize.net.event_loop import Loop
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.userspace import UserspaceNetwork
from oxidize.runtime import node as node_module
from oxidize.runtime.handover import Handover
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.runtime.node import Node
from oxidize.runtime.parts import NodeParts, adopt_nat, boot_id, make_device
from oxidize.runtime.succession import Succession
from oxidize.settings import NodeSettings
from oxidize.state.session_state import SessionState
from oxidize.takeover.host import Offer
from oxidize.takeover.messages import Hello
from oxidize.takeover.path_lock import PathLock
from oxidize.takeover.successor import Commit, Successor
from tests.support.traffic.clients import EchoClient
from tests.support.traffic.server import Lab, PeerTable, Server

ROUNDS_MAX = 200  # of a conversation: loopback needs one or two each


class Peering:
    """The successor's end of a takeover as `Succession` sees it. before_commit: called where READY arrives."""

    def __init__(self, handover: Handover) -> None:
        self.handover = handover
        self.said: list[tuple[str, Any]] = []
        self.before_commit: Callable[[], None] = lambda: None
        self.inherits = False
        self.is_dead = False  # the predecessor, after COMMIT
        self.lock: PathLock | None = None
        self.predecessor_fd = os.pidfd_open(os.getpid())

    def ready(self, report: dict[str, Any], read_along: Callable[[], object] | None = None) -> Commit:
        self.said.append(("ready", report))
        if read_along is not None:
            read_along()
        self.before_commit()
        if self.inherits:
            return Commit(predecessor_died=True)
        frozen_at = clock.boot_time()
        return Commit(self.handover.freeze(report), frozen_at)

    def has_inherited(self) -> bool:
        return self.inherits

    def taken(self, info: dict[str, Any]) -> None:
        self.said.append(("taken", info))

    def failed(self, reason: str) -> None:
        self.said.append(("failed", reason))

    def is_predecessor_dead(self) -> bool:
        return self.is_dead

    def has_predecessor_ended(self) -> bool:
        return False

    def next_deadline(self) -> float | None:
        return None

    def close(self) -> None:
        if self.predecessor_fd >= 0:
            os.close(self.predecessor_fd)
            self.predecessor_fd = -1


class _LocalServer(Server):
    local_port = 0

    @property
    def port(self) -> int:
        return self.local_port


class Generations:
    """The first generation, which serves, and further ones by `succession`."""

    def __init__(self, folder: Path, peers: list[PeerTable]) -> None:
        self.server = _LocalServer(Lab(folder), peers, listen="127.0.0.1:0")
        self.late_by = 0.0  # of the first generation's clock
        self.loop = Loop()
        self.loop.now = self.now
        self.next_loop = Loop()
        self.next_handover: Handover | None = None
        settings = self.settings()
        state = SessionState.create("0.2.0", 1, boot_id(), settings.public_key)
        device = make_device(settings, state, settings.peers)
        udp = UdpSocket(bind_udp(*settings.listen))
        tunnel = UserspaceNetwork(settings.addresses)
        parts = NodeParts(settings, 1, state, device, udp, tunnel, adopt_nat(settings, udp, None), None, KeptSettings())
        self.node = Node(parts, self.loop)
        device.prepare()
        self.node.serve()
        self.handover = Handover(self.node, self.loop, held=False)
        self.peering = Peering(self.handover)
        self.server.local_port = int(udp.local_address.rpartition(":")[2])

    def now(self) -> float:
        return clock.boot_time() + self.late_by

    def settings(self) -> NodeSettings:
        self.server.write_config()
        return NodeSettings.of_server(config.load_server(self.server.config_path))

    def offer(self) -> Offer:
        """Return the offer of the first generation with descriptors of the receiver's own."""
        offer = self.handover.offer(Hello("0.2.0", os.getpid(), (1,)))
        return offer._replace(fds=tuple(each._replace(fd=os.dup(each.fd)) for each in offer.fds))

    def succession(self, control: Control | None = None) -> Succession:
        """Return a successor of the first generation, with the configuration as it is now."""
        successor = cast(Successor, self.peering)
        return Succession(
            self.settings(), KeptSettings(), self.next_loop, control or Control(None), successor, self.offer()
        )

    def succeed(self) -> Handover:
        """Replace the first generation, which stays frozen."""
        self.next_handover = self.succession().run()
        return self.next_handover

    def talk(self, client: EchoClient, loop: Loop) -> bool:
        """Send a request of a client and let the owner of this loop answer; return whether it did."""
        client.send_next()
        for _ in range(ROUNDS_MAX):
            loop.run_once(0)
            client.receive()
            if not client.waiting:
                return True
        return False

    def close(self) -> None:
        if self.next_handover is not None:
            self.next_handover.close()
        self.handover.close()
        self.peering.close()
        for loop in (self.loop, self.next_loop):
            loop.close()
        vars(self).clear()


@contextmanager
def two_generations(
    folder: Path, clients: list[EchoClient], monkeypatch: pytest.MonkeyPatch, **table: Any
) -> Iterator[Generations]:
    """Serve these clients; `table`: changes to their configuration at the server.

    What a generation that failed has left open is closed by the end of its process; here it is collected at the end.
    """
    monkeypatch.setattr(gc, "freeze", lambda: None)  # by the server: what it leaves could not be collected
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    late: list[Generations] = []
    monkeypatch.setattr(node_module, "boot_time", lambda: late[0].now() if late else clock.boot_time())
    generations = Generations(folder, [replace(client.table(), **table) for client in clients])
    late.append(generations)
    try:
        for client in clients:
            client.connect(generations.server)
        yield generations
    finally:
        generations.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for client in clients:
            client.socket.close()
        monkeypatch.undo()
        late.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
