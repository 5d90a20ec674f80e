"""Start without a predecessor: with the state from the service manager's fd store, or without state.

The rules: a state that cannot be restored costs the sessions, never the service; and where another process writes the
stored journal, readable or not, it serves, so this one ends.
"""

import contextlib
import gc
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import oxidize
from oxidize import logs
from oxidize.clock import boot_time
from oxidize.control.reload_channel import Control
from oxidize.errors import OxidizeError, SnapshotError, StorageError, WriterBusyError, reason_of
from oxidize.hostnet.nat import not_forwarded
from oxidize.net import ipv6
from oxidize.net.event_loop import Loop
from oxidize.net.http import HttpServer
from oxidize.net.http_response import Response
from oxidize.net.tun import TunDevice, interface_name_of_fd
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.protocol.counters import Total
from oxidize.runtime import crash_loop
from oxidize.runtime.endpoint_cache import load_endpoints
from oxidize.runtime.fd_store import apply_nat, check_nat, settle_tunnel, store_tunnel
from oxidize.runtime.http_binding import bind_http_if_possible
from oxidize.runtime.http_endpoints import health_response, serve_http
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.runtime.late_imports import import_for_a_successor, import_late
from oxidize.runtime.node import Node
from oxidize.runtime.offer import FROM_SOCKET_UNIT, STATE, STORED, FdName, named_fd
from oxidize.runtime.parts import NodeParts, adopt_nat, adopt_tunnel, boot_id, configure, lack_of_room, make_device
from oxidize.service_manager import notify, watchdog
from oxidize.settings import NodeSettings
from oxidize.state import memory_file, writer_lock
from oxidize.state.journal import HEADER_BYTES
from oxidize.state.session_state import SessionState
from oxidize.takeover.path_lock import PathLock

if TYPE_CHECKING:
    from oxidize.runtime.handover import Handover

STORE_PATIENCE_SECS = 5.0  # for a busy manager, before this process serves
ITEMS_BETWEEN_ANSWERS = 100  # peers or changes: some 10 ms

log = logs.get(__name__)

_Item = TypeVar("_Item")


def start_alone(
    settings: NodeSettings,
    kept: KeptSettings,
    loop: Loop,
    control: Control,
    passed: dict[str, list[int]],
    lock: PathLock,
) -> "Handover":
    """Start with the descriptors that the service manager passed, as the holder of the path's lock.

    kept: the file with the settings. Raises ConfigError if a socket cannot be opened, and WriterBusyError if another
    process writes the stored state.
    """
    fence = _Fence(passed.get(FdName.JOURNAL, []))
    was_interrupted = settle_tunnel(passed, settings.interface)
    fds = {FdName(name): fd for name, fd in notify.single(passed, FROM_SOCKET_UNIT).items()} | _stored(passed)
    if settings.has_host_setup:
        from oxidize.client.host_setup import check_host_setup  # noqa: PLC0415  # not for most servers

        check_host_setup(settings, _interfaces_before(fds))
    _close_unused(passed, fds)
    handover = _ColdStart(settings, kept, loop, fds, fence, must_store=was_interrupted).run(control, lock)
    kept.store()
    return handover


class _Fence:
    """Keeps every other process from writing the stored journals, of which this one may use one.

    Such a process may be a predecessor that was stopped in a takeover: it serves again only as the writer. Closing any
    descriptor of a journal releases its lock, so this object keeps one of each, and `take` is called after a close.
    """

    def __init__(self, journal_fds: Iterable[int]) -> None:
        self._fds = [os.dup(fd) for fd in journal_fds]
        self.take()

    def take(self) -> None:
        """Take the writer's lock of every stored journal.

        Raises WriterBusyError where another process holds one, and StorageError where the kernel has no lock now: the
        next start, with the same stored state, may get it. A descriptor that cannot be locked at all is left alone.
        """
        for fd in self._fds:
            try:
                writer_lock.take(fd)
            except StorageError as error:
                if writer_lock.is_passing(error):
                    raise
                if writer_lock.is_held_elsewhere(fd):
                    raise WriterBusyError("another process writes the stored journal: it owns the state") from error

    def erase(self) -> None:
        """Give the memory of the stored journals back: they hold keys that no process will use."""
        for fd in self._fds:
            with contextlib.suppress(OSError):  # it is no memory file, or cannot be written
                memory_file.punch_hole(fd, HEADER_BYTES, max(1, os.fstat(fd).st_size - HEADER_BYTES))


