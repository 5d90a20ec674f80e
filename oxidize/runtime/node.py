"""One generation: a device with its sockets in a loop, from the moment it owns them until it has handed them over.

The rule: this process reads, sends and records only between `serve` and `freeze` (or the end). All that a successor
needs is at all times in the journal, the arena and the descriptors, so a freeze has nothing to save but the packets
that wait for a session.
"""

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import oxidize
from oxidize import logs
from oxidize.client.connection import Connection
from oxidize.client.host_setup import HostSetup, has_host_setup
from oxidize.control.query import ACCEPT, DRAIN, IDENTITY, QUERIES, STATE, STATUS, VITALS
from oxidize.errors import OxidizeError, Phase, SnapshotError, StateError, TakeoverError
from oxidize.hostnet.interface import routes_needed
from oxidize.hostnet.nat import Nat
from oxidize.metrics import Live, Metrics
from oxidize.net import http
from oxidize.net.data_path import DataPath, Tunnel
from oxidize.net.event_loop import READABLE, Loop, boot_time
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket
from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.counters import ENDED_ON_PURPOSE, DropReason, Total
from oxidize.protocol.device import Device
from oxidize.runtime import status
from oxidize.runtime.compactor import Upkeep
from oxidize.runtime.crash_loop import Stability
from oxidize.runtime.drain import Drain
from oxidize.runtime.endpoint_cache import EndpointMemory
from oxidize.runtime.error_count import ErrorCount
from oxidize.runtime.http_endpoints import State, make_respond
from oxidize.runtime.offer import FdName, OfferState, named_fd
from oxidize.service_manager import notify, systemctl
from oxidize.service_manager.watchdog import Watchdog
from oxidize.settings import NodeSettings
from oxidize.state.session_state import SessionState
from oxidize.takeover.host import Answer, NamedFd, Offer
from oxidize.takeover.listener import Listener
from oxidize.takeover.messages import Hello
from oxidize.takeover.predecessor import Predecessor
from oxidize.text import counted

REMEMBERED_SECS = 0.25  # a rendering of the metrics
LINGER_SECS = 1.0  # for HTTP requests that were accepted before the hand-off

log = logs.get(__name__)


@dataclass(slots=True)
class Parts:
    """What a generation is made of, however it came by it.

    http_server: one that answers for it already. guard_fd: of `HostSetup`, and upstream_dns: of `Connection`, both
    from a predecessor.
    """

    settings: NodeSettings
    generation: int
    state: SessionState
    device: Device
    udp: UdpSocket
    network: Tunnel
    nat: Nat
    http_listener: socket.socket | None
    http_server: http.HttpServer | None = None
    guard_fd: int | None = None
    upstream_dns: Sequence[str] = ()


