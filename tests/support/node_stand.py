"""A server in the test's own process, with real sockets and state, that hands over without a second process."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from oxidize.clock import boot_time
from oxidize.config import load_server
from oxidize.net.event_loop import Loop
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.protocol.noise import TransportKeys
from oxidize.protocol.peer import Peer
from oxidize.runtime.handover import Handover
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.runtime.node import Node
from oxidize.runtime.parts import NodeParts, adopt_nat, adopt_tunnel, boot_id, make_device, restore
from oxidize.settings import NodeSettings
from oxidize.state.session_state import SessionState
from tests.support.config_files import ALICE, PRIVATE, secret

SERVER = """\
[server]
listen = "127.0.0.1:0"
address = ["10.9.0.1/24"]
interface = "oxthaw0"
private_key_file = "server.key"
takeover_socket = "takeover.sock"
network = "{network}"
metrics_listen = ""

[[peer]]
name = "alice"
public_key = "{alice}"
allowed_ips = ["10.9.0.2/32"]
endpoint = "127.0.0.1:{port}"
"""


class Stand:
    """A server of one peer, whose UDP socket the test holds."""

    def __init__(self, folder: Path, undo: ExitStack, network: str = "userspace") -> None:
        self.peer_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        undo.callback(self.peer_socket.close)
        self.peer_socket.bind(("127.0.0.1", 0))
        self.peer_socket.settimeout(5.0)
        secret(folder / "server.key", PRIVATE + "\n")
        path = secret(
            folder / "server.toml", SERVER.format(alice=ALICE, port=self.peer_socket.getsockname()[1], network=network)
        )
        self.settings = NodeSettings.of_server(load_server(path))
        self.loop = Loop()
        undo.callback(self.loop.close)
        self._undo = undo
        self.state = SessionState.create("test", 1, boot_id(), self.settings.public_key)
        self.node = self.make_node(self.state, 1)

    def make_node(self, state: SessionState, generation: int, device: Any = None) -> Node:
        settings = self.settings
        udp = UdpSocket(bind_udp("127.0.0.1", 0))
        tunnel, _ = adopt_tunnel(settings, None)
        device = device or make_device(settings, state, settings.peers)
        node = Node(
            NodeParts(
                settings, generation, state, device, udp, tunnel, adopt_nat(settings, udp, None), None, KeptSettings()
            ),
            self.loop,
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
        self._undo.callback(handover.uapi.close)
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
