"""One generation of a server or a client: a device with its sockets in a loop.

The rule: this process reads, sends and records only between `serve` and `give_up_ownership`. All that a successor needs
is at all times in the journal, the arena and the descriptors, so a freeze has nothing to save but the packets that wait
for a session.
"""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from oxidize import logs, signals
from oxidize.clock import boot_time
from oxidize.errors import OxidizeError, SnapshotError
from oxidize.hostnet.interface import InterfacePart
from oxidize.hostnet.part import Part
from oxidize.net.data_path import DataPath, packets_per_send
from oxidize.net.event_loop import READABLE, Loop, Timed
from oxidize.net.http_response import Response
from oxidize.net.network_watch import NetworkWatch
from oxidize.net.tun import TunDevice
from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.counters import ENDED_ON_PURPOSE, DropReason
from oxidize.protocol.peer import Peer
from oxidize.runtime.drain import Drain
from oxidize.runtime.endpoint_cache import EndpointCache
from oxidize.runtime.error_count import ErrorCount
from oxidize.runtime.fair_share_keeper import FairShareKeeper
from oxidize.runtime.file_watch import FileWatch
from oxidize.runtime.flood_filter import FloodFilter
from oxidize.runtime.http_binding import HttpBinding
from oxidize.runtime.http_endpoints import State, ThrottledRender, make_respond, serve_http
from oxidize.runtime.late_imports import import_late
from oxidize.runtime.lost_lines import LostLines
from oxidize.runtime.network_keeper import NetworkKeeper
from oxidize.runtime.parts import NodeParts
from oxidize.runtime.peer_events import PeerEvents
from oxidize.runtime.peer_lookups import PeerLookups
from oxidize.runtime.peer_terms import PeerTerms
from oxidize.runtime.sliced_work import SlicedWork
from oxidize.runtime.source_follower import SourceFollower
from oxidize.service_manager import notify, systemctl
from oxidize.service_manager.watchdog import Watchdog
from oxidize.text import counted, one_line, own_release

if TYPE_CHECKING:
    from oxidize.client.connection import Connection
    from oxidize.client.host_setup import HostSetup
    from oxidize.metrics import Live, Metrics
    from oxidize.runtime.peer_metrics import PeerMetrics

log = logs.get(__name__)


