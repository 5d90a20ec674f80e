"""Links of a device: noticing that a peer is gone, holding packets back while it is, and coming back.

The rules: an authentic message of the peer means that the link is up; silence and errors only make this side ask, and
have no packet sent again by themselves. A message answers what was sent IN_FLIGHT_SECS_MIN before it in the current
session, and nothing while this side is at a new address without a new session. What decides whether the link is up is
in the peer's counters, so that a successor continues in the middle of an outage. `link_machine` has the states,
`link_policy` the figures.

Source: the paper, sections 6.4 and 6.5, for what is done otherwise; RFC 6298, section 5, for backing off.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import repeat

from oxidize.protocol.constants import NEVER, REKEY_AFTER_TIME
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    LAST_RECEIVED_NS,
    LINK_STATE,
    OUTAGE_BOUNDS_SECS,
    OUTAGE_SINCE_NS,
    OUTAGES_START,
    PROBES_ANSWERED,
    RETRIES,
    ROUND_TRIP_NS,
    SUSPECTED_SINCE_NS,
    DropReason,
    LinkState,
    Total,
)
from oxidize.protocol.link_machine import DEVICE_DOES, Link, LinkDo, LinkEvent, advance
from oxidize.protocol.link_policy import (
    DECAY_SECS,
    ERROR_BURST_SECS,
    ERROR_INTERVAL_SECS,
    IN_FLIGHT_ROUND_TRIPS,
    IN_FLIGHT_SECS_MIN,
    LIVELY_SECS,
    OUTAGE_PROBE_INTERVALS,
    REFUSAL_GAP_SECS,
    REFUSED_PROBE_INTERVALS,
    REPLAY_BURST_PACKETS,
    REPLAY_PAUSE_SECS,
    RESEND_AGE_SECS_MAX,
    UNANSWERED_PROBES_MAX,
)
from oxidize.protocol.peer import Peer, PeerKeypair
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.staging import Staging
from oxidize.protocol.timers import NANOSECOND, prompt_secs, shortest_retry_secs

ToDo = Sequence[LinkDo]  # what is left for the device to do, in order


class Links:
    """The links of a device. They send nothing: a method returns what is left for the device to do, in order.

    A peer is passed with its link. The device schedules the peer's timers after each call.
    """

    def __init__(self, table: SessionTable, staging: Staging) -> None:
        self._table = table
        self._counters = table.counters
        self._staging = staging
        # Called with a peer, the new state of its link, and the reason; it must not call the device.
        self.notify: Callable[[Peer, LinkState, str], None] = lambda *_: None

    def state(self, peer: Peer) -> LinkState:
        """Return the state of a link."""
        return LinkState(self._counters[peer.slot + LINK_STATE]) if peer.slot else LinkState.CONNECTING

    def holds_back(self, peer: Peer, link: Link) -> bool:
        """Return whether packets to a peer are staged although there may be a session."""
        return self._counters[peer.slot + LINK_STATE] != LinkState.CONNECTED or link.replay_at < NEVER

    # --- Events ---

    def begin(self, peer: Peer, link: Link, now: float) -> ToDo:
        """Own a link from now on, in the state in which a predecessor left it."""
        self._table.allocate_slot(peer)
        counters, slot = self._counters, peer.slot
        link.began_at = now
        if counters[slot + FIRST_UNANSWERED_NS]:  # this side was silent while no process listened
            counters[slot + FIRST_UNANSWERED_NS] = int(now * 1e9)
        link.probe_at = NEVER  # it may date from an outage that another generation has ended
        event = LinkEvent.BEGIN_IN_OUTAGE if counters[slot + OUTAGE_SINCE_NS] else LinkEvent.BEGIN
        return self._handle(peer, link, event if peer.last_handshake_unix else LinkEvent.BEGIN_NEW, now)

    def on_sent(self, link: Link, packets: Sequence[bytes | memoryview], now: float) -> None:
        """Remember packets that were sealed, so that they can be sent again."""
        if not link.policy.resend:
            return
        copies = list(map(bytes, packets))
        if not link.first_sent:
            link.unanswered.extend(zip(repeat(now), copies))
        else:
            link.unanswered.extend((link.first_sent.pop(packet, now), packet) for packet in copies)

    def on_received(self, peer: Peer, link: Link, keypair: PeerKeypair, first_unanswered_ns: int, now: float) -> ToDo:
        """Handle an authentic message in a session; `first_unanswered_ns`: the peer's counter before it came."""
        counters, slot = self._counters, peer.slot
        if keypair is peer.current and not link.has_new_route:
            self._forget_answered(peer, link, now)
            link.assume_lost, link.asked_at = False, NEVER
        link.unanswered_probes = 0
        link.doubt_at, link.is_doubted = NEVER, False
        counters[slot + SUSPECTED_SINCE_NS] = 0
        if counters[slot + PROBES_ANSWERED]:
            self._decay(peer, link, first_unanswered_ns * NANOSECOND, now)
        if counters[slot + LINK_STATE] == LinkState.CONNECTED:  # as nearly always: (CONNECTED, RECEIVED) does nothing
            return ()
        return self._handle(peer, link, LinkEvent.RECEIVED, now)

    def on_session(self, peer: Peer, link: Link, now: float) -> None:
        """Handle a new session: what was lost in the one before it goes before the staged packets."""
        counters, slot = self._counters, peer.slot
        was_lost = self._was_lost(peer, link)
        self._handle(peer, link, LinkEvent.SESSION_REPLACED if was_lost else LinkEvent.SESSION, now)
        if counters[slot + SUSPECTED_SINCE_NS]:
            counters[slot + PROBES_ANSWERED] += 1
            link.decayed_at = now  # a late answer may seem prompt after a packet sent again
        self._forget_answered(peer, link, now)
        link.unanswered_probes, link.has_new_route = 0, False
        link.doubt_at, link.is_doubted = NEVER, False
        if not peer.superseded:
            link.asked_at = NEVER
        # If the peer answers a later initiation too, it has lost this session, with what was sent into it until then.
        link.assume_lost = bool(peer.superseded)
        counters[slot + SUSPECTED_SINCE_NS] = counters[slot + RETRIES] = link.retries_before = 0

    def on_silence(self, peer: Peer, link: Link, now: float) -> None:
        """Handle silence since the first unanswered packet: a handshake begins because of it.

        Where loss is assumed already, it stays so: an answer to a superseded initiation may be on its way.
        """
        counters, slot = self._counters, peer.slot
        quiet_ns = counters[slot + FIRST_UNANSWERED_NS] - counters[slot + LAST_RECEIVED_NS]
        link.assume_lost |= not counters[slot + PROBES_ANSWERED] and quiet_ns * NANOSECOND <= LIVELY_SECS
        counters[slot + SUSPECTED_SINCE_NS] = int(now * 1e9)
        link.asked_at = min(link.asked_at, now)

    def on_unanswered(self, peer: Peer, link: Link, now: float) -> ToDo:
        """Handle an initiation that was not answered in time."""
        link.unanswered_probes += 1
        is_up = self.state(peer) == LinkState.CONNECTED
        beyond = link.unanswered_probes - UNANSWERED_PROBES_MAX
        # Beyond it in CONNECTED: a predecessor that thawed counts from before its successor's session.
        if beyond == 0 or (is_up and (beyond > 0 or link.is_doubted)):
            self._handle(peer, link, LinkEvent.SILENT, now)
            if is_up and now < link.refused_at + REFUSAL_GAP_SECS:
                self._handle(peer, link, LinkEvent.REFUSED, now)
        is_exhausted = 0 < link.policy.retries_max <= self._counters[peer.slot + RETRIES]
        return self._handle(peer, link, LinkEvent.EXHAUSTED if is_exhausted else LinkEvent.UNANSWERED, now)

    def on_unreachable(self, peer: Peer, link: Link, now: float, *, refused: bool) -> ToDo:
        """Handle an error of the network about a datagram to the peer; refused: its host says that the port is closed.

        An error is not authenticated, and so it only makes this side ask, unless the peer is heard first.
        """
        link.last_error = "the port is closed" if refused else "the host is unreachable"
        if refused:
            link.refused_at = now
        if self.state(peer) == LinkState.CONNECTED:
            free_at = max(link.errors_free_at, now - ERROR_BURST_SECS)
            if free_at > now:
                return ()
            link.errors_free_at = free_at + ERROR_INTERVAL_SECS
        return self._handle(peer, link, LinkEvent.REFUSED if refused else LinkEvent.UNREACHABLE, now)

    def on_route_change(self, peer: Peer, link: Link, now: float, *, is_lost: bool) -> ToDo:
        """Handle a change of the route to a peer: probe it at once, unless no route is left."""
        if is_lost:
            link.last_error = "the host is unreachable"
            return self._handle(peer, link, LinkEvent.ROUTE_LOST, now)
        self._table.clear_source(peer, now)
        return self._handle(peer, link, LinkEvent.ROUTE_CHANGED, now)

    def on_timers(self, peer: Peer, link: Link, now: float) -> ToDo:
        """Handle the timers of a link that have ended."""
        to_do: list[LinkDo] = []
        if link.probe_at <= now:
            to_do += self._probe(peer, link, now)
        if link.doubt_at <= now:
            link.doubt_at = NEVER
            to_do += self._handle(peer, link, LinkEvent.DOUBTED, now)
        if link.replay_at <= now:
            to_do.append(LinkDo.SEND_STAGED)
        if link.refusals_end_at <= now:
            link.refusals_end_at = NEVER
            to_do += self._handle(peer, link, LinkEvent.REFUSALS_ENDED, now)
        return to_do

    def _probe(self, peer: Peer, link: Link, now: float) -> ToDo:
        if not link.is_refused and not peer.can_send(now):
            link.probe_at = NEVER  # the session has expired; a refusal starts the probes again
            return ()
        since_ns = self._counters[peer.slot + OUTAGE_SINCE_NS]
        down_secs = now - (since_ns * NANOSECOND if since_ns else link.began_at)
        intervals = REFUSED_PROBE_INTERVALS if link.is_refused else OUTAGE_PROBE_INTERVALS
        link.probe_at = now + next(interval for age_max, interval in intervals if down_secs < age_max)
        return (LinkDo.INITIATE_BETWEEN if link.is_refused else LinkDo.SEND_KEEPALIVE,)

    # --- Staged packets ---

    def take_burst(self, peer: Peer, link: Link, now: float) -> list[bytes]:
        """Return as many of the staged packets as may leave at once; `on_timers` sends the rest."""
        if link.replay_at == NEVER:
            link.replay_left = len(peer.staged)
        link.replay_left -= REPLAY_BURST_PACKETS
        if link.replay_left > 0:
            link.replay_at = now + REPLAY_PAUSE_SECS
            return self._staging.take(peer, REPLAY_BURST_PACKETS)
        link.replay_at = NEVER
        return self._staging.take(peer)  # including packets staged since

    def _stage_unanswered(self, peer: Peer, link: Link, now: float) -> None:
        oldest_at = min(link.asked_at, now) - RESEND_AGE_SECS_MAX
        again = [(packet, sent_at) for sent_at, packet in link.unanswered if sent_at >= oldest_at]
        link.unanswered.clear()
        link.first_sent = dict(again)
        if again:
            self._table.count(Total.RESENT_PACKETS, len(again))
            self._staging.add_older(peer, [packet for packet, _ in again])

    def _forget_answered(self, peer: Peer, link: Link, now: float) -> None:
        """Forget packets that the peer has received and answered before it sent the message that has just come.

        Younger ones may be on their way to a peer that has ended since, or in its queue, or their answers may have gone
        to an address that this side no longer has.
        """
        round_trip_secs = self._counters[peer.slot + ROUND_TRIP_NS] * NANOSECOND
        horizon = now - max(IN_FLIGHT_SECS_MIN, IN_FLIGHT_ROUND_TRIPS * round_trip_secs)
        unanswered = link.unanswered
        if unanswered and unanswered[-1][0] <= horizon:
            unanswered.clear()
        while unanswered and unanswered[0][0] <= horizon:
            unanswered.popleft()

    # --- State transitions ---

    def _handle(self, peer: Peer, link: Link, event: LinkEvent, now: float) -> ToDo:
        """Pass an event through the table, and carry out what sends nothing; return what is left for the device."""
        self._table.allocate_slot(peer)  # an error or a route change may come before `begin`
        counters, slot = self._counters, peer.slot
        since_ns = counters[slot + OUTAGE_SINCE_NS]
        for do in (to_do := advance(counters, slot, event, now)):
            match do:
                case LinkDo.START_OUTAGE:
                    counters[slot + RETRIES] = counters[slot + SUSPECTED_SINCE_NS] = link.retries_before = 0
                    self._table.count(Total.OUTAGES)
                    link.asked_at = min(link.asked_at, now)
                    self._stage_unanswered(peer, link, now)
                    link.has_new_route = False
                    link.probe_at, link.replay_at = now + OUTAGE_PROBE_INTERVALS[0][1], NEVER
                    link.doubt_at, link.is_doubted = NEVER, False
                case LinkDo.END_OUTAGE:
                    link.probe_at = link.refusals_end_at = NEVER
                    link.last_error = ""
                    self._count_outage(since_ns, now)
                case LinkDo.REPORT:
                    state = self.state(peer)
                    is_up = state == LinkState.CONNECTED
                    self.notify(peer, state, _reason_up(event, since_ns, now) if is_up else _reason_down(peer, link))
                case LinkDo.STAGE_UNANSWERED:
                    self._stage_unanswered(peer, link, now)
                case LinkDo.ASSUME_LOST:
                    link.assume_lost = link.has_new_route = True
                    link.asked_at = min(link.asked_at, now)
                case LinkDo.CLEAR_RETRIES:
                    counters[slot + RETRIES] = link.retries_before = 0
                case LinkDo.RETRY_SOON:
                    _retry_soon(peer, link, now)
                case LinkDo.DOUBT:
                    self._doubt(peer, link, now, refused=event is LinkEvent.REFUSED)
                case LinkDo.PROBE_NOW:
                    link.probe_at = now
                case LinkDo.PROBE_REFUSED:
                    link.refusals_end_at = now + REFUSAL_GAP_SECS
                    link.probe_at = min(link.probe_at, now + REFUSED_PROBE_INTERVALS[0][1])
                case LinkDo.GIVE_UP:
                    self._give_up(peer, link)
        return [do for do in to_do if do in DEVICE_DOES]

    def _doubt(self, peer: Peer, link: Link, now: float, *, refused: bool) -> None:
        """Ask soon, because of an error.

        A port that closes and opens again in the meantime takes no session along, and no packet of the time in between.
        That is assumed only where the answers have just stopped: an error can be forged, and then nothing is sent again
        that the peer, which has been answering, goes on to answer.
        """
        doubt_secs = max(link.policy.retry_secs, shortest_retry_secs(peer, self._counters))
        link.doubt_at, link.is_doubted = min(link.doubt_at, now + doubt_secs), True
        link.asked_at = min(link.asked_at, now)
        first = self._counters[peer.slot + FIRST_UNANSWERED_NS] * NANOSECOND
        if refused and first and now - first <= prompt_secs(peer, self._counters):
            link.assume_lost = True

    def _count_outage(self, since_ns: int, now: float) -> None:
        if since_ns:
            lasted_ns = max(0, int(now * 1e9) - since_ns)
            self._table.count(Total.RECONNECTS)
            self._table.count(Total.OUTAGE_NS_SUM, lasted_ns)
            self._counters[OUTAGES_START + bisect_left(OUTAGE_BOUNDS_SECS, lasted_ns * NANOSECOND)] += 1

    def _give_up(self, peer: Peer, link: Link) -> None:
        link.probe_at = link.refusals_end_at = NEVER
        self._table.end_handshake(peer)
        peer.handshake_wanted_at = NEVER
        if dropped := len(self._staging.take(peer)):
            self._table.drop(DropReason.HANDSHAKE_TIMED_OUT, dropped)

    def _was_lost(self, peer: Peer, link: Link) -> bool:
        """Return whether the peer had lost the session before the new one.

        If this side asked for the new one: whether it had reason to. If the peer did: whether it was too early for an
        orderly one.
        """
        if peer.current is None or peer.previous is None:
            return False
        if peer.current.state.is_initiator:
            return link.assume_lost
        before, made_at = peer.previous.state, peer.current.state.created_at
        return before.is_initiator or made_at - before.created_at < REKEY_AFTER_TIME

    def _decay(self, peer: Peer, link: Link, first: float, now: float) -> None:
        """Let the next probe come sooner again if what was sent first has been answered in good time."""
        if first and now - first <= prompt_secs(peer, self._counters) and now >= link.decayed_at + DECAY_SECS:
            link.decayed_at = now
            self._counters[peer.slot + PROBES_ANSWERED] -= 1


def _retry_soon(peer: Peer, link: Link, now: float) -> None:
    if peer.handshake is None:
        peer.handshake_wanted_at = now + link.policy.retry_secs


def _reason_up(event: LinkEvent, since_ns: int, now: float) -> str:
    """Return what brought a link up, and for how long it was down, if it was."""
    reason = "a message" if event is LinkEvent.RECEIVED else "a handshake"
    return f"{max(0.0, now - since_ns * NANOSECOND):.3f} s, {reason}" if since_ns else reason


def _reason_down(peer: Peer, link: Link) -> str:
    """Return why a link is not up, as far as this side knows."""
    if peer.endpoint is None:
        return "the name does not resolve"
    if link.last_error or peer.last_handshake_unix:
        return link.last_error or "no answer"
    return "no answer: is the server up, and does each side have the other's public key?"
