"""The ways in which a generation begins: by takeover, from the service manager's store, or afresh.

The rule: a takeover wins where somebody listens at the takeover socket, then stored state, then nothing. Until the
hand-off only reads happen, so whatever fails before it leaves the predecessor serving; between the predecessor's freeze
and the first packet there is only what cannot be done before.
"""

import contextlib
import gc
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import oxidize
from oxidize import http, logs
from oxidize.errors import ConfigError, OxidizeError, SnapshotError
from oxidize.protocol.device import Device
from oxidize.protocol.peer import PeerSettings
from oxidize.protocol.words import Total
from oxidize.runtime import systemd
from oxidize.runtime.control import Control
from oxidize.runtime.data_path import Network
from oxidize.runtime.interface import configure_interface
from oxidize.runtime.loop import READABLE, Loop, boot_time, unix_time
from oxidize.runtime.node import Node, Parts, say_ready, serve_http
from oxidize.runtime.settings import NodeSettings
from oxidize.runtime.tun import TunDevice
from oxidize.runtime.udp import UdpSocket, bind_udp
from oxidize.runtime.userspace import UserspaceNetwork
from oxidize.state.records import FORMAT
from oxidize.state.session_state import SessionState
from oxidize.takeover.host import NamedFd, Offer
from oxidize.takeover.predecessor import Predecessor
from oxidize.takeover.successor import Commit, Successor

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
HTTP_BACKLOG = 128
ITEMS_BETWEEN_ANSWERS = 100  # peers or changes: some 10 ms

log = logs.get(__name__)

_Item = TypeVar("_Item")


def start(settings: NodeSettings, loop: Loop, control: Control) -> Node:
    """Begin a generation that serves when this returns.

    Raises ConfigError for sockets that cannot be had, TakeoverError when a predecessor serves on instead.
    """
    _make_folder(settings.takeover_socket)
    successor = Successor(
        settings.takeover_socket, release=oxidize.__version__, snapshot_versions=[FORMAT], clock=boot_time
    )
    offer = successor.connect()
    passed = systemd.listen_fds()
    if offer is None:
        successor.close()
        return _start_alone(settings, loop, control, passed)
    for fds in passed.values():
        for fd in fds:  # the predecessor's own are the ones in use
            os.close(fd)
    return _Takeover(settings, loop, control, successor, offer).run()


# --- By takeover ---


@dataclass(slots=True)
class _Takeover:
    """The successor's side of one takeover."""

    settings: NodeSettings
    loop: Loop
    control: Control
    successor: Successor
    offer: Offer
    is_network_new: bool = False

    def run(self) -> Node:
        try:
            node = self._restore()
            now = boot_time()
            sessions, report = node.device.live_sessions(now), node.device.restore(node.session_state.sync(), now)
            refused = {"not configured any more": report.strangers} if report.strangers else {}
            summary = {"sessions": sessions, "refused": refused}
            self.control.prepared(summary)
            node.device.restore(node.session_state.sync(), boot_time())
        except BaseException as error:
            self.successor.failed(str(error) or type(error).__name__)
            raise
        commit = self.successor.ready(summary)
        blackout = self._own(node, commit)
        self._announce(node, commit, blackout, summary)
        return node

    def _restore(self) -> Node:
        """Do all slow work, reading only; the predecessor serves all the while."""
        settings, offer = self.settings, self.offer
        fds = {named.name: named.fd for named in offer.fds}
        state = SessionState.open(
            offer.find("journal").fd,
            offer.find("arena").fd,
            boot_id=_boot_id(),
            public_key=settings.public_key,
            now=boot_time(),
        )
        device = _make_device(settings, state, settings.peers)
        device.restore(state.changes(), boot_time())
        device.prepare()
        listener = socket.socket(fileno=fds["http"]) if "http" in fds else _bind_http(settings)
        tun = next((named for named in offer.fds if named.name == "tun"), None)
        network, self.is_network_new = _adopt_network(settings, tun)
        udp = UdpSocket(socket.socket(fileno=offer.find("udp").fd))
        parts = Parts(settings, offer.generation + 1, state, device, udp, network, listener)
        node = Node(parts, self.loop)
        gc.collect()
        gc.freeze()
        return node

    def _own(self, node: Node, commit: Commit) -> float | None:
        """Become the owner and read the first packets; return the blackout in seconds, None after a death."""
        state = node.session_state
        node.device.restore(state.sync(), boot_time())
        node.check_journal(commit.info)
        state.become_writer()
        # Until the predecessor has ended, not only until TAKEN: it may cross a SIGKILL, and then it thaws from here.
        state.hold()
        state.begin_generation(oxidize.__version__, node.generation)
        node.device.own()
        node.serve()
        self.loop.run_once(0)
        return boot_time() - commit.frozen_at if commit.frozen_at is not None else None

    def _announce(self, node: Node, commit: Commit, blackout: float | None, summary: dict[str, Any]) -> None:
        """Tell everybody: the words, the journal, the predecessor, the service manager and the coordinator."""
        blackout_ms = blackout * 1000 if blackout is not None else None
        _count_takeover(node, blackout, summary)
        entry = {
            "at_unix": time.time(),
            "result": "success",
            "way": "inherited: the predecessor died" if commit.predecessor_died else "taken over",
            "generation": node.generation,
            "release": oxidize.__version__,
            "sessions": summary["sessions"],
            "blackout_ms": blackout_ms,
        }
        node.session_state.record_takeover(entry)
        predecessor = node.open_takeover(held=True)
        self.successor.taken({"sessions": summary["sessions"], "blackout_ms": blackout_ms or 0.0})
        node.open_http()
        say_ready(node)
        self._take_log()
        self.control.done({"generation": node.generation, **summary, "blackout_ms": blackout_ms or 0.0})
        log.info("took over", generation=node.generation, sessions=summary["sessions"], blackout_ms=blackout_ms)
        self._reconcile_interface(node)
        if self.is_network_new:
            _store_network(node)
        node.device.forget_strangers()
        _PredecessorEnd(self.loop, self.successor, predecessor, node.session_state).watch()

    def _reconcile_interface(self, node: Node) -> None:
        is_changed = self.offer.state.get("interface") != node.interface
        if isinstance(node.network, TunDevice) and (is_changed or self.is_network_new):
            _configure(self.settings)

    def _take_log(self) -> None:
        """Log where the predecessor logged, if this process was started by a coordinator's terminal."""
        named = next((named for named in self.offer.fds if named.name == "stderr"), None)
        if named is None:
            return
        if self.control.is_coordinated and "JOURNAL_STREAM" not in os.environ:
            os.dup2(named.fd, 1)
            os.dup2(named.fd, 2)
        os.close(named.fd)


