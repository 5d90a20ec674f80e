"""A node gives ownership up and takes it back: what it must do at those moments, with real sockets and state."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oxidize.clock import boot_time
from oxidize.config import load_server
from oxidize.errors import TakeoverError
from oxidize.net.event_loop import Loop
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.changes import PeerStaged
from oxidize.protocol.constants import KEEPALIVE_TIMEOUT
from oxidize.protocol.counters import KEEPALIVE_OWED_NS
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.noise import TransportKeys
from oxidize.protocol.peer import Peer
from oxidize.runtime.handover import Handover
from oxidize.runtime.node import Node
from oxidize.runtime.parts import NodeParts, adopt_nat, boot_id, make_device, restore
from oxidize.runtime.succession import Succession
from oxidize.settings import NodeSettings
from oxidize.state.session_state import SessionState
from oxidize.takeover.messages import Hello
from tests.support.config_files import ALICE, PRIVATE, secret
from tests.support.network import packet

SERVER = """\
[server]
listen = "127.0.0.1:0"
address = ["10.9.0.1/24"]
private_key_file = "server.key"
takeover_socket = "takeover.sock"
network = "userspace"
metrics_listen = ""

[[peer]]
name = "alice"
public_key = "{alice}"
allowed_ips = ["10.9.0.2/32"]
endpoint = "127.0.0.1:{port}"
"""


class Stand:
    """A server of one peer, whose UDP socket the test holds."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        self.peer_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        undo.callback(self.peer_socket.close)
        self.peer_socket.bind(("127.0.0.1", 0))
        self.peer_socket.settimeout(5.0)
        secret(folder / "server.key", PRIVATE + "\n")
        path = secret(folder / "server.toml", SERVER.format(alice=ALICE, port=self.peer_socket.getsockname()[1]))
        self.settings = NodeSettings.of_server(load_server(path))
        self.loop = Loop()
        undo.callback(self.loop.close)
        self._undo = undo
        self.state = SessionState.create("test", 1, boot_id(), self.settings.public_key)
        self.node = self.make_node(self.state, 1)

    def make_node(self, state: SessionState, generation: int, device: Any = None) -> Node:
        settings = self.settings
        udp = UdpSocket(bind_udp("127.0.0.1", 0))
        tunnel = UserspaceNetwork(settings.addresses)
        device = device or make_device(settings, state, settings.peers)
        node = Node(
            NodeParts(settings, generation, state, device, udp, tunnel, adopt_nat(settings, None), None), self.loop
        )
        self._undo.callback(node.close)
        return node

    def successor(self) -> Node:
        """Restore while the node serves."""
        fds = self.state.fds
        restored = restore(self.settings, os.dup(fds["journal"]), os.dup(fds["arena"]), boot_time())
        return self.make_node(restored.state, 2, restored.device)

    def own(self, node: Node) -> None:
        node.device.restore(node.session_state.sync(), boot_time())
        node.session_state.become_writer()
        node.session_state.begin_generation("test", node.generation)
        node.device.own()
        node.serve()

    def handover(self) -> Handover:
        handover = Handover(self.node, self.loop, held=False)
        self._undo.callback(handover.predecessor.close)
        return handover

    @property
    def peer(self) -> Peer:
        (peer,) = self.node.device.peers.values()
        return peer

    def begin_session(self) -> None:
        table, peer = self.node.device._table, self.peer
        table.allocate_slot(peer)
        index = table.indices.new(None, table.random_bytes)
        keys = TransportKeys(bytes(32), bytes(32))
        keypair = table.create_keypair(peer, keys, (index, 1), False, boot_time())
        table.rotate(peer, lambda: peer.rotate_as_responder(keypair))
        table.rotate(peer, peer.promote_next)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(tmp_path, undo)


