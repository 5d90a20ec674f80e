"""A client's connection: what the outside tells about it goes in, what becomes of it is logged and acted on.

The rule: the device decides whether the link is up; this gives it what it cannot know by itself - another way to the
server, another address of it - and tells the operator of each state once. (Errors of the network come from the socket,
by way of `data_path`.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from oxidize import logs
from oxidize.client.network_watch import NetworkWatch, source_address_for
from oxidize.client.resolver import Lookup, Resolver, look_up_past_tunnel, read_upstream_dns
from oxidize.net.event_loop import Loop, boot_time
from oxidize.net.resolve import literal, look_up
from oxidize.protocol.counters import OUTAGE_SINCE_NS, RETRIES, ROUND_TRIP_NS, Counters, LinkState
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.service_manager import notify
from oxidize.settings import NodeSettings

LOOKUP_PAUSE_SECS = 1.0  # between the first two lookups of an outage; doubled with each
LOOKUP_PAUSE_SECS_MAX = 30.0
HURRY_SECS = 1.0  # between two attempts for no other reason than that something in the network has changed

log = logs.get(__name__)


class Connection:
    """The link of a client to its one server.

    flush: sends what the device has queued. fail: ends the process, with the reason. upstream_dns: the name servers of
    this machine without the tunnel, where a predecessor knew them; empty to read them from the system.
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
        self._watch = NetworkWatch(loop, self._look)
        self._mark = settings.fwmark if settings.default_routes else None
        self.upstream_dns = upstream_dns or _upstream_dns(settings)
        lookup: Lookup = look_up
        if self._mark is not None:
            lookup = partial(look_up_past_tunnel, mark=self._mark, upstream_dns=self.upstream_dns)
        self._resolver = Resolver(server, lookup, loop, self._note_lookup)
        self._is_name = literal(server) is None
        self._way: bytes | None = None
        self._lookup_at: float | None = None
        self._lookup_pause = LOOKUP_PAUSE_SECS
        self._lookups = 0  # in this outage
        self._is_moving = False  # the configuration names another server, which is still to be found
        self._failure: str | None = None
        self._hurried_at = -inf
        device.watch_links(self._note_link)

    @property
    def state(self) -> LinkState:
        """Where the connection stands."""
        return self._device.link_state(self._peer) or LinkState.CONNECTING

    # --- Serving ---

    def start(self, now: float) -> None:
        """Keep the connection up from now on, wherever a predecessor left it; for the owner."""
        self._loop.add_timed(self)
        self._watch.start()
        self._way = self._way_now()
        if self.state == LinkState.CONNECTING:
            log.info("connecting", server=self._server)
        if self.state != LinkState.CONNECTED:
            self._begin_lookups(now)
        self._device.begin_links(now)
        self._flush()

    def stop(self) -> None:
        """Leave the connection to somebody else, or to nobody."""
        self._loop.remove_timed(self)
        self._watch.stop()
        self._resolver.stop()

    def move(self) -> None:
        """Look the server up anew: the configuration names another one."""
        endpoint = literal(self._server)
        if endpoint is not None:
            self._place(endpoint, is_news=True)
        else:
            self._is_moving = True
            self._begin_lookups(boot_time())

    def describe(self, now: float) -> dict[str, Any]:
        """Return what `oxidize status` shows of it."""
        peer, counters = self._peer, self._counters
        return {
            "state": self.state.name.lower(),
            "server": self._server,
            "outage_secs": self._outage_secs(now),
            "retries": counters[peer.slot + RETRIES] if peer.slot else 0,
            "round_trip_ms": counters[peer.slot + ROUND_TRIP_NS] / 1e6 if peer.slot else 0.0,
            "waiting_packets": len(peer.staged),
        }

    def _outage_secs(self, now: float) -> float | None:
        """Return for how long there has been an outage, or attempts to connect; None where there is neither."""
        peer, link = self._peer, self._peer.link
        if self.state == LinkState.CONNECTED or link is None:
            return None
        since_ns = self._counters[peer.slot + OUTAGE_SINCE_NS] if peer.slot else 0
        since = since_ns / 1e9 if since_ns else link.began_at
        return max(0.0, now - since) if since else None

    # --- What the loop asks for ---

    def next_deadline(self) -> float | None:
        """Return when the next lookup is due, or that the end is."""
        return 0.0 if self._failure is not None else self._lookup_at

    def handle_timeout(self, now: float) -> None:
        """Look the server up, or end."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._fail(failure)
        elif self._lookup_at is None or now < self._lookup_at:
            return
        elif not self._is_looked_for:
            self._lookup_at = None
        else:
            self._lookup_at = now + self._lookup_pause
            self._lookup_pause = min(2 * self._lookup_pause, LOOKUP_PAUSE_SECS_MAX)
            self._resolver.ask()

    # --- What happens ---

    def _note_link(self, peer: Peer, state: LinkState, reason: str) -> None:
        """Tell of a state. The device is in the middle of its work: what it is told of comes later, from the loop."""
        name = state.name.lower()
        if state == LinkState.CONNECTED:
            log.info(name, server=self._server, endpoint=str(peer.endpoint), after=reason)
        elif state == LinkState.CONNECTING:
            log.warning("not connected yet: tries again", server=self._server, reason=reason)
        elif state == LinkState.RECONNECTING:
            self._begin_lookups(boot_time())
            log.warning(name, server=self._server, endpoint=str(peer.endpoint), reason=reason)
        elif state == LinkState.FAILED:
            retries = peer.link.policy.retries_max if peer.link is not None else 0
            self._failure = (
                f"gives up {self._server}: {reason}; max_reconnect_attempts = {retries} is all that was allowed: raise "
                "it, or set it to 0 to go on for ever"
            )
            log.error(name, server=self._server, reason=reason, retries=retries)
        notify.notify(f"STATUS={name}: {self._server}")

    def _look(self, now: float) -> None:
        """Compare the way to the server with the one before: something in the network has changed."""
        before, self._way = self._way, self._way_now()
        endpoint = self._peer.endpoint
        if endpoint is None:
            self._begin_lookups(now)
        elif self._way is None:
            self._device.note_unreachable(endpoint.remote, now, refused=False)
        elif self._way != before or (self.state != LinkState.CONNECTED and now >= self._hurried_at + HURRY_SECS):
            self._hurried_at = now
            self._device.note_network_change(now)
            if self.state != LinkState.CONNECTED:
                self._begin_lookups(now)
        self._flush()

    def _way_now(self) -> bytes | None:
        return source_address_for(self._peer.endpoint, self._mark) if self._peer.endpoint is not None else None

    def _begin_lookups(self, now: float) -> None:
        if self._is_name:
            self._lookup_at, self._lookup_pause, self._lookups = now, LOOKUP_PAUSE_SECS, 0

    @property
    def _is_looked_for(self) -> bool:
        return self._is_moving or self.state != LinkState.CONNECTED

    def _note_lookup(self, outcome: list[Endpoint] | OSError) -> None:
        self._lookups += 1
        if isinstance(outcome, OSError):
            if self._lookups == 1:
                log.warning(
                    "the server's name cannot be looked up: tries again", server=self._server, reason=str(outcome)
                )
            return
        if not self._is_looked_for:  # it was found in another way meanwhile, perhaps where its name does not say
            return
        self._is_moving = False
        current = self._peer.endpoint
        remotes = [endpoint.remote for endpoint in outcome]
        if current is None or current.remote not in remotes:
            self._place(outcome[0], is_news=current is not None)
        elif self._lookups > 1 and self.state != LinkState.CONNECTED:
            self._place(outcome[(remotes.index(current.remote) + 1) % len(outcome)], is_news=False)

    def _place(self, endpoint: Endpoint, *, is_news: bool) -> None:
        if self._peer.endpoint is None or self._peer.endpoint.remote != endpoint.remote:
            tell = log.info if is_news else log.debug
            tell("the server is to be found elsewhere", server=self._server, endpoint=str(endpoint))
            self._device.set_endpoint(self._peer, endpoint, boot_time())
            self._way = self._way_now()
            self._flush()


def _upstream_dns(settings: NodeSettings) -> list[str]:
    """Return this machine's name servers, less those that a process before us may have set for the tunnel."""
    ours = {str(server) for server in settings.name_servers.servers} if settings.name_servers is not None else set()
    return [server for server in read_upstream_dns() if server not in ours]