class Node:
    """A server or a client that serves.

    watchdog_secs: the interval of the service manager's watchdog, 0.0 for none. failure: why a client has given up.
    kept: the file with the settings. interface: what should be set at the tunnel's interface. keeper: keeps that and
    the rest of the host's network. terms: which peers of the settings the device has not.
    """

    def __init__(self, parts: NodeParts, loop: Loop, watchdog_secs: float = 0.0) -> None:
        self.settings = settings = parts.settings
        self.generation = parts.generation
        self.session_state = parts.state
        self.device = parts.device
        self.udp = parts.udp
        self.tunnel = parts.tunnel
        self.nat = parts.nat
        # Made now and not on request, in the middle of serving: with ten thousand routes it takes 15 ms and more.
        self.interface = InterfacePart(
            settings.interface,
            settings.addresses,
            settings.mtu,
            settings.routes,
            packets_per_send(settings.mtu),
            table=settings.table,
            policy_table=settings.policy_table,
        )
        self.host_setup = _host_setup_of(parts)
        self.watchdog_secs = watchdog_secs
        self.kept = parts.kept
        self.started_at = boot_time()
        self.started_unix = time.time()
        self._state: State = "starting"
        self.failure: str | None = None
        self.http_listener, self.http_server = parts.http_listener, parts.http_server
        self._loop = loop
        self._serving = False
        self.is_ending = False  # told to end, and draining first
        self.on_ending: Callable[[], None] = lambda: None  # called when that begins
        self.wg_problem: Callable[[], str | None] = lambda: None  # why wg does not find this process
        is_userspace = isinstance(parts.tunnel, UserspaceNetwork)
        refusal = DropReason.ROUTE_UNSUPPORTED if is_userspace else DropReason.NETWORK_WRITE_FAILED
        self.counters = counters = parts.state.arena.counters
        self.error_count = ErrorCount(counters)
        self._lost_lines = LostLines(counters, loop)
        self._data_path = DataPath(parts.device, parts.udp, parts.tunnel, counters, boot_time, refusal)
        self._flood_filter = FloodFilter(parts.device.admission, parts.udp, counters)
        self._fair_share = FairShareKeeper(parts.device.fair_share, parts.udp, self._flood_filter, counters)
        # Of the loop while it serves:
        self._timed: list[Timed] = [
            self._data_path, Watchdog(watchdog_secs, boot_time), self._flood_filter, self._fair_share
        ]  # fmt: skip
        self._drain = Drain(parts.device, counters, loop, lambda: self.session_state.generation)
        self._endpoint_cache: EndpointCache | None = None
        if parts.settings.endpoints_file is not None:
            self._endpoint_cache = EndpointCache(parts.settings.endpoints_file, parts.device, boot_time)
            self._timed.append(self._endpoint_cache)
        self.lookups = self._lookups_of(parts)
        if parts.settings.role == "server":  # a client tells of its link
            self._timed.append(PeerEvents(parts.device, counters, boot_time))
        self.connection = self._connection_of(parts)
        self._http_binding = HttpBinding(
            parts.settings, lambda: self.http_listener is not None, self._adopt_http, boot_time
        )
        self.terms = PeerTerms(settings.peers, parts.device, self._note_added)
        self._timed += [self._http_binding, self.terms]
        self.keeper = NetworkKeeper(
            self._kept_parts(), counters, boot_time, lambda: self._serving, self._report_network
        )
        self._sources = SourceFollower(
            parts.udp, lambda: (peer.endpoint for peer in list(parts.device.peers.values())), lambda: self._serving
        )
        self._name_watch = self._watch_of_names()
        # The user of a userspace network may have no right to hear of tables, and has none.
        self._watch = NetworkWatch(loop, self._note_network_change, tables=isinstance(parts.tunnel, TunDevice))
        if self.connection is not None:
            self.connection.missing = lambda: self.keeper.missing
        self._metrics: tuple[Metrics, PeerMetrics] | None = None
        self._respond = make_respond(lambda: self.state_name, ThrottledRender(self._render_metrics), self._render_peers)

    def _lookups_of(self, parts: NodeParts) -> PeerLookups | None:
        if parts.settings.role != "server":
            return None
        return PeerLookups(parts.device, self._loop, self._data_path.flush)

    def _connection_of(self, parts: NodeParts) -> "Connection | None":
        if parts.settings.server is None:
            return None
        from oxidize.client.connection import Connection  # noqa: PLC0415  # not for a server

        return Connection(
            parts.settings,
            self.device,
            self.counters,
            self._loop,
            self._data_path.flush,
            self._give_up,
            parts.upstream_dns,
        )

    def _note_added(self, peer: Peer) -> None:
        if self.lookups is not None:
            self.lookups.add(peer, boot_time())

    def _render_metrics(self) -> tuple[bytes, str]:
        if self._metrics is None:
            from oxidize.metrics import Metrics  # noqa: PLC0415  # see `late_imports`
            from oxidize.runtime.peer_metrics import PeerMetrics  # noqa: PLC0415  # see `late_imports`

            peers = PeerMetrics(self.device, self.counters, self.settings.metrics_peers, boot_time)
            self._metrics = Metrics(self.counters, self._live(peers), release=own_release()), peers
            if peers.left_out and self.settings.metrics_peers:
                log.info("no metrics of each peer", peers=peers.left_out, metrics_peers=self.settings.metrics_peers)
        return self._metrics[0].render()

    def _render_peers(self) -> Iterator[bytes] | None:
        return self._metrics[1].pieces() if self._metrics is not None else None

    def _live(self, peers: "PeerMetrics") -> "Live":
        from oxidize.metrics import Live  # noqa: PLC0415  # see `late_imports`

        return Live(
            connections_active=lambda: self.device.live_sessions(boot_time()),
            peers=lambda: len(self.device.peers),
            kernel_drops=self.udp.kernel_drops,
            generation=lambda: self.generation,
            state=lambda: self.state_name,
            link=lambda: self.connection.state if self.connection is not None else None,
            network_missing=lambda: len(self.keeper.missing),
            peers_left_out=lambda: peers.left_out,
            waiting_for_name=lambda: self.lookups.waiting_by_name() if self.lookups is not None else {},
        )

    @property
    def state_name(self) -> State:
        """The state of the service: "degraded" is a healthy one whose settings of the host's network are incomplete."""
        return "degraded" if self._state == "healthy" and self.keeper.missing else self._state

    # --- The host's network ---

    def _kept_parts(self) -> list[Part]:
        """Return what this process sets up in the host's network, in the order in which it is put back."""
        if not isinstance(self.tunnel, TunDevice):
            return []
        parts: list[Part] = [self.interface]
        if self.nat.enabled:
            parts.append(self.nat)
        if self.host_setup is not None:
            parts += self.host_setup.parts
        return parts

    def _watch_of_names(self) -> FileWatch | None:
        if self.host_setup is None or self.settings.name_servers is None:
            return None
        from oxidize.hostnet.dns_config import NAME_FILES  # noqa: PLC0415  # not for a server

        begins_at = self.host_setup.names_kept_from
        return FileWatch(NAME_FILES, self.keeper.note_change, lambda: self._serving, begins_at)

    def protect(self) -> None:
        """Set the packet filter, if any, and the mark by which it knows the tunnel's own packets; raises OxidizeError.

        One right after the other: a packet between them would be dropped, or leave. Where the filter fails, the mark is
        left as it is.
        """
        if self.host_setup is not None:
            self.host_setup.protect()
        self.udp.set_mark(self.settings.fwmark)

    def keep_network(self) -> None:
        """Compare the host's network with the settings now, and whenever the kernel tells of a change; idempotent.

        Apart from `serve`, which must not take longer because of it.
        """
        self._watch.start()
        if self.connection is None:
            self._sources.begin()
            self._loop.add_timed(self._sources)
        if isinstance(self.tunnel, TunDevice):
            self.keeper.begin()
            self._loop.add_timed(self.keeper)
        if self._name_watch is not None:
            self._loop.add_timed(self._name_watch)

    def _note_network_change(self, now: float) -> None:
        self.keeper.note_change(now)
        self._sources.note_change(now)

    def settle_interface(self, working: Callable[[], None] = lambda: None, *, is_repair: bool = False) -> None:
        """Bring the interface to what the settings say, and serve meanwhile; what is missing then is in `keeper`.

        working: called between slices. is_repair: see `NetworkKeeper.settle`. Raises OxidizeError once a successor
        owns.
        """
        for pause in self.keeper.settle(self.interface, is_repair=is_repair):
            served_until = boot_time() + pause
            self.pause(0)
            while (left := served_until - boot_time()) > 0:
                self.pause(left)
            working()

    def _report_network(self) -> None:
        """Tell the service manager what is missing in the host's network, or that nothing is."""
        if missing := self.keeper.missing:
            notify.notify(f"STATUS=degraded: {one_line(missing[0])}")
        elif self.connection is not None:
            self.connection.notify_state()
        else:
            notify.notify(self._status_line())

    # --- Serving ---

    def open_http(self) -> None:
        """Answer /health and /metrics from now on, whatever the state; idempotent."""
        if self.http_listener is not None and self.http_server is None:
            self.http_server = serve_http(self.http_listener, self.respond, self._loop)

    def _adopt_http(self, listener: socket.socket) -> None:
        self.http_server = serve_http(listener, self.respond, self._loop)
        self.http_listener = listener
        self.do_in_slices(import_late())

    @property
    def http_problem(self) -> str | None:
        """Why /health and /metrics are not answered, None where they are, or are switched off."""
        return self._http_binding.problem

    def respond(self, method: str, path: str) -> Response:
        """Answer an HTTP request; a bug in that ends the request and not the tunnels."""
        try:
            return self._respond(method, path)
        except Exception:  # the boundary of a request: a reader of metrics must not be able to end the service
            log.exception("an HTTP request failed", path=path)
            return Response(500, b"Internal error; see the log.\n")

    def serve(self) -> None:
        """Read, send and handle signals from now on; only the owner may call this."""
        self.error_count.begin()
        self._lost_lines.begin()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._loop.on_signal(number, partial(self.handle_termination, number))
        # Until now it ended a successor that hangs; the others were set before, see `daemon`.
        self._loop.on_signal(signals.ALARM, partial(log.warning, signals.text_for(signals.ALARM)))
        self.udp.take_ownership(report_errors=self.connection is not None)
        self.terms.begin(boot_time())  # before the first packet: one may be of a peer whose time has come
        self._flood_filter.begin()
        self._fair_share.begin()
        self._loop.register(self.udp.fileno(), READABLE, self._data_path.from_udp)
        tunnel_fd = self.tunnel.fileno()
        if tunnel_fd is not None:
            self._loop.register(tunnel_fd, READABLE, self._data_path.from_tunnel)
        for timed in self._timed:
            self._loop.add_timed(timed)
        self._serving = True
        if self.lookups is not None:
            self.lookups.start(boot_time())
        if self.connection is not None:
            self.connection.start(boot_time())
        self._state = "draining" if self._drain.resume(_report_drained) else "healthy"

    def check_serving(self) -> None:
        """Raise OxidizeError during a hand-off."""
        if not self._serving:
            raise OxidizeError("a takeover is under way: ask again")

    @property
    def is_serving(self) -> bool:
        """Whether this process owns, and so may change what is set up outside of it."""
        return self._serving

    def pause(self, secs: float) -> None:
        """Serve while a program runs that this process has started; raises OxidizeError once a successor owns."""
        self._loop.run_once(secs)
        self.check_serving()

    def give_up_ownership(self) -> None:
        """Stop reading and sending, and record what only this process knows: the next owner continues from there."""
        self._serving = False
        if self.lookups is not None:
            self.lookups.stop()
        if self.connection is not None:
            self.connection.stop()
        self._loop.pause(self.udp.fileno())  # not unregistered: a thaw must not fail for room in the kernel
        tunnel_fd = self.tunnel.fileno()
        if tunnel_fd is not None:
            self._loop.pause(tunnel_fd)
        for timed in (*self._timed, self._drain):
            self._loop.remove_timed(timed)
        if self.http_server is not None:
            self.http_server.pause()
        self._data_path.flush()
        self.udp.end_ownership()
        self.device.freeze()
        self.error_count.end()
        self._lost_lines.end()

    def notify_ready(self) -> None:
        """Tell the service manager that this generation serves."""
        notify.notify("READY=1", self._status_line())

    def _status_line(self) -> str:
        peers = counted(len(self.device.peers), "peer")
        return f"STATUS=generation {self.generation}, release {own_release()}, {peers}"

    def do_in_slices(self, slices: Iterator[None]) -> None:
        """Do work that grows with the number of peers from the loop, while this process owns."""
        SlicedWork(slices, self._loop, lambda: self._serving)

    def settle_configuration(self) -> Iterator[None]:
        """Record, in slices, in what this generation's configuration differs from its predecessor's."""
        yield from self.device.forget_unknown_peers()
        yield from self.device.endpoints.record_configured_in_slices()

    # --- The journal of a predecessor ---

    def check_journal(self, commit: Mapping[str, Any]) -> None:
        """Raise SnapshotError unless the journal was read up to the end that the predecessor sent with COMMIT."""
        expected = commit.get("journal_end", 0)
        if self.session_state.end < expected:
            raise SnapshotError(f"journal: read up to {self.session_state.end}, expected {expected} as COMMIT says")

    def record_start(self, way: str, sessions: int, blackout_ms: float | None) -> None:
        """Record for `oxidize status` how this generation came to own."""
        self.session_state.record_takeover(
            {
                "at_unix": time.time(),
                "result": "success",
                "way": way,
                "generation": self.generation,
                "release": own_release(),
                "sessions": sessions,
                "blackout_ms": blackout_ms,
            }
        )

    # --- Ending ---

    @property
    def drain_left_secs(self) -> float | None:
        """Seconds until a drain ends at the latest, 0.0 when it has ended, None where there is none."""
        return self._drain.left_secs

    def handle_termination(self, number: int) -> None:
        """End: at once if the next process of this unit takes the sessions over, else after a drain.

        A second request ends at once, too. The log says which signal it was, before a drain and at the end.
        """
        asked = signals.name_of(number)
        if not self._serving or self.is_ending:
            log.info("ends at once", signal=asked, generation=self.generation)
            # A process that does not serve may have a successor soon, which keeps what is set up.
            self._end_service() if self._serving else self._end()
        elif systemctl.will_restart():
            log.info("ends; sessions are kept for the next process", signal=asked, generation=self.generation)
            self._end()
        else:
            self.is_ending = True
            self.on_ending()
            notify.notify("STOPPING=1")
            if self.settings.drain_timeout_secs:
                log.info("told to end: drains first", signal=asked, generation=self.generation)
                self._drain_and(partial(self._end_drained, asked))
            else:
                self._end_drained(asked)

    def _end_drained(self, asked: str) -> None:
        sessions = self.device.live_sessions(boot_time())
        log.info("ends", signal=asked, generation=self.generation, sessions=sessions)
        self._end_service()

    def _end_service(self) -> None:
        """Stop for good, and revert what was set up outside of this process."""
        if self.host_setup is not None:
            is_planned = self.failure is None and (not self.settings.kill_switch or systemctl.is_stopped())
            self.host_setup.revert(spare_kill_switch=not is_planned)
        self._end()

    def _end(self) -> None:
        """Stop, and leave everything recorded that the next process needs."""
        if self._serving:
            self.give_up_ownership()
            self.counters[ENDED_ON_PURPOSE] = 1
            self._drain.cancel()  # a process that is started on purpose accepts
            if self._endpoint_cache is not None:
                self._endpoint_cache.write_now()
        self._loop.stop()

    def _give_up(self, failure: str) -> None:
        self.failure = failure
        self._end_service()

    def drain(self) -> None:
        """Drain, and serve until told to end; raises OxidizeError during a hand-off."""
        if not self.is_ending:
            self._drain_and(_report_drained)

    def _drain_and(self, then: Callable[[], None]) -> None:
        self.check_serving()
        self._state = "draining"
        self._drain.begin(self.settings.drain_timeout_secs, then)

    def accept(self) -> None:
        """End a drain, and accept new sessions again; raises OxidizeError during a hand-off or if told to end."""
        self.check_serving()
        if self.is_ending:
            raise OxidizeError("the server was told to end, and ends when its sessions are idle; start it again")
        self._drain.cancel()
        if self._state == "draining":
            self._state = "healthy"
            self.notify_ready()

    def close(self) -> None:
        """Close what this generation held; idempotent."""
        self.keeper.stop()
        self._watch.stop()
        if self.http_server is not None:
            self.http_server.close()
        if self.http_listener is not None:
            self.http_listener.close()
        self.udp.close()
        if isinstance(self.tunnel, TunDevice):
            self.tunnel.close()
        self.nat.close()
        if self.host_setup is not None:
            self.host_setup.close()
        self.error_count.end()
        self._lost_lines.end()
        self.session_state.close()


def _report_drained() -> None:
    notify.notify("STATUS=drained: no new sessions; waiting to be stopped")


def _host_setup_of(parts: NodeParts) -> "HostSetup | None":
    """Return what is set up outside of the interface, or None where that is nothing."""
    if not parts.settings.has_host_setup:
        return None
    from oxidize.client.host_setup import HostSetup  # noqa: PLC0415  # not for most servers

    port = int(parts.udp.local_address.rpartition(":")[2])
    return HostSetup(parts.settings, port, parts.guard_fd)
