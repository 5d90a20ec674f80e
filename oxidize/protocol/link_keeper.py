"""Keeping links up: noticing that a peer is gone, holding packets back meanwhile, and coming back.

The rules: whatever is heard of the peer, if authentic, means that the link is up; silence or an error means nothing but
that we ask. What decides stands in the peer's counters, so that a successor goes on in the middle of an outage.
The figures are those of `link`.

Source: the paper, sections 6.4 and 6.5, for what is done otherwise; RFC 6298, section 5, for backing off.
"""

from bisect import bisect_left
from collections.abc import Callable
from itertools import repeat
from math import inf

from oxidize.protocol.constants import REKEY_AFTER_TIME
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
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.handshaker import Handshaker
from oxidize.protocol.link import (
    EASE_SECS,
    ERROR_BURST_SECS,
    ERROR_INTERVAL_SECS,
    INITIATION_SPACING_SECS,
    KNOCK_PACES,
    LIVELY_SECS,
    ON_ITS_WAY_ROUND_TRIPS,
    REFUSAL_GAP_SECS,
    REFUSED_KNOCK_PACES,
    REPLAY_BURST_PACKETS,
    REPLAY_PAUSE_SECS,
    RESEND_AGE_SECS_MAX,
    SILENT_INITIATIONS_MAX,
    Link,
)
from oxidize.protocol.peer import Peer
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.staging import Staging
from oxidize.protocol.timers import NANOSECOND, prompt_secs