def test_a_freeze_records_the_packets_that_wait_and_the_endpoint_that_moved(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    new = stand.successor()
    now = boot_time()
    stand.node.device.send_packets([packet("10.9.0.1", "10.9.0.2", b"waits")], now)
    for port in (1001, 1002):  # the second move within a second is held back
        stand.node.device._table.move_endpoint(stand.peer, Endpoint(bytes([127, 0, 0, 1]), port), now)
    commit = handover.freeze({})
    stand.own(new)
    new.check_journal(commit)
    (peer,) = new.device.peers.values()
    assert list(peer.staged) == [packet("10.9.0.1", "10.9.0.2", b"waits")]
    assert peer.endpoint is not None
    assert peer.endpoint.port == 1002


def test_a_freeze_sends_what_the_device_has_queued(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    stand.node.device.send_packets([packet("10.9.0.1", "10.9.0.2")], boot_time())
    handover.freeze({})
    assert stand.peer_socket.recv(2048)[0] == 4  # a data message
    assert stand.node.device.take_transmits() == []


def test_packets_are_recorded_from_the_offer_on_and_leave_the_records_when_it_is_withdrawn(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    for number in range(128):
        stand.node.device.send_packets([packet("10.9.0.1", "10.9.0.2", bytes([number]) * 1300)], boot_time())

    def staged() -> list[int]:
        changes = stand.state.changes()
        return [len(change.packets) for change in changes if isinstance(change, PeerStaged) and change.packets]

    handover.offer(Hello("test", 1, (1,)))
    for _ in range(100):
        stand.loop.run_once(0.01)
        if staged():
            break
    assert staged() == [128]
    assert len(stand.peer.staged) == 128
    handover.offer_withdrawn("a test")
    for _ in range(100):
        stand.loop.run_once(0.01)
        if not staged():
            break
    assert staged() == []
    assert len(stand.peer.staged) == 128


def test_the_timers_that_a_predecessor_noted_after_the_restore_are_kept(stand: Stand) -> None:
    stand.node.serve()
    stand.begin_session()
    new = stand.successor()
    owed_at = boot_time()
    stand.state.arena.counters[stand.peer.slot + KEEPALIVE_OWED_NS] = int(owed_at * 1e9)  # leaves no record
    stand.handover().freeze({})
    stand.own(new)
    unused: Any = SimpleNamespace(done=lambda report: None, is_coordinated=False)
    succession = Succession(stand.settings, stand.loop, unused, unused, unused)
    succession._announce(new, None, {"sessions": 1, "refused": {}, "warnings": []})
    deadline = new.device.next_deadline()
    assert deadline is not None
    assert deadline == pytest.approx(owed_at + KEEPALIVE_TIMEOUT, abs=1e-6)


# --- Draining ---


def state_of(node: Node) -> tuple[str, bool]:
    return node.state_name, node.device.accepting


def test_a_node_that_was_told_to_end_withdraws_its_offer_and_makes_none(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.node.serve()
    handover = stand.handover()
    withdrawn: list[str] = []
    monkeypatch.setattr(handover.predecessor, "withdraw", withdrawn.append)
    stand.begin_session()
    stand.node.handle_termination()
    assert withdrawn == ["the server was told to end"]
    with pytest.raises(TakeoverError, match="was told to end"):
        handover.offer(Hello("test", 1, (1,)))
    assert not stand.loop.stopped


def test_a_drain_is_the_successors_also_if_it_begins_after_the_offer(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    new = stand.successor()
    stand.node.drain()
    handover.freeze({})
    stand.own(new)
    assert state_of(new) == ("draining", False)
    new.accept()
    assert state_of(new) == ("healthy", True)
    assert new.drain_left_secs is None


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_thawed_node_drains_unless_its_dead_successor_was_told_to_accept(stand: Stand, cancelled: bool) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    stand.node.drain()
    new = stand.successor()
    handover.freeze({})
    stand.own(new)
    if cancelled:
        new.accept()
    new.give_up_ownership()
    new.session_state.stop_writing()
    handover.thaw("a test")
    assert stand.node.state_name == ("healthy" if cancelled else "draining")
    assert stand.node.device.accepting is cancelled


@pytest.mark.parametrize("crash", [False, True])
def test_a_restart_begins_accepting_and_a_crash_continues_the_drain(stand: Stand, crash: bool) -> None:
    stand.node.serve()
    stand.begin_session()
    stand.node.drain()
    new = stand.successor()
    if not crash:
        stand.node._end()
    stand.state.stop_writing()  # as its end does
    stand.own(new)
    assert new.state_name == ("draining" if crash else "healthy")


def test_a_node_that_does_not_own_cancels_no_drain(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    stand.node.drain()
    handover.freeze({})
    with pytest.raises(Exception, match="a takeover is under way"):
        stand.node.accept()
