"""The parts of a generation, which every way to start has in common.

The rule: each part is made without touching what a predecessor uses.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from oxidize import logs
from oxidize.errors import ConfigError, OxidizeError
from oxidize.hostnet.interface import InterfacePart
from oxidize.hostnet.nat import Nat
from oxidize.hostnet.part import run, summary_of
from oxidize.net.data_path import Tunnel
from oxidize.net.http import HttpServer
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket
from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.device import Device
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.settings import NodeSettings
from oxidize.state.arena import MORE_ROOM
from oxidize.state.key_change import KeyChangedState
from oxidize.state.session_state import SessionState
from oxidize.state.stream import consumed
from oxidize.takeover import path_lock
from oxidize.takeover.host import NamedFd

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
HTTP_BACKLOG = 128
NO_FOLDER = frozenset({errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})  # mistakes in a path
# The reasons for refused sessions, which other releases read too.
NOT_CONFIGURED = "not configured any more"
INACTIVE = "disabled or expired"

log = logs.get(__name__)


class NodeParts:
    """The parts of a generation, wherever they come from.

    kept: the file with the settings. http_server: one that answers at `http_listener` already. guard_fd: of
    `HostSetup`, and upstream_dns: of `Connection`, both from a predecessor.
    """

    def __init__(
        self,
        settings: NodeSettings,
        generation: int,
        state: SessionState,
        device: Device,
        udp: UdpSocket,
        tunnel: Tunnel,
        nat: Nat,
        http_listener: socket.socket | None,
        kept: KeptSettings,
    ) -> None:
        self.settings = settings
        self.generation = generation
        self.state = state
        self.device = device
        self.udp = udp
        self.tunnel = tunnel
        self.nat = nat
        self.http_listener = http_listener
        self.kept = kept
        self.http_server: HttpServer | None = None
        self.guard_fd: int | None = None
        self.upstream_dns: Sequence[str] = ()


def make_folder(takeover_socket: Path) -> None:
    """Create the folder of the takeover socket if it is missing and there is room for it.

    Raises ConfigError for a path that leads to no folder. What may pass - no room, a read-only file system, no right -
    does not prevent serving: the path is tried again then (`takeover.acceptor`).
    """
    try:
        path_lock.make_folder(takeover_socket)
    except OSError as error:
        if error.errno in NO_FOLDER:
            raise ConfigError(
                f"takeover_socket = {takeover_socket}: its folder cannot be created: {error.strerror}: expected a "
                "place where this user may write; set takeover_socket, or XDG_RUNTIME_DIR"
            ) from error


def make_device(settings: NodeSettings, state: SessionState, peers: Iterable[PeerSettings]) -> Device:
    """Return a device that counts and records in `state`; `peers` is iterated once, and inactive ones are left out."""
    unix = time.time()
    device = Device(
        settings.private_key,
        (peer for peer in peers if peer.is_active(unix)),
        state.arena,
        os.urandom,
        time.time,
        state.record,
        public_key=settings.public_key,
        mtu=settings.mtu,
    )
    device.undelivered.know_networks(settings.addresses)
    return device


def lack_of_room(settings: NodeSettings, state: SessionState) -> list[str]:
    """Return a line where an older release made the state, for fewer peers than are configured; else none."""
    peers, room = len(settings.peers), state.arena.peers_max
    if peers <= room:
        return []
    return [f"{peers} peers, and the state of an older release has room for the sessions of {room}: {MORE_ROOM}"]


def unrestored(settings: NodeSettings, device: Device) -> dict[str, int]:
    """Return the number of the predecessor's peers that a device has not, by the reason."""
    unknown = device.membership.unknown
    inactive = sum(peer.public_key in unknown for peer in settings.peers) if unknown else 0
    return {NOT_CONFIGURED: len(unknown) - inactive, INACTIVE: inactive}


class Restored(NamedTuple):
    """A predecessor's state, and the device that holds it.

    unknown_peers: peers in it that are not configured. key_before: the predecessor's public key, if the settings have
    another one. ended: the number of sessions that this ends.
    """

    state: SessionState
    device: Device
    unknown_peers: int
    key_before: bytes | None = None
    ended: int = 0


def restore(
    settings: NodeSettings, journal_fd: int, arena_fd: int, now: float, *, may_change_key: bool = False
) -> Restored:
    """Restore a state while its owner serves, by reading alone; the state owns both descriptors, and closes them.

    may_change_key: whether the private key may be another one than before; then no session is restored. Raises
    SnapshotError as `SessionState.open` does, and OSError and StorageError as `KeyChangedState.of`.
    """
    expected = None if may_change_key else settings.public_key
    state = SessionState.open(journal_fd, arena_fd, boot_id=boot_id(), public_key=expected, now=now)
    key_before, ended = None, 0
    if state.public_key != settings.public_key:
        key_before = state.public_key
        state = changed = KeyChangedState.of(state, settings.public_key, now)
        ended = changed.ended
    with contextlib.ExitStack() as undo:
        undo.callback(state.close)
        device = make_device(settings, state, settings.peers)
        report = device.restore(consumed(state.changes()), now)
        device.prepare()
        undo.pop_all()
    return Restored(state, device, report.unknown_peers, key_before, ended)


def adopt_tunnel(settings: NodeSettings, tun: NamedFd | None) -> tuple[Tunnel, bool]:
    """Return the tunnel, and whether it is new: a passed TUN device of the configured interface is kept."""
    if tun is not None and settings.network == "tun" and tun.options.get("name") == settings.interface:
        try:
            return TunDevice.adopt(tun.fd, tun.options), False
        except OxidizeError as error:
            log.warning("the passed TUN device is not used", reason=str(error))
    if tun is not None:
        os.close(tun.fd)
    if settings.network == "userspace":
        return UserspaceNetwork(settings.addresses), tun is not None
    return TunDevice.create(settings.interface), True


def adopt_nat(settings: NodeSettings, udp: UdpSocket, descriptor: int | None) -> Nat:
    """Return the address translation that the settings ask for, with the passed socket or a new one.

    udp: the socket that the tunnel uses. Nothing is changed yet. Raises ConfigError where the kernel has none.
    """
    make = partial(Nat, settings.interface, settings.addresses, settings.nat, udp.port)
    try:
        return make(passed=descriptor)
    except OxidizeError as error:
        if descriptor is None:
            raise
        log.warning("the passed nftables socket is not used", reason=str(error))
    return make(passed=None)


def configure(interface: InterfacePart) -> None:
    """Bring the tunnel's interface to what the settings say, before this process serves; raises OxidizeError."""
    if changes := run(interface.compare(repair=True)):
        log.info("set", part=interface.name, changes=summary_of(changes))


def bind_http(settings: NodeSettings) -> socket.socket | None:
    """Return a listening socket for HTTP, or None where it is switched off; raises ConfigError."""
    if settings.metrics_listen is None:
        return None
    host, port = settings.metrics_listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of old connections, tcp(7)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"metrics_listen = {host}:{port}: {error.strerror}: expected a free address of this machine; "
                'choose another one, or "" for none'
            ) from error
        listener.listen(HTTP_BACKLOG)
        undo.pop_all()
    return listener


def boot_id() -> str:
    """Return the identity of this boot (random(4), /proc/sys/kernel/random/boot_id)."""
    return BOOT_ID.read_text().strip()