class Node:
    """A server or a client that serves; the host of the takeover by which it will be replaced.

    watchdog_secs: the interval of the service manager's watchdog, 0.0 for none. state_name: "starting", "healthy" or
    "draining".
    """

    def __init__(self, parts: Parts, loop: Loop, watchdog_secs: float = 0.0) -> None:
        self.settings = parts.settings
        self.generation = parts.generation
        self.session_state = parts.state
        self.device = parts.device
        self.udp = parts.udp
        self.network = parts.network
        self.nat = parts.nat
        # Not when it is asked for, in the middle of serving: with ten thousand routes it takes 15 ms.
        self.interface_digest = interface_digest_of(parts.settings)
        self.host_setup = host_setup_of(parts)
        self.started_at = boot_time()
        self.started_unix = time.time()
        self.state_name: State = "starting"
        self._loop = loop
        self.http_listener = parts.http_listener
        self._http = parts.http_server
        self._predecessor: Predecessor | None = None
        self._serving = False
        self._is_ending = False  # told to end, and draining first
        is_userspace = isinstance(parts.network, UserspaceNetwork)
        refusal = DropReason.ROUTE_UNSUPPORTED if is_userspace else DropReason.NETWORK_WRITE_FAILED
        counters = parts.state.arena.counters
        self.counters = counters
        self._error_count = ErrorCount(counters)
        self._data_path = DataPath(parts.device, parts.udp, parts.network, counters, boot_time, refusal)
        self._upkeep = Upkeep(parts.state, boot_time)
        self._watchdog = Watchdog(watchdog_secs, boot_time)
        self._drain = Drain(parts.device, counters, loop)
        self.failure: str | None = None  # why a client has given up
        self._endpoint_memory: EndpointMemory | None = None
        if parts.settings.endpoints_file is not None:
            self._endpoint_memory = EndpointMemory(parts.settings.endpoints_file, parts.device, boot_time)
        self.connection: Connection | None = None
        if parts.settings.server is not None:
            self.connection = Connection(
                parts.settings, parts.device, counters, loop, self._data_path.flush, self._give_up, parts.upstream_dns
            )
        self._respond = make_respond(
            lambda: self.state_name, Remembered(Metrics(counters, self._live(), release=oxidize.__version__).render)
        )

    def _live(self) -> Live:
        return Live(
            connections_active=lambda: self.device.live_sessions(boot_time()),
            peers=lambda: len(self.device.peers),
            kernel_drops=self.udp.kernel_drops,
            generation=lambda: self.generation,
            state=lambda: self.state_name,
            link=lambda: self.connection.state if self.connection is not None else None,
        )

    # --- Serving ---

    def open_http(self) -> None:
        """Answer /health and /metrics from now on, whatever the state; a no-op where they are answered already."""
        if self.http_listener is not None and self._http is None:
            self._http = serve_http(self.http_listener, self.respond, self._loop)

    def respond(self, method: str, path: str) -> http.Response:
        """Answer an HTTP request; a bug in that ends the request and not the tunnels."""
        try:
            return self._respond(method, path)
        except Exception:  # the boundary of a request: whoever may read metrics must not be able to end the service
            log.exception("an HTTP request failed", path=path)
            return http.Response(500, b"Internal error; see the log.\n")

    def serve(self) -> None:
        """Read and send from now on, and heed signals; only the owner may call this."""
        self._error_count.begin()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self.handle_termination)
        self._loop.on_signal(signal.SIGHUP, lambda: log.warning("SIGHUP changes nothing: use `oxidize reload`"))
        self.udp.take_ownership(report_errors=self.connection is not None, fwmark=self.settings.fwmark)
        self._loop.register(self.udp.fileno(), READABLE, self._data_path.from_udp)
        tunnel = self.network.fileno()
        if tunnel is not None:
            self._loop.register(tunnel, READABLE, self._data_path.from_tunnel)
        self._loop.add_timed(self._data_path)
        self._loop.add_timed(self._watchdog)
        if self._endpoint_memory is not None:
            self._loop.add_timed(self._endpoint_memory)
        if self.drain_left_secs is not None:
            self._loop.add_timed(self._drain)
        self._serving = True
        if self.connection is not None:
            self.connection.start(boot_time())
        if self.state_name == "starting":
            self.state_name = "healthy"

    def open_takeover(self, *, held: bool) -> Predecessor:
        """Listen for a successor; `held`: not before our own predecessor has ended."""
        loop = self._loop
        self._predecessor = Predecessor(
            Listener(self.settings.takeover_socket),
            self,
            release=oxidize.__version__,
            register=lambda fd, callback: loop.register(fd, READABLE, callback),
            unregister=loop.unregister,
            clock=boot_time,
            held=held,
        )
        loop.add_timed(self._predecessor)
        loop.add_timed(self._upkeep)
        loop.add_timed(Stability(self.counters, boot_time))
        return self._predecessor

    def _stop_serving(self) -> None:
        self._serving = False
        if self.connection is not None:
            self.connection.stop()
        self._loop.unregister(self.udp.fileno())
        tunnel = self.network.fileno()
        if tunnel is not None:
            self._loop.unregister(tunnel)
        self._loop.remove_timed(self._data_path)
        self._loop.remove_timed(self._watchdog)
        if self._endpoint_memory is not None:
            self._loop.remove_timed(self._endpoint_memory)
        self._loop.remove_timed(self._drain)
        if self._http is not None:
            self._http.pause()

    def _give_up_ownership(self) -> None:
        """Read and send no more, and record what only this process knows: the next owner goes on from there."""
        self._stop_serving()
        self._data_path.flush()
        self.udp.end_ownership()
        self.device.freeze()
        self._error_count.end()

    # --- Being taken over (`takeover.host.TakeoverHost`) ---

    def offer(self, hello: Hello) -> Offer:
        """Return all descriptors, and hold compaction; raises TakeoverError for a release too old for our state."""
        if max(hello.snapshot_versions, default=0) < self.session_state.journal.envelope["min_reader"]:
            needed = self.session_state.journal.envelope["min_reader"]
            raise TakeoverError(
                Phase.OFFERING,
                f"release {hello.release} reads state of formats {list(hello.snapshot_versions)}; expected {needed} or "
                f"later: use a release of that format",
            )
        self.session_state.hold()
        state = OfferState(
            interface_digest=self.interface_digest,
            installed_dns=self.host_setup.installed_dns if self.host_setup is not None else {},
            watchdog_secs=self._watchdog.interval,
            listen=self.settings.listen,
            metrics_listen=self.settings.metrics_listen,
            server=self.settings.server,
            upstream_dns=tuple(self.connection.upstream_dns) if self.connection is not None else (),
        )
        # Not our own number: a successor that died after COMMIT may have written a later one.
        return Offer(self.session_state.generation, tuple(self._descriptors()), state.encode())

    def _descriptors(self) -> Iterator[NamedFd]:
        yield named_fd(FdName.UDP, self.udp.fileno(), self.udp.framing())
        for name, fd in self.session_state.fds.items():
            yield named_fd(FdName(name), fd)
        if self.http_listener is not None:
            yield named_fd(FdName.HTTP, self.http_listener.fileno())
        if isinstance(self.network, TunDevice):
            yield named_fd(FdName.TUN, self.network.fileno(), self.network.framing())
        nat = self.nat.fileno()
        if nat is not None:
            yield named_fd(FdName.NAT, nat)
        if self.host_setup is not None and self.host_setup.guard_fd is not None:
            yield named_fd(FdName.GUARD, self.host_setup.guard_fd)
        if "JOURNAL_STREAM" not in os.environ and sys.stderr is not None:
            yield named_fd(FdName.STDERR, sys.stderr.fileno())

    def offer_withdrawn(self, reason: str) -> None:
        """Note that the successor will not own; serving went on."""
        self.session_state.unhold()
        self._note_failure(reason)

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        """Stop reading and sending, and record what only this process knows."""
        self._give_up_ownership()
        self.session_state.stop_writing()
        return {"journal_end": self.session_state.end}

    def thaw(self, reason: str) -> None:
        """Serve again: read what a successor that is now dead has recorded, then go on where it ended."""
        changes = self.session_state.sync()
        self.session_state.become_writer()
        self.session_state.unhold()
        self.device.restore(changes, boot_time())
        self.device.own()
        self.serve()
        if self._http is not None:
            self._http.resume()
        self.device.prepare()
        self._renew_nat()
        self._note_failure(reason)

    def _renew_nat(self) -> None:
        """Make the table ours again: a successor that got as far as TAKEN may have given it rules of its own."""
        try:
            self.nat.apply()
        except OxidizeError as error:
            log.error("serves, but not with all of its settings", reason=str(error))

    def finish(self, taken: dict[str, Any]) -> None:
        """End: the successor owns. HTTP requests that are under way get their answers first."""
        log.info("handed over", **taken)
        self._loop.add_timed(_Linger(self._http, self._loop))

    def answer(self, query: str) -> Answer:
        """Answer a query of `runtime.status`, or do what it asks for; raises OxidizeError for any other."""
        if query == STATUS:
            return Answer(status.describe(self))
        if query == VITALS:
            return Answer(status.describe_vitals(self))
        if query == STATE:
            self._check_serving()
            return status.hand_out_state(self)
        if query == DRAIN:
            self._drain_by_hand()
        elif query == ACCEPT:
            self._accept_again()
        elif query != IDENTITY:
            raise OxidizeError(f"query {query!r}: expected one of {', '.join(QUERIES)}")
        return Answer(status.describe_process(self))

    def _note_failure(self, reason: str) -> None:
        self.counters[Total.TAKEOVERS_FAILED] += 1
        entry = {"at_unix": time.time(), "result": "failure", "generation": self.generation, "reason": reason}
        try:
            self.session_state.record_takeover(entry)
        except StateError as error:  # a full journal: to serve matters more than to remember
            log.error("a failed takeover is not remembered", reason=str(error))

    # --- Ending ---

    @property
    def errors_before(self) -> int | None:
        """The errors that had been logged when this generation began to serve, None before that."""
        return self._error_count.before

    @property
    def drain_left_secs(self) -> float | None:
        """Seconds until a drain ends at the latest, 0.0 when it has ended, None where there is none."""
        return self._drain.left_secs

    def handle_termination(self) -> None:
        """End: at once if the next process of this unit goes on with the sessions, else after a drain.

        A second request ends at once, too.
        """
        if not self._serving or self._is_ending:
            log.info("ends at once", generation=self.generation)
            # One that does not serve may be about to have a successor, which goes on with what is set.
            self._end_service() if self._serving else self._end()
        elif systemctl.will_go_on():
            log.info("ends for the next process, in which its sessions go on", generation=self.generation)
            self._end()
        else:
            self._is_ending = True
            notify.notify("STOPPING=1")
            if self.settings.drain_timeout_secs:
                self._drain_and(self._end_service)
            else:
                log.info("ends", generation=self.generation)
                self._end_service()

    def _end_service(self) -> None:
        """Stop for good: what was set outside of this process goes as well."""
        if self.host_setup is not None:
            self.host_setup.revert()
        self._end()

    def _end(self) -> None:
        """Stop, with all that the next process needs written down."""
        if self._serving:
            self._give_up_ownership()
            self.counters[ENDED_ON_PURPOSE] = 1
            if self._endpoint_memory is not None:
                self._endpoint_memory.write_now()
        self._loop.stop()

    def _give_up(self, failure: str) -> None:
        self.failure = failure
        self._end_service()

    def _drain_by_hand(self) -> None:
        if not self._is_ending:
            self._drain_and(self._note_drained)

    def _check_serving(self) -> None:
        if not self._serving:
            raise OxidizeError("a takeover is going on: ask again")

    def _drain_and(self, then: Callable[[], None]) -> None:
        self._check_serving()
        self.state_name = "draining"
        self._drain.begin(self.settings.drain_timeout_secs, then)

    def _note_drained(self) -> None:
        notify.notify("STATUS=drained: no new sessions; waits for its end")

    def _accept_again(self) -> None:
        if self._is_ending:
            raise OxidizeError("the server was told to end, and does when nobody uses it any more; start it again")
        self._drain.cancel()
        if self.state_name == "draining":
            self.state_name = "healthy"
            say_ready(self)

    def close(self) -> None:
        """Close what this generation held; idempotent."""
        if self._predecessor is not None:
            self._predecessor.close()
        if self._http is not None:
            self._http.close()
        if self.http_listener is not None:
            self.http_listener.close()
        self.udp.close()
        if isinstance(self.network, TunDevice):
            self.network.close()
        self.nat.close()
        if self.host_setup is not None:
            self.host_setup.close()
        self._error_count.end()
        self.session_state.close()

    def check_journal(self, commit: dict[str, Any]) -> None:
        """Raise SnapshotError unless the journal was read up to where the predecessor said that it ends."""
        expected = commit.get("journal_end", 0)
        if self.session_state.end < expected:
            raise SnapshotError(f"journal: read up to {self.session_state.end}, expected {expected} as COMMIT says")