class _PredecessorEnd:
    """Waits for the predecessor's end, after which a further successor is welcome."""

    def __init__(self, loop: Loop, successor: Successor, predecessor: Predecessor, state: SessionState) -> None:
        self._loop = loop
        self._successor = successor
        self._held = predecessor
        self._state = state

    def watch(self) -> None:
        self._loop.register(self._successor.predecessor_fd, READABLE, self._look)
        self._loop.add_timed(self)
        self._look()

    def next_deadline(self) -> float | None:
        return self._successor.next_deadline()

    def handle_timeout(self, now: float) -> None:
        self._look()

    def _look(self) -> None:
        if self._successor.has_predecessor_ended():
            self._loop.unregister(self._successor.predecessor_fd)
            self._loop.remove_timed(self)
            self._successor.close()
            self._state.unhold()
            self._held.release()


def _count_takeover(node: Node, blackout: float | None, summary: Mapping[str, Any]) -> None:
    words = node.words
    words[Total.TAKEOVERS_SUCCEEDED] += 1
    words[Total.SESSIONS_RESTORED] += summary["sessions"]
    words[Total.SESSIONS_REFUSED] += sum(summary["refused"].values())
    blackout_ns = int((blackout or 0.0) * 1e9)
    words[Total.BLACKOUT_NS_LAST] = blackout_ns
    words[Total.BLACKOUT_NS_SUM] += blackout_ns
    words[Total.BLACKOUT_NS_MAX] = max(words[Total.BLACKOUT_NS_MAX], blackout_ns)


# --- Alone: from the store, or afresh ---


def _start_alone(settings: NodeSettings, loop: Loop, control: Control, passed: dict[str, list[int]]) -> Node:
    fds = systemd.single(passed, ("udp", "http", *systemd.STORED_NAMES))
    _close_unknown(passed, fds)
    listener = socket.socket(fileno=fds["http"]) if "http" in fds else _bind_http(settings)
    front = _Front(loop)
    if listener is not None:
        listener.setblocking(False)
        front.open(listener)
    restored = _open_stored(settings, fds)
    is_restored = restored is not None
    generation = restored.generation + 1 if restored is not None else 1
    state = restored or SessionState.create(oxidize.__version__, generation, _boot_id(), settings.public_key)
    udp = UdpSocket(socket.socket(fileno=fds["udp"]) if "udp" in fds else bind_udp(*settings.listen))
    tun = (
        NamedFd("tun", fds["tun"], "tun", {"name": settings.interface, "vnet_header": False}) if "tun" in fds else None
    )
    network, is_network_new = _adopt_network(settings, tun)
    device = _make_device(settings, state, front.between(settings.peers))
    node = Node(Parts(settings, generation, state, device, udp, network, listener, front.server), loop)
    front.node = node
    if restored is not None:
        _restore_stored(node, restored, generation, front)
    else:
        _store_state(node)
    if is_network_new:
        _store_network(node)
    device.prepare()
    if isinstance(network, TunDevice):
        _configure(settings)
    control.prepared({"sessions": 0, "refused": {}})
    gc.collect()
    gc.freeze()
    node.serve()
    node.open_takeover(held=False)
    device.forget_strangers()
    say_ready(node)
    sessions = device.live_sessions(boot_time())
    log.info("serving", generation=generation, listen=udp.local_address, restored=is_restored, sessions=sessions)
    control.done({"generation": generation, "sessions": sessions, "refused": {}, "blackout_ms": 0.0})
    return node