class LinkKeeper:
    """Keeps the links of a device; every method but `holds_back` and `state` is for peers that have one.

    release: called with a peer whose staged packets may leave. send_keepalive: sends one, if there is a session to send
    it in, and tells whether it did. on_timers: called with a peer whose timers changed.
    """

    def __init__(
        self,
        table: SessionTable,
        handshaker: Handshaker,
        staging: Staging,
        release: Callable[[Peer, float], object],
        send_keepalive: Callable[[Peer, float], bool],
        on_timers: Callable[[Peer], None],
    ) -> None:
        self._table = table
        self._counters = table.counters
        self._handshaker = handshaker
        self._staging = staging
        self._release = release
        self._send_keepalive = send_keepalive
        self._on_timers = on_timers
        # Called with a peer, the state that its link is in from now on, and why; it must not call the device.
        self.notify: Callable[[Peer, LinkState, str], None] = lambda *_: None

    def state(self, peer: Peer) -> LinkState:
        """Return where a link stands."""
        return LinkState(self._counters[peer.slot + LINK_STATE]) if peer.slot else LinkState.CONNECTING

    def holds_back(self, peer: Peer) -> bool:
        """Tell whether packets to a peer are to wait although there may be a session."""
        link = peer.link
        if link is None:
            return False
        return self._counters[peer.slot + LINK_STATE] != LinkState.CONNECTED or link.replay_at < inf

    # --- What happens on a link ---

    def begin(self, peer: Peer, now: float) -> None:
        """Keep a link up from now on, wherever a predecessor left it."""
        counters, link = self._counters, peer.link
        if link is None:
            return
        self._table.allocate_slot(peer)
        link.began_at = now
        if counters[peer.slot + FIRST_UNANSWERED_NS]:  # while nobody was here to listen, the silence was ours
            counters[peer.slot + FIRST_UNANSWERED_NS] = int(now * 1e9)
        since = counters[peer.slot + OUTAGE_SINCE_NS]
        if counters[peer.slot + LINK_STATE] == LinkState.FAILED:  # and it was started again
            counters[peer.slot + LINK_STATE] = LinkState.RECONNECTING if since else LinkState.CONNECTING
            counters[peer.slot + RETRIES] = link.retries_before = 0
        link.knock_at = inf  # what we had in mind in an outage that another generation has ended
        if counters[peer.slot + LINK_STATE] == LinkState.RECONNECTING:
            counters[peer.slot + OUTAGE_SINCE_NS] = since or int(
                now * 1e9
            )  # a predecessor was killed between these counters
            link.knock_at = now
        elif since:
            counters[peer.slot + OUTAGE_SINCE_NS] = 0
        if counters[peer.slot + LINK_STATE] != LinkState.CONNECTED and peer.handshake is None:
            self._handshaker.initiate(peer, now)
        self._on_timers(peer)

    def note_sent(self, peer: Peer, packets: list[bytes], now: float) -> None:
        """Note packets that were sealed, so that they can be sent again."""
        link = peer.link
        if link is None or not link.policy.resend:
            return
        if not link.first_sent:
            link.unanswered.extend(zip(repeat(now), packets))
        else:
            link.unanswered.extend((link.first_sent.pop(packet, now), packet) for packet in packets)

    def note_received(self, peer: Peer, first_unanswered_ns: int, now: float) -> None:
        """Note that something authentic came in a session; `first_unanswered_ns`: the peer's word before it came."""
        counters, link = self._counters, peer.link
        if link is None:
            return
        self._forget_answered(peer, link, now)
        link.silent_initiations, link.presumes_loss = 0, False
        counters[peer.slot + SUSPECTED_SINCE_NS] = 0
        if counters[peer.slot + PROBES_ANSWERED]:
            self._ease(peer, link, first_unanswered_ns * NANOSECOND, now)
        if counters[peer.slot + LINK_STATE] != LinkState.CONNECTED:
            self._come_back(peer, link, now, "it answers")
            self._release(peer, now)
        link.first_sent.clear()  # whatever was to be sent again has been, or went no further

    def note_session(self, peer: Peer, now: float) -> None:
        """Note that a session was made; what was lost in the one before is put before what waits."""
        counters, link = self._counters, peer.link
        if link is None:
            return
        if counters[peer.slot + LINK_STATE] != LinkState.CONNECTED:
            self._come_back(peer, link, now, "a handshake")
        elif self._was_dead(peer, link):
            self._stage_unanswered(peer, link, now)
        if counters[peer.slot + SUSPECTED_SINCE_NS]:
            counters[peer.slot + PROBES_ANSWERED] += 1
            link.eased_at = now  # a late answer may seem prompt after a packet sent again
        link.unanswered.clear()
        link.silent_initiations = 0
        # Where a later initiation is answered too, this session is gone at the peer, with what went into it until then.
        link.presumes_loss = bool(peer.superseded)
        counters[peer.slot + SUSPECTED_SINCE_NS] = counters[peer.slot + RETRIES] = link.retries_before = 0

    def take_burst(self, peer: Peer, now: float) -> list[bytes]:
        """Return of what waits for a session as much as may leave at once; `run_timers` releases the rest."""
        link = peer.link
        if link is None:
            return self._staging.take(peer)
        if link.replay_at == inf:
            link.replay_left = len(peer.staged)
        link.replay_left -= REPLAY_BURST_PACKETS
        if link.replay_left > 0:
            link.replay_at = now + REPLAY_PAUSE_SECS
            return self._staging.take(peer, REPLAY_BURST_PACKETS)
        link.replay_at = inf
        return self._staging.take(peer)  # with what came meanwhile

    def note_silence(self, peer: Peer, now: float) -> None:
        """Note that a handshake is about to begin because nothing was heard since the first unanswered packet."""
        counters, link = self._counters, peer.link
        if link is not None:
            quiet_ns = counters[peer.slot + FIRST_UNANSWERED_NS] - counters[peer.slot + LAST_RECEIVED_NS]
            link.presumes_loss = not counters[peer.slot + PROBES_ANSWERED] and quiet_ns * NANOSECOND <= LIVELY_SECS
            counters[peer.slot + SUSPECTED_SINCE_NS] = int(now * 1e9)

    def note_unanswered_initiation(self, peer: Peer, now: float) -> bool:
        """Note that an initiation was not answered in time; return whether to go on."""
        counters, link = self._counters, peer.link
        if link is None:
            return True
        link.silent_initiations += 1
        state = counters[peer.slot + LINK_STATE]
        if state == LinkState.CONNECTING and link.silent_initiations == SILENT_INITIATIONS_MAX:
            self.notify(peer, LinkState.CONNECTING, self._reason(peer, link))
        if state == LinkState.CONNECTED:
            if link.silent_initiations >= SILENT_INITIATIONS_MAX:
                self._go_down(peer, link, now)
            return True
        if state == LinkState.FAILED or 0 < link.policy.retries_max <= counters[peer.slot + RETRIES]:
            self._fail(peer, link)
            return False
        return True

    def note_unreachable(self, remote: tuple[bytes, int, int], now: float, *, refused: bool) -> None:
        """Note an error of the network about what we sent to an address and port.

        refused: nobody listens there, but there is somebody to say so. An error is not authenticated, and so only makes
        us ask.
        """
        peer = self._table.by_remote.get(remote)
        link = peer.link if peer is not None else None
        if peer is None or link is None or self._counters[peer.slot + LINK_STATE] == LinkState.FAILED:
            return
        link.last_error = "nobody listens there" if refused else "it cannot be reached"
        if self._counters[peer.slot + LINK_STATE] == LinkState.CONNECTED:
            free_at = max(link.errors_free_at, now - ERROR_BURST_SECS)
            if free_at > now:
                return
            link.errors_free_at = free_at + ERROR_INTERVAL_SECS
            self._go_down(peer, link, now)
            if peer.handshake is None:
                peer.handshake_wanted_at = now + link.policy.retry_secs
        if refused:
            link.refusals_end_at = now + REFUSAL_GAP_SECS
            link.knock_at = min(link.knock_at, now + REFUSED_KNOCK_PACES[0][1])
        self._on_timers(peer)

    def note_network_change(self, peer: Peer, now: float) -> None:
        """Note that there may be another way to a peer now, or one at last: ask it at once, by whichever way."""
        self._table.clear_source(peer, now)
        if self._counters[peer.slot + LINK_STATE] == LinkState.CONNECTED and peer.link is not None:
            peer.link.presumes_loss = True  # answers may have gone where we no longer are
            self._handshaker.initiate(peer, now)
        else:
            self.hurry(peer, now)
        self._on_timers(peer)

    def hurry(self, peer: Peer, now: float) -> None:
        """Begin anew with the delays of a link that is down: there is a reason to believe in the next retry."""
        if peer.link is not None:
            peer.link.retries_before = self._counters[peer.slot + RETRIES]
        pending = peer.handshake
        if pending is None:
            self._handshaker.initiate(peer, now)
        elif now >= pending.sent_at + INITIATION_SPACING_SECS:
            self._handshaker.retry(peer, now)
        else:
            pending.retry_at = min(pending.retry_at, pending.sent_at + INITIATION_SPACING_SECS)

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Take notice of where a peer is to be found from now on."""
        self._table.move_endpoint(peer, endpoint, now)
        self.hurry(peer, now)
        self._on_timers(peer)

    def run_timers(self, peer: Peer, now: float) -> None:
        """Do what is due on a link."""
        link = peer.link
        if link is None:
            return
        if link.knock_at <= now:
            self._knock(peer, link, now)
        if link.replay_at <= now:
            self._release(peer, now)
        if link.refusals_end_at <= now:
            link.refusals_end_at = inf
            if self._counters[peer.slot + LINK_STATE] != LinkState.CONNECTED:
                self.hurry(peer, now)

    # --- What becomes of it ---

    def _forget_answered(self, peer: Peer, link: Link, now: float) -> None:
        """Forget what was sent so long ago that whoever sent what has come right now had it by then.

        What is younger may still be on its way to a peer that has ended meanwhile.
        """
        on_its_way_secs = ON_ITS_WAY_ROUND_TRIPS * self._counters[peer.slot + ROUND_TRIP_NS] * NANOSECOND
        horizon, unanswered = now - on_its_way_secs, link.unanswered
        if unanswered and unanswered[-1][0] <= horizon:
            unanswered.clear()
        while unanswered and unanswered[0][0] <= horizon:
            unanswered.popleft()

    def _ease(self, peer: Peer, link: Link, first: float, now: float) -> None:
        """Let the next probe come sooner again if what was sent first has been answered in good time."""
        if first and now - first <= prompt_secs(peer, self._counters) and now >= link.eased_at + EASE_SECS:
            link.eased_at = now
            self._counters[peer.slot + PROBES_ANSWERED] -= 1

    def _was_dead(self, peer: Peer, link: Link) -> bool:
        """Tell whether the peer had lost the session before the one that was made right now.

        If we asked for it: whether we had reason to. If it was the peer, whether it was too early for an orderly one.
        """
        if peer.current is None or peer.previous is None:
            return False
        if peer.current.state.is_initiator:
            return link.presumes_loss
        before, made_at = peer.previous.state, peer.current.state.created_at
        return before.is_initiator or made_at - before.created_at < REKEY_AFTER_TIME

    def _stage_unanswered(self, peer: Peer, link: Link, now: float) -> None:
        again = [(packet, sent_at) for sent_at, packet in link.unanswered if now - sent_at <= RESEND_AGE_SECS_MAX]
        link.unanswered.clear()
        link.first_sent = dict(again)
        if again:
            self._table.count(Total.RESENT_PACKETS, len(again))
            self._staging.put_before(peer, [packet for packet, _ in again])

    def _reason(self, peer: Peer, link: Link) -> str:
        """Return why a link is not up, as far as we know."""
        if peer.endpoint is None:
            return "its name could not be looked up"
        if link.last_error or peer.last_handshake_unix:
            return link.last_error or "no answer"
        return "no answer: is it up, and does each side have the other's public key?"

    def _go_down(self, peer: Peer, link: Link, now: float) -> None:
        counters = self._counters
        counters[peer.slot + OUTAGE_SINCE_NS] = int(now * 1e9)
        counters[peer.slot + LINK_STATE] = LinkState.RECONNECTING
        counters[peer.slot + RETRIES] = counters[peer.slot + SUSPECTED_SINCE_NS] = link.retries_before = 0
        self._table.count(Total.OUTAGES)
        self._stage_unanswered(peer, link, now)
        link.knock_at, link.replay_at = now + KNOCK_PACES[0][1], inf
        self.notify(peer, LinkState.RECONNECTING, self._reason(peer, link))

    def _come_back(self, peer: Peer, link: Link, now: float, reason: str) -> None:
        counters = self._counters
        since = counters[peer.slot + OUTAGE_SINCE_NS]
        counters[peer.slot + OUTAGE_SINCE_NS] = 0
        counters[peer.slot + LINK_STATE] = LinkState.CONNECTED
        link.knock_at = link.refusals_end_at = inf
        link.last_error = ""
        if since:
            lasted_ns = max(0, int(now * 1e9) - since)
            self._table.count(Total.RECONNECTS)
            self._table.count(Total.OUTAGE_NS_SUM, lasted_ns)
            counters[OUTAGES_START + bisect_left(OUTAGE_BOUNDS_SECS, lasted_ns * NANOSECOND)] += 1
            reason = f"{lasted_ns * NANOSECOND:.3f} s, {reason}"
        self.notify(peer, LinkState.CONNECTED, reason)

    def _fail(self, peer: Peer, link: Link) -> None:
        has_failed_before = self._counters[peer.slot + LINK_STATE] == LinkState.FAILED
        self._counters[peer.slot + LINK_STATE] = LinkState.FAILED
        link.knock_at = link.refusals_end_at = inf
        self._table.end_handshake(peer)
        peer.handshake_wanted_at = inf
        dropped = len(self._staging.take(peer))
        if dropped:
            self._table.drop(DropReason.HANDSHAKE_TIMED_OUT, dropped)
        if not has_failed_before:
            self.notify(peer, LinkState.FAILED, self._reason(peer, link))

    def _knock(self, peer: Peer, link: Link, now: float) -> None:
        if link.is_refused:
            self._handshaker.ask_between(peer, now)
        elif not self._send_keepalive(peer, now):
            link.knock_at = inf  # the session has expired; a refusal begins it anew
            return
        since_ns = self._counters[peer.slot + OUTAGE_SINCE_NS]
        down_secs = now - (since_ns * NANOSECOND if since_ns else link.began_at)
        paces = REFUSED_KNOCK_PACES if link.is_refused else KNOCK_PACES
        link.knock_at = now + next(pace for limit, pace in paces if down_secs < limit)
