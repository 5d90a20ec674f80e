"""A client's connection: passes route changes and server addresses to the device, and logs the link's states.

The rule: the device decides whether the link is up; the connection supplies what the device cannot know - a changed
route to the server, another address of the server - and reports each state to the operator once. (Network errors come
from the socket, through `data_path`.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from oxidize import logs
from oxidize.client.resolver import look_up_past_tunnel, read_upstream_dns
from oxidize.clock import boot_time
from oxidize.net.event_loop import Loop
from oxidize.net.network_watch import NetworkWatch, source_address_for
from oxidize.net.resolve import literal, look_up
from oxidize.net.resolver import LOOKUP_PAUSE_SECS, LOOKUP_PAUSE_SECS_MAX, Lookup, Outcome, Resolver
from oxidize.protocol.counters import OUTAGE_SINCE_NS, RETRIES, ROUND_TRIP_NS, Counters, LinkState
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.service_manager import notify
from oxidize.settings import NodeSettings

FLAP_SECS_MAX = 1.0  # an outage that ends within this time is a flap ...
FLAPS_QUIET_SECS = 60.0  # ... for so long after which further flaps are logged at debug
PROBE_PAUSE_SECS = 1.0  # between two probes whose only reason is a change somewhere in the network

log = logs.get(__name__)


class Connection:
    """The link of a client to its one server.

    flush: sends what the device has queued. fail: ends the process, with the reason. upstream_dns: the name servers of
    this machine without the tunnel, as a predecessor knew them; empty to read them from the system. missing: what is
    missing in the host's network, a line each.
    """

    def __init__(
        self,
        settings: NodeSettings,
        device: Device,
        counters: Counters,
        loop: Loop,
        flush: Callable[[], None],
        fail: Callable[[str], None],
        upstream_dns: Sequence[str],
    ) -> None:
        (self._peer,) = device.peers.values()
        server = settings.server or ""
        self._device = device
        self._counters = counters
        self._server = server
        self._loop = loop
        self._flush = flush
        self._fail = fail
        self._watch = NetworkWatch(loop, self._handle_network_change)
        self._mark = settings.fwmark if settings.default_routes else None
        self.upstream_dns = upstream_dns or _upstream_dns(settings)
        lookup: Lookup = look_up
        if self._mark is not None:
            lookup = partial(look_up_past_tunnel, mark=self._mark, upstream_dns=self.upstream_dns)
        self._resolver = Resolver(server, lookup, loop, self._note_lookup)
        self._is_name = literal(server) is None
        self._source_address: bytes | None = None
        self._lookup_at: float | None = None
        self._lookup_pause = LOOKUP_PAUSE_SECS
        self._lookups = 0  # in this outage
        self._is_moving = False  # the configuration names another server, whose address is not known yet
        self._failure: str | None = None
        self._probed_at = -inf
        self._down_at = -inf  # when the last outage began
        self._quiet_until = -inf
        self._not_warned: str | None = None  # the reason of an outage that may be a flap, while nothing warns of it
        self.missing: Callable[[], list[str]] = lambda: []
        device.watch_links(self._note_link)

    @property
    def state(self) -> LinkState:
        """The state of the link."""
        return self._device.link_state(self._peer) or LinkState.CONNECTING

    @property
    def _state_name(self) -> str:
        """The state for the operator: "connected" only while nothing of what leads into the tunnel is missing."""
        return "degraded" if self.state == LinkState.CONNECTED and self.missing() else self.state.name.lower()

    def notify_state(self) -> None:
        """Tell the service manager the state of the link."""
        notify.notify(f"STATUS={self._state_name}: {self._server}")

    # --- Serving ---

    def start(self, now: float) -> None:
        """Maintain the connection, from the state in which a predecessor left it; for the owner only."""
        self._loop.add_timed(self)
        self._watch.start()
        self._source_address = self._find_route()
        if self.state == LinkState.CONNECTING:
            log.info("connecting", server=self._server)
        if self.state != LinkState.CONNECTED:
            self._begin_lookups(now)
        self._device.begin_links(now)
        self._flush()

    def stop(self) -> None:
        """Stop maintaining the connection; a successor may continue."""
        self._not_warned = None
        self._loop.remove_timed(self)
        self._watch.stop()
        self._resolver.stop()

    def move(self) -> None:
        """Change to the server that the configuration names instead of the one before."""
        endpoint = literal(self._server)
        if endpoint is not None:
            self._device.set_endpoint(self._peer, endpoint, boot_time())
            log.info("the server has another address", server=self._server, endpoint=str(endpoint))
            self._source_address = self._find_route()
            self._flush()
        else:
            self._is_moving = True
            self._begin_lookups(boot_time())

    @property
    def is_reconfigured(self) -> bool:
        """Whether the configuration names another server than the records; it has not been moved to yet."""
        return self._peer.is_reconfigured

    def describe(self, now: float) -> dict[str, Any]:
        """Return what `oxidize status` shows of the connection."""
        peer, counters = self._peer, self._counters
        return {
            "state": self._state_name,
            "server": self._server,
            "outage_secs": self._outage_secs(now),
            "retries": counters[peer.slot + RETRIES] if peer.slot else 0,
            "round_trip_ms": counters[peer.slot + ROUND_TRIP_NS] / 1e6 if peer.slot else 0.0,
            "waiting_packets": len(peer.staged),
        }

    def _outage_secs(self, now: float) -> float | None:
        """Return the duration of the outage or of the attempts to connect so far; None without either."""
        peer, link = self._peer, self._peer.link
        if self.state == LinkState.CONNECTED or link is None:
            return None
        since_ns = self._counters[peer.slot + OUTAGE_SINCE_NS] if peer.slot else 0
        since = since_ns / 1e9 if since_ns else link.began_at
        return max(0.0, now - since) if since else None

    # --- Called by the loop ---

    def next_deadline(self) -> float | None:
        """Return when the next lookup or warning is due; 0.0 once the client has given up."""
        if self._failure is not None:
            return 0.0
        if self._not_warned is None:
            return self._lookup_at
        warning_at = self._down_at + FLAP_SECS_MAX
        return warning_at if self._lookup_at is None else min(warning_at, self._lookup_at)

    def handle_timeout(self, now: float) -> None:
        """Look the server up, warn of an outage that is no flap, or end the process if the client has given up."""
        if self._not_warned is not None and now >= self._down_at + FLAP_SECS_MAX:
            self._warn_of_outage(self._not_warned)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._fail(failure)
        elif self._lookup_at is None or now < self._lookup_at:
            return
        elif not self._needs_lookup:
            self._lookup_at = None
        else:
            self._lookup_at = now + self._lookup_pause
            self._lookup_pause = min(2 * self._lookup_pause, LOOKUP_PAUSE_SECS_MAX)
            self._resolver.ask()

    # --- Events ---

    def _note_link(self, peer: Peer, state: LinkState, reason: str) -> None:
        """Report a state. The device calls this while it works: any reaction comes later, from the loop."""
        name, now = state.name.lower(), boot_time()
        if state == LinkState.CONNECTED:
            report = log.info if self._not_warned is None else log.debug
            if self._not_warned is None and now < self._down_at + FLAP_SECS_MAX:
                self._quiet_until = now + FLAPS_QUIET_SECS
            self._not_warned = None
            report(name, server=self._server, endpoint=str(peer.endpoint), after=reason)
        elif state == LinkState.CONNECTING:
            log.warning("not connected yet; retrying", server=self._server, reason=reason)
        elif state == LinkState.RECONNECTING:
            self._begin_lookups(now)
            self._down_at = now
            if now < self._quiet_until:
                self._not_warned = reason
                log.debug(name, server=self._server, endpoint=str(peer.endpoint), reason=reason)
            else:
                self._warn_of_outage(reason)
        elif state == LinkState.FAILED:
            retries = peer.link.policy.retries_max if peer.link is not None else 0
            self._failure = (
                f"giving up on {self._server}: {reason}; max_reconnect_attempts = {retries} are used up: raise it, or "
                "set it to 0 for no limit"
            )
            log.error(name, server=self._server, reason=reason, retries=retries)
        self.notify_state()

    def _warn_of_outage(self, reason: str) -> None:
        self._not_warned = None
        log.warning("reconnecting", server=self._server, endpoint=str(self._peer.endpoint), reason=reason)

    def _handle_network_change(self, now: float) -> None:
        """Compare the route to the server with the one before, after a change somewhere in the network."""
        before, self._source_address = self._source_address, self._find_route()
        is_up = self.state == LinkState.CONNECTED  # without a route before: the server was heard by the new one
        endpoint = self._peer.endpoint
        if endpoint is None:
            self._begin_lookups(now)
        elif self._source_address is None:
            self._device.on_route_change(now, is_lost=True)
        elif (self._source_address != before and not (is_up and before is None)) or (
            not is_up and now >= self._probed_at + PROBE_PAUSE_SECS
        ):
            self._probed_at = now
            self._device.on_route_change(now)
            if not is_up:
                self._begin_lookups(now)
        self._flush()

    def _find_route(self) -> bytes | None:
        return source_address_for(self._peer.endpoint, self._mark) if self._peer.endpoint is not None else None

    def _begin_lookups(self, now: float) -> None:
        if self._is_name:
            self._lookup_at, self._lookup_pause, self._lookups = now, LOOKUP_PAUSE_SECS, 0

    @property
    def _needs_lookup(self) -> bool:
        return self._is_moving or self.state != LinkState.CONNECTED

    def _note_lookup(self, outcome: Outcome) -> None:
        self._lookups += 1
        if isinstance(outcome, OSError):
            if self._lookups == 1:
                log.warning("the server's name cannot be looked up; retrying", server=self._server, reason=str(outcome))
            return
        if not self._needs_lookup:  # connected since, perhaps at an address that its name does not have
            return
        if self._is_moving:
            self._is_moving = self._peer.is_reconfigured = False
            self._device.endpoints.record_configured()
        current = self._peer.endpoint
        remotes = [endpoint.remote for endpoint in outcome]
        if current is None or current.remote not in remotes:
            self._set_endpoint(outcome[0], is_change=current is not None)
        elif self._lookups > 1 and self.state != LinkState.CONNECTED:
            self._set_endpoint(outcome[(remotes.index(current.remote) + 1) % len(outcome)], is_change=False)

    def _set_endpoint(self, endpoint: Endpoint, *, is_change: bool) -> None:
        if self._peer.endpoint is None or self._peer.endpoint.remote != endpoint.remote:
            report = log.info if is_change else log.debug
            report("the server has another address", server=self._server, endpoint=str(endpoint))
            self._device.set_endpoint(self._peer, endpoint, boot_time())
            self._source_address = self._find_route()
            self._flush()


def _upstream_dns(settings: NodeSettings) -> list[str]:
    """Return this machine's name servers without those that an earlier process may have set for the tunnel."""
    installed = {str(server) for server in settings.name_servers.servers} if settings.name_servers else set()
    return [server for server in read_upstream_dns() if server not in installed]