class _Front:
    """What answers HTTP while a generation starts alone: "starting", until there is a node to ask.

    Nothing but HTTP is in the loop by then, so that a loop's turn in the middle of the work is harmless.
    """

    def __init__(self, loop: Loop) -> None:
        self.node: Node | None = None
        self.server: http.HttpServer | None = None
        self._loop = loop

    def open(self, listener: socket.socket) -> None:
        """Begin to answer."""
        self.server = serve_http(listener, self._respond, self._loop)

    def between(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items of a long piece of work, answering what has come between some of them."""
        for number, item in enumerate(items):
            if number % ITEMS_BETWEEN_ANSWERS == 0:
                self._loop.run_once(0)
            yield item

    def _respond(self, method: str, path: str) -> http.Response:
        if self.node is not None:
            return self.node.respond(method, path)
        return http.health_response("starting")  # of /metrics too: there is nothing to measure yet


def _open_stored(settings: NodeSettings, fds: dict[str, int]) -> SessionState | None:
    """Return the state from the store, or None where there is none that can be used."""
    if "journal" not in fds or "arena" not in fds:
        return None
    try:
        return SessionState.open(
            fds["journal"], fds["arena"], boot_id=_boot_id(), public_key=settings.public_key, now=boot_time()
        )
    except SnapshotError as error:
        log.error("the stored state is not used; clients will shake hands again", reason=str(error))
        systemd.forget_fds("journal", "arena")
        return None


def _restore_stored(node: Node, state: SessionState, generation: int, front: "_Front") -> None:
    now = boot_time()
    node.device.restore(front.between(state.changes()), now)
    state.become_writer()
    state.begin_generation(oxidize.__version__, generation)
    node.device.own()
    sessions = node.device.live_sessions(now)
    node.words[Total.RESTORES_AFTER_CRASH] += 1
    node.words[Total.SESSIONS_RESTORED] += sessions
    state.record_takeover(
        {
            "at_unix": time.time(),
            "result": "success",
            "way": "restored from the store",
            "generation": generation,
            "release": oxidize.__version__,
            "sessions": sessions,
            "blackout_ms": None,
        }
    )


def _store_state(node: Node) -> None:
    """Put the state where it survives this process, before the first packet."""
    for name, fd in node.session_state.fds.items():
        systemd.store_fd(name, fd)


def _store_network(node: Node) -> None:
    """Put the TUN device where the state is, instead of the one that is used no longer."""
    systemd.forget_fds("tun")
    if isinstance(node.network, TunDevice):
        systemd.store_fd("tun", node.network.fileno())


def _close_unknown(passed: dict[str, list[int]], used: dict[str, int]) -> None:
    for name, fds in passed.items():
        if name not in used:
            log.warning("a passed file is not used", name=name, expected="udp, http, journal, arena, tun")
            for fd in fds:
                os.close(fd)


# --- Parts ---


def _make_folder(takeover_socket: Path) -> None:
    try:
        takeover_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            [
                (
                    f"takeover_socket = {takeover_socket}: its folder cannot be made: {error.strerror}: expected a "
                    "place where this user may write; set takeover_socket, or XDG_RUNTIME_DIR"
                )
            ]
        ) from error


def _make_device(settings: NodeSettings, state: SessionState, peers: Iterable[PeerSettings]) -> Device:
    return Device(settings.private_key, peers, state.arena, os.urandom, unix_time, state.record, mtu=settings.mtu)


def _adopt_network(settings: NodeSettings, tun: NamedFd | None) -> tuple[Network, bool]:
    """Return the tunnel's inside, and whether it is another one than before.

    A TUN device that is passed and is our interface is used on.
    """
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


def _configure(settings: NodeSettings) -> None:
    for change in configure_interface(settings.interface, settings.addresses, settings.mtu, settings.routes):
        log.info("interface", name=settings.interface, change=change)


def _bind_http(settings: NodeSettings) -> socket.socket | None:
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
                [
                    (
                        f"metrics_listen = {host}:{port}: {error.strerror}: expected a free address of this machine; "
                        'choose another one, or "" for none'
                    )
                ]
            ) from error
        listener.listen(HTTP_BACKLOG)
        undo.pop_all()
    return listener


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