class _ColdStart:
    """One start without a predecessor.

    fds: the passed descriptors, by name. fence: of their journals. must_store: the tunnel is stored, also if it was.
    """

    def __init__(
        self,
        settings: NodeSettings,
        kept: KeptSettings,
        loop: Loop,
        fds: dict[FdName, int],
        fence: _Fence,
        *,
        must_store: bool,
    ) -> None:
        self._settings = settings
        self._kept = kept
        self._loop = loop
        self._fds = fds
        self._fence = fence
        self._must_store = must_store
        http_fd = fds.get(FdName.HTTP)
        self._listener = socket.socket(fileno=http_fd) if http_fd is not None else bind_http_if_possible(settings)
        self._responder = _StartupResponder(loop)
        if self._listener is not None:
            self._listener.setblocking(False)
            self._responder.open(self._listener)
        self._interfaces_before = _interfaces_before(fds)
        if FdName.GUARD in fds and not settings.has_host_setup:
            from oxidize.client.host_setup import forget_guard  # noqa: PLC0415  # not for most servers

            os.close(fds.pop(FdName.GUARD))  # and so the guard removes what the previous process had set
            forget_guard()
        self._udp = UdpSocket(
            socket.socket(fileno=fds[FdName.UDP]) if FdName.UDP in fds else bind_udp(*settings.listen)
        )
        options = {"name": settings.interface}
        tun = named_fd(FdName.TUN, fds[FdName.TUN], options) if FdName.TUN in fds else None
        self._tunnel, self._is_tunnel_new = adopt_tunnel(settings, tun)
        self._nat = adopt_nat(settings, self._udp, fds.get(FdName.NAT))
        if self._is_tunnel_new:
            check_nat(self._nat)  # before anything is stored, for the next start takes a stored TUN for one in service

    def run(self, control: Control, lock: PathLock) -> "Handover":
        """Return a node that serves."""
        node = self._restore()
        is_restored = node is not None
        if node is None:
            self._fence.take()
            self._fence.erase()
            node = self._create()
        if self._settings.endpoints_file is not None:
            load_endpoints(self._settings.endpoints_file, node.device, self._responder.interleave, boot_time())
        if self._is_tunnel_new:
            apply_nat(node.nat)
        if self._is_tunnel_new or self._must_store:
            self._store(partial(store_tunnel, node.tunnel))
        node.device.prepare()
        self._protect(node)
        if self._is_tunnel_new and isinstance(self._tunnel, TunDevice):
            configure(node.interface)
            if node.host_setup is not None:
                node.host_setup.apply({}, self._interfaces_before)
        control.prepared({"sessions": 0, "refused": {}})
        gc.freeze()  # without a look for garbage, which takes 15 ms: the start has made next to none
        node.serve()
        self._loop.run_once(0)  # what has waited since a crash is answered before all that follows
        node.device.prepare_handshakes()
        self._loop.run_once(0)
        handover = self._listen(node, lock)
        self._responder.node = node
        if node.is_serving:  # it may have been told to end meanwhile
            node.do_in_slices(node.settle_configuration())
            node.notify_ready()
        if node.connection is not None and node.connection.is_reconfigured:
            node.connection.move()
        if not self._is_tunnel_new:
            self._configure_again(node)
        if node.is_serving:
            node.keep_network()
            if node.http_listener is not None:
                node.do_in_slices(import_late())
        sessions, listen = node.device.live_sessions(boot_time()), self._udp.local_address
        log.info("serving", generation=node.generation, listen=listen, restored=is_restored, sessions=sessions)
        self._warn_if_clients_are_isolated()
        report = {"sessions": sessions, "refused": {}, "warnings": [], "blackout_ms": 0.0}
        control.done({"generation": node.generation, **report})
        return handover

    def _listen(self, node: Node, lock: PathLock) -> "Handover":
        """Listen for a successor; what that takes is imported between two batches of packets."""
        for _ in import_for_a_successor():
            self._loop.run_once(0)
        from oxidize.runtime.handover import Handover  # noqa: PLC0415  # as it says

        uapi = named_fd(FdName.UAPI, self._fds[FdName.UAPI]) if FdName.UAPI in self._fds else None
        return Handover(node, self._loop, held=False, must_listen=False, lock=lock, uapi=uapi)

    def _protect(self, node: Node) -> None:
        """Set the packet filter before a packet can leave; without it only a tunnel that is in service goes on."""
        try:
            node.protect()
        except OxidizeError as error:
            if self._is_tunnel_new:
                raise
            log.error("the kill switch is not in force", reason=str(error))

    def _configure_again(self, node: Node) -> None:
        """Apply the settings to what outlived the previous process; the node serves already."""
        steps: list[Callable[[], None]] = [partial(check_nat, self._nat), partial(apply_nat, node.nat, node.pause)]
        if isinstance(self._tunnel, TunDevice):
            steps.insert(0, node.settle_interface)
        if node.host_setup is not None:
            steps.append(partial(node.host_setup.apply, {}, self._interfaces_before, node.pause))
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the node serves: not even a lack of descriptors may end it
                if not node.is_serving:
                    break  # a successor owns by now, and applies its own
                log.error("serving without all of its settings", reason=reason_of(error))

    def _warn_if_clients_are_isolated(self) -> None:
        """Log where the kernel does not forward packets from one client to another."""
        settings = self._settings
        if settings.role == "server" and settings.network == "tun" and len(settings.peers) > 1:
            for _, name, value in not_forwarded(settings.addresses):
                log.warning("client-to-client forwarding is disabled", sysctl=name, value=value, expected="1")

    def _create(self) -> Node:
        """Return a node with a new state, which is stored before the first packet."""
        settings = self._settings
        if str(settings.listen[0]) == "::" and (reason := ipv6.why_only_ipv4()) is not None:
            log.warning(reason)
        state = SessionState.create(oxidize.__version__, 1, boot_id(), settings.public_key, boot_time())
        node = self._make_node(state, 1)
        fds = dict(state.fds)
        if (settings.role == "client" or notify.is_held()) and FdName.UDP not in self._fds:  # no socket unit holds it
            fds[FdName.UDP] = self._udp.fileno()
        if notify.is_held() and self._listener is not None and FdName.HTTP not in self._fds:
            fds[FdName.HTTP] = self._listener.fileno()

        def store() -> None:
            for name, fd in fds.items():
                notify.store_fd(name, fd, STORE_PATIENCE_SECS)

        self._store(store)
        return node

    @staticmethod
    def _store(step: Callable[[], None]) -> None:
        """Store something; a manager that does not read that costs the crash that comes next its sessions, no start."""
        try:
            step()
        except notify.UnreadError as error:
            log.error("serving with a state that a crash will lose", reason=str(error))

    def _make_node(self, state: SessionState, generation: int) -> Node:
        settings = self._settings
        device = make_device(settings, state, self._responder.interleave(settings.peers))
        http_server = self._responder.server
        parts = NodeParts(
            settings, generation, state, device, self._udp, self._tunnel, self._nat, self._listener, self._kept
        )
        parts.http_server, parts.guard_fd = http_server, self._fds.get(FdName.GUARD)
        return Node(parts, self._loop, watchdog.interval_secs())

    def _restore(self) -> Node | None:
        """Return a node with the stored state, or None where there is no usable one."""
        fds = self._fds
        if not all(name in fds for name in STATE):
            return None
        state = None
        try:
            state = SessionState.open(
                fds[FdName.JOURNAL],
                fds[FdName.ARENA],
                boot_id=boot_id(),
                public_key=self._settings.public_key,
                now=boot_time(),
            )
            state.become_writer()  # before anything is counted
            self._wait_out(crash_loop.count_start(state.arena.counters))
            return self._restore_from(state)
        except WriterBusyError:
            raise  # the state is good, and another process serves with it: a second server would be worse than none
        except (SnapshotError, StorageError) as error:
            log.error("the stored state is not used; clients will repeat their handshakes", reason=str(error))
        except Exception:  # a bug in the restore must not keep the service down
            log.exception("the stored state is not used; clients will repeat their handshakes")
        if state is not None:
            state.close()
        self._fence.take()
        notify.forget_fds(*STATE)
        return None

    def _restore_from(self, state: SessionState) -> Node:
        generation = state.generation + 1
        node = self._make_node(state, generation)
        now = boot_time()
        node.device.restore(self._responder.interleave(state.changes()), now)
        state.begin_generation(oxidize.__version__, generation)
        state.raise_min_reader()
        node.device.own()
        sessions = node.device.live_sessions(now)
        node.counters[Total.RESTORES_AFTER_CRASH] += 1
        node.counters[Total.SESSIONS_RESTORED] += sessions
        node.record_start("restored from the store", sessions, None)
        for line in lack_of_room(self._settings, state):
            log.warning(line)
        return node

    def _wait_out(self, delay_secs: float) -> None:
        """Wait, and answer /health; the sockets hold the packets that arrive."""
        if delay_secs:
            log.warning("crashed repeatedly: waiting before it serves", delay_secs=delay_secs)
        ends_at = boot_time() + delay_secs
        while (left := ends_at - boot_time()) > 0:
            self._loop.run_once(left)


