"""The metrics for Prometheus, computed from the device's counters at every scrape.

The rule: nothing is counted here. Totals are read from the counters, which outlive the process, so they continue across
generations; live values are queried. Names follow the conventions of Prometheus: base units, the unit as a suffix,
`_total` for counters that only grow. Sources: prometheus.io/docs/practices/naming; docs/concepts/metric_types.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from oxidize.protocol.counters import (
    DROPS_START,
    OUTAGE_BOUNDS_SECS,
    OUTAGES_START,
    Counters,
    DropReason,
    LinkState,
    Total,
)

NS_PER_SEC = 1_000_000_000

STATES = ("starting", "healthy", "degraded", "draining")

# Counters without labels: the index, the name without `_total`, the help text.
_COUNTERS = (
    (Total.RECEIVED_DATAGRAMS, "oxidize_received_datagrams", "UDP datagrams received."),
    (Total.RECEIVED_BYTES, "oxidize_received_bytes", "Bytes of UDP payload received."),
    (Total.SENT_DATAGRAMS, "oxidize_sent_datagrams", "UDP datagrams sent."),
    (Total.SENT_BYTES, "oxidize_sent_bytes", "Bytes of UDP payload sent."),
    (Total.RECEIVED_PACKETS, "oxidize_tunnel_received_packets", "Inner packets that came through tunnels."),
    (Total.RECEIVED_PACKET_BYTES, "oxidize_tunnel_received_bytes", "Bytes of inner packets that came through tunnels."),
    (Total.SENT_PACKETS, "oxidize_tunnel_sent_packets", "Inner packets sent into tunnels."),
    (Total.SENT_PACKET_BYTES, "oxidize_tunnel_sent_bytes", "Bytes of inner packets sent into tunnels."),
    (Total.RECEIVED_KEEPALIVES, "oxidize_received_keepalives", "Authenticated keepalives received."),
    (Total.SENT_KEEPALIVES, "oxidize_sent_keepalives", "Keepalives sent."),
    (Total.INITIATIONS_SENT, "oxidize_initiations_sent", "Handshake initiations sent, retries included."),
    (Total.INITIATIONS_RECEIVED, "oxidize_initiations_received", "Authenticated handshake initiations received."),
    (Total.COOKIE_REPLIES_SENT, "oxidize_cookie_replies_sent", "Cookie replies sent because of load."),
    (Total.COOKIE_REPLIES_RECEIVED, "oxidize_cookie_replies_received", "Authenticated cookie replies received."),
    (Total.ENDPOINT_MOVES, "oxidize_endpoint_moves", "Changes of a peer's endpoint."),
    (
        Total.UNKNOWN_INDEX_INITIATIONS,
        "oxidize_unknown_index_initiations",
        "Handshakes started because a peer used a session that this server has lost.",
    ),
    (Total.BUFFERED_PACKETS, "oxidize_buffered_packets", "Inner packets staged because there was no session."),
    (Total.REPLAYED_PACKETS, "oxidize_replayed_packets", "Staged inner packets that were sent."),
    (
        Total.RESENT_PACKETS,
        "oxidize_resent_packets",
        "Staged inner packets that had been sent before, in a session that turned out to be dead.",
    ),
    (Total.OUTAGES, "oxidize_outages", "Outages: times that the client could not reach its server."),
    (Total.RECONNECTS, "oxidize_reconnects", "Outages that ended with a reconnection."),
    (
        Total.RESTORES_AFTER_CRASH,
        "oxidize_restores_after_crash",
        "Generations that restored the state of a predecessor that had ended.",
    ),
    (Total.SESSIONS_RESTORED, "oxidize_sessions_restored", "Sessions that a generation restored from its predecessor."),
    (Total.SESSIONS_REFUSED, "oxidize_sessions_refused", "Sessions that a generation could not restore."),
    (
        Total.CHANGES_NOT_RECORDED,
        "oxidize_changes_not_recorded",
        "Changes that the journal could not take: it is full, or the kernel refused the memory.",
    ),
    (
        Total.SHED_DATAGRAMS,
        "oxidize_shed_datagrams",
        "Datagrams of floods, or over a session's fair share, that the kernel dropped at this server's request, about.",
    ),
    (
        Total.MULTICAST_PACKETS,
        "oxidize_multicast_packets",
        "Multicast and broadcast of this host on the tunnel that no peer has among its allowed IPs; no drops.",
    ),
    (
        Total.UNREACHABLES_SENT,
        "oxidize_unreachables_sent",
        "ICMP errors to senders of inner packets that no peer gets: unreachable.",
    ),
    (Total.ERRORS_LOGGED, "oxidize_logged_errors", "Lines logged as errors by generations that served."),
    (
        Total.NETWORK_REPAIRS,
        "oxidize_network_repairs",
        "Times that a part of the host's network was found changed by another program, and put back.",
    ),
    (
        Total.LOG_LINES_LOST,
        "oxidize_lost_log_lines",
        "Lines that are missing in the log: its reader did not read, or it was full.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The values that only the running process has; each field is called once for each scrape.

    connections_active: peers with a live session. peers: configured peers. kernel_drops: datagrams that the kernel
    dropped since the UDP socket was made, because its queue was full or by its filter (socket(7) SO_MEMINFO).
    generation: its number. state: one of STATES. link: the state of a client's link; None for a server.
    network_missing: parts of the host's network that are not as configured, and could not be put back. peers_left_out:
    the number of peers that have no metrics of their own. waiting_for_name: of the peers whose endpoint is a name, by
    the peer's name: whether it waits for the answer.
    """

    connections_active: Callable[[], int]
    peers: Callable[[], int]
    kernel_drops: Callable[[], int]
    generation: Callable[[], int]
    state: Callable[[], str]
    link: Callable[[], LinkState | None] = lambda: None
    network_missing: Callable[[], int] = lambda: 0
    peers_left_out: Callable[[], int] = lambda: 0
    waiting_for_name: Callable[[], Mapping[str, bool]] = dict