def interface_digest_of(settings: NodeSettings) -> str:
    """Return a digest of what the interface is set to, for a successor to compare with that of its own settings.

    A digest, since the routes of thousands of peers would not fit into the OFFER.
    """
    addresses = sorted(map(str, settings.addresses))
    routes = sorted(map(str, routes_needed(settings.addresses, settings.routes)))
    text = "\n".join([*addresses, *routes, str(settings.mtu)])
    return hashlib.sha256(text.encode()).hexdigest()


def host_setup_of(parts: Parts) -> HostSetup | None:
    """Return what is set outside of the interface, for a client that has one."""
    if not has_host_setup(parts.settings):
        if parts.guard_fd is not None:
            os.close(parts.guard_fd)
        return None
    port = int(parts.udp.local_address.rpartition(":")[2])
    return HostSetup(parts.settings, port, parts.guard_fd)


def serve_http(listener: socket.socket, respond: http.Respond, loop: Loop) -> http.HttpServer:
    """Answer HTTP at `listener`, which must not block, from the loop."""
    server = http.HttpServer(listener, respond, loop.register, loop.unregister, boot_time)
    loop.add_timed(server)
    return server


def say_ready(node: Node) -> None:
    """Tell the service manager that this generation serves."""
    peers = counted(len(node.device.peers), "peer")
    notify.notify("READY=1", f"STATUS=generation {node.generation}, release {oxidize.__version__}, {peers}")


class Remembered:
    """Renders the metrics, at most once in REMEMBERED_SECS: whoever asks all the time must not stop the data path."""

    def __init__(self, render: Callable[[], tuple[bytes, str]]) -> None:
        self._render = render
        self._rendered = (b"", "")
        self._until = 0.0

    def __call__(self) -> tuple[bytes, str]:
        """Return the text and its content type."""
        if boot_time() >= self._until:
            self._rendered = self._render()
            self._until = boot_time() + REMEMBERED_SECS
        return self._rendered


class _Linger:
    """Stops the loop once no HTTP connection is open, or after LINGER_SECS."""

    def __init__(self, server: http.HttpServer | None, loop: Loop) -> None:
        self._is_busy = partial(getattr, server, "busy", 0)
        self._loop = loop
        self._ends_at = boot_time() + LINGER_SECS

    def next_deadline(self) -> float:
        return min(self._ends_at, boot_time() + 0.02) if self._is_busy() else 0.0

    def handle_timeout(self, now: float) -> None:
        if not self._is_busy() or now >= self._ends_at:
            self._loop.stop()