class _StartupResponder:
    """Answers HTTP during a start without a predecessor: "starting", until a node serves and listens for a successor.

    The loop has nothing but HTTP until then, so that an iteration in the middle of other work is harmless.
    """

    def __init__(self, loop: Loop) -> None:
        self.node: Node | None = None
        self.server: HttpServer | None = None
        self._loop = loop

    def open(self, listener: socket.socket) -> None:
        """Answer at `listener` from now on."""
        self.server = serve_http(listener, self._respond, self._loop)

    def interleave(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items of a long piece of work, and answer pending requests between some of them."""
        for number, item in enumerate(items):
            if number % ITEMS_BETWEEN_ANSWERS == 0:
                self._loop.run_once(0)
            yield item

    def _respond(self, method: str, path: str) -> Response:
        if self.node is not None:
            return self.node.respond(method, path)
        return health_response("starting")  # for /metrics too: there are no counters yet


def _interfaces_before(fds: Mapping[FdName, int]) -> list[str]:
    """Return the previous process's interface, whose rules are replaced if the name has changed."""
    name = interface_name_of_fd(fds[FdName.TUN]) if FdName.TUN in fds else None
    return [name] if name is not None else []


def _stored(passed: dict[str, list[int]]) -> dict[FdName, int]:
    """Return the descriptors of the store, by name: journal and arena both and once, or neither of them.

    A process that was killed between storing the two leaves one of them, and the next process would add to it.
    """
    once = {name: passed[name][0] for name in STORED if len(passed.get(name, [])) == 1}
    if any(name in passed for name in STATE) and not all(name in once for name in STATE):
        log.error("the stored state is not used: expected one journal and one arena", stored=", ".join(sorted(passed)))
        notify.forget_fds(*STATE)
        return {name: fd for name, fd in once.items() if name not in STATE}
    return once


def _close_unused(passed: dict[str, list[int]], used: dict[FdName, int]) -> None:
    for name, fds in passed.items():
        unused = [fd for fd in fds if fd not in used.values()]
        if unused:
            expected = ", ".join((*FROM_SOCKET_UNIT, *STORED)) + ": one of each"
            log.warning("a passed descriptor is not used", name=name, expected=expected)
        for fd in unused:
            os.close(fd)