class Metrics:
    """Renders all metrics: from the counters, from `live`, and of the process from /proc."""

    def __init__(self, counters: Counters, live: Live, *, release: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_CountersCollector(counters, live, release))
        ProcessCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """Return the text of one scrape and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _CountersCollector(Collector):
    def __init__(self, counters: Counters, live: Live, release: str) -> None:
        self._counters = counters
        self._live = live
        self._release = release

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its current value."""
        yield from self._collect_live()
        for word, name, text in _COUNTERS:
            yield CounterMetricFamily(name, text, value=self._counters[word])
        yield self._labelled(
            "oxidize_handshakes",
            "Handshakes completed, by this process's role.",
            "role",
            {"initiator": Total.HANDSHAKES_INITIATOR, "responder": Total.HANDSHAKES_RESPONDER},
        )
        yield self._labelled(
            "oxidize_dropped_packets",
            "Datagrams and packets dropped, by reason.",
            "reason",
            {reason.name.lower(): DROPS_START + reason for reason in DropReason},
        )
        yield from self._collect_takeovers()
        if (link := self._live.link()) is not None:
            yield from self._collect_link(link)

    def _collect_live(self) -> Iterator[Metric]:
        live = self._live
        yield GaugeMetricFamily(
            "oxidize_connections_active", "Peers with a live session.", value=live.connections_active()
        )
        yield GaugeMetricFamily("oxidize_peers", "Configured peers.", value=live.peers())
        yield GaugeMetricFamily(
            "oxidize_peers_left_out",
            "Peers that have no metrics of their own, for there are more than metrics_peers.",
            value=live.peers_left_out(),
        )
        yield GaugeMetricFamily(
            "oxidize_network_missing",
            "Parts of the host's network that are not as configured, and could not be put back.",
            value=live.network_missing(),
        )
        yield CounterMetricFamily(
            "oxidize_socket_drops",
            "Datagrams that the kernel dropped: the queue of the UDP socket was full, or they were shed.",
            value=live.kernel_drops(),
        )
        yield GaugeMetricFamily(
            "oxidize_generation",
            "The number of this generation; it grows with every replacement.",
            value=live.generation(),
        )
        waiting = GaugeMetricFamily(
            "oxidize_peer_waiting_for_name",
            "1 for a peer whose endpoint is a name that is looked up without an answer so far, else 0.",
            labels=["peer"],
        )
        for peer, waits in live.waiting_for_name().items():
            waiting.add_metric([peer], float(waits))
        if waiting.samples:
            yield waiting
        state = GaugeMetricFamily("oxidize_state", "1 for the current state of the process.", labels=["state"])
        now = live.state()
        for name in STATES:
            state.add_metric([name], float(name == now))
        yield state
        yield GaugeMetricFamily(
            "oxidize_starts_in_a_row",
            "Starts from a stored state since the last generation that lasted: more than a few are a crash loop.",
            value=self._counters[Total.STARTS_IN_A_ROW],
        )
        info = GaugeMetricFamily("oxidize_info", "Always 1; the label is the release.", labels=["release"])
        info.add_metric([self._release], 1.0)
        yield info

    def _collect_takeovers(self) -> Iterator[Metric]:
        counters = self._counters
        yield self._labelled(
            "oxidize_takeovers",
            "Takeovers, by result; after a failure the predecessor continues to serve.",
            "result",
            {"success": Total.TAKEOVERS_SUCCEEDED, "failure": Total.TAKEOVERS_FAILED},
        )
        yield SummaryMetricFamily(
            "oxidize_takeover_blackout_seconds",
            "Time without a reader of the sockets, over all successful takeovers.",
            count_value=counters[Total.TAKEOVERS_SUCCEEDED],
            sum_value=counters[Total.BLACKOUT_NS_SUM] / NS_PER_SEC,
        )
        yield GaugeMetricFamily(
            "oxidize_takeover_blackout_last_seconds",
            "Time without a reader of the sockets in the latest takeover.",
            value=counters[Total.BLACKOUT_NS_LAST] / NS_PER_SEC,
        )
        yield GaugeMetricFamily(
            "oxidize_takeover_blackout_max_seconds",
            "The longest time without a reader of the sockets in any takeover.",
            value=counters[Total.BLACKOUT_NS_MAX] / NS_PER_SEC,
        )

    def _collect_link(self, now: LinkState) -> Iterator[Metric]:
        state = GaugeMetricFamily("oxidize_connection_state", "1 for the state of the client's link.", labels=["state"])
        for link_state in LinkState:
            state.add_metric([link_state.name.lower()], float(link_state is now))
        yield state
        total, buckets = 0, []
        for number, bound in enumerate([*map(str, OUTAGE_BOUNDS_SECS), "+Inf"]):
            total += self._counters[OUTAGES_START + number]
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(
            "oxidize_outage_seconds",
            "Length of the outages that have ended.",
            buckets=buckets,
            sum_value=self._counters[Total.OUTAGE_NS_SUM] / NS_PER_SEC,
        )

    def _labelled(self, name: str, text: str, label: str, counters: dict[str, int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[label])
        for value, word in counters.items():
            family.add_metric([value], self._counters[word])
        return family
