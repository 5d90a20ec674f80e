"""Handshakes of a device, in both roles: starting one, answering one, and installing the keypair that it makes.

The rule (paper, sections 5.1, 5.3 and 5.4): nothing is allocated and nothing is answered before a message has passed
the checks, the cheapest first: those of `admission`, then its authenticity, then its timestamp. A message that fails is
counted and forgotten. A response that this device has not asked for is not looked into, and one that it has asked for
is neither load nor answered by a cookie.
"""

from collections.abc import Callable
from typing import NamedTuple

from oxidize.errors import DecodeError, StorageError
from oxidize.protocol.admission import Admission
from oxidize.protocol.changes import PeerCookie, PeerTimestamp
from oxidize.protocol.constants import (
    FORGED_ANSWERS_MAX,
    INITIATION_INTERVAL_MIN,
    INITIATION_SIZE,
    NEVER,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
    TYPE_COOKIE_REPLY,
    TYPE_INITIATION,
    TYPE_RESPONSE,
    UNKNOWN_INDEX_INTERVAL,
)
from oxidize.protocol.cookie import CookieChecker
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    INITIATION_UNIX_NS,
    LINK_STATE,
    RECEIVED_BYTES,
    RETRIES,
    ROUND_TRIP_NS,
    DropReason,
    LinkState,
    Total,
)
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import INITIATION_SPACING_SECS, SUPERSEDED_SECS_MAX
from oxidize.protocol.messages import CookieReply, Initiation, Response, message_type
from oxidize.protocol.noise import (
    LocalIdentity,
    RemoteIdentity,
    consume_initiation,
    consume_response,
    create_initiation,
    create_response,
    label_of,
    next_timestamp,
    usable_time,
)
from oxidize.protocol.peer import NOT_RETRIED, Peer, PendingHandshake
from oxidize.protocol.rate_limiter import LoadMeter
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.timers import (
    any_authenticated_received,
    initiation_spacing_secs,
    retry_secs,
    shortest_retry_secs,
)

ROUND_TRIP_WEIGHT = 8  # how many measurements a smoothed round trip consists of (RFC 6298, section 2: alpha is 1/8)
# A longer time is no round trip: the response waited while this machine was suspended. So no retry is later than the
# paper's.
ROUND_TRIP_SECS_MAX = REKEY_TIMEOUT / 2


class Handled(NamedTuple):
    """What a handshake message that was accepted has changed; has_session: whether it made a session to send in."""

    peer: Peer
    has_session: bool


class Handshaker:
    """Starts and answers handshakes on a device's session table; the device schedules a peer's timers after each call.

    unix_time: () -> seconds; it is called only for timestamps. load: decides when cookies are required.
    """

    def __init__(
        self,
        identity: LocalIdentity,
        table: SessionTable,
        unix_time: Callable[[], float],
        load: LoadMeter,
    ) -> None:
        self.identity = identity
        self.accepting = True  # False while draining: initiations are refused
        self.cookie_checker = CookieChecker(identity.public_key, table.random_bytes)
        self._table = table
        self._unix_time: Callable[[], float] = lambda: usable_time(unix_time())
        self.admission = Admission(table, self.cookie_checker, load)

    # --- Initiations of this side ---

    def initiate(self, peer: Peer, now: float, cause: bytes = b"") -> None:
        """Start a handshake as soon as the last one is long enough ago, unless one is in flight (section 6.4).

        cause: as for `Admission.place_initiation`. A live session and a link are renewed in any case: the first needs
        that once in two minutes, the second has one peer.
        """
        if peer.handshake is not None:
            peer.handshake.started_at = now
            return
        earliest = peer.initiation_sent_at + initiation_spacing_secs(peer)
        if now >= earliest and not peer.can_send(now):
            earliest = self._place(peer, cause, now)
        if now < earliest:
            peer.handshake_wanted_at = earliest
            return
        self._send_initiation(peer, now, now)

    def _place(self, peer: Peer, cause: bytes, now: float) -> float:
        """Return when it is a peer's turn for an initiation; that place is kept until it is used."""
        if peer.link is not None:
            return now
        if peer.place_at == NEVER:
            peer.place_at = self.admission.place_initiation(cause, now)
        place_at = peer.place_at
        if place_at <= now:
            peer.place_at = NEVER
        return place_at

    def retry(self, peer: Peer, now: float) -> None:
        """Send a new initiation for the handshake in flight (section 6.4), or start one.

        A retry may leave from another local address than the one before: the route may have changed.
        """
        if peer.handshake is None:
            self.initiate(peer, now)
            return
        place_at = self._place(peer, b"", now)
        if place_at > now:
            peer.handshake.retry_at = place_at
            return
        self._table.clear_source(peer, now)
        self._send_initiation(peer, peer.handshake.started_at, now)

    def reset_backoff(self, peer: Peer, now: float) -> None:
        """Retry as soon as the spacing allows, with the delays of a new outage: something promises an answer."""
        if peer.link is not None:
            peer.link.retries_before = self._table.counters[peer.slot + RETRIES]
        pending = peer.handshake
        if pending is None or now >= pending.sent_at + INITIATION_SPACING_SECS:
            self.retry(peer, now)
        else:
            pending.retry_at = min(pending.retry_at, pending.sent_at + INITIATION_SPACING_SECS)

    def initiate_between(self, peer: Peer, now: float) -> None:
        """Send an initiation between two retries: the next retry keeps its time, and this one is not counted.

        It is not sent before an answer to the last one has had its time: a later initiation makes that answer void.
        """
        pending, counters = peer.handshake, self._table.counters
        spacing = shortest_retry_secs(peer, counters)
        if now < peer.initiation_sent_at + spacing:
            return
        retry_at = pending.retry_at if pending is not None else peer.handshake_wanted_at
        started_at = pending.started_at if pending is not None else now
        self._send_initiation(peer, started_at, now, max(retry_at, now + spacing) if retry_at < NEVER else None)

    def _send_initiation(
        self,
        peer: Peer,
        started_at: float,
        now: float,
        retry_at: float | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        """Send an initiation; retry_at: when the next one is due, None to draw that; endpoint: if not the peer's."""
        table = self._table
        peer.handshake_wanted_at = NEVER
        endpoint = peer.endpoint if endpoint is None else endpoint
        if endpoint is None or peer.remote.static_shared is None:
            table.end_handshake(peer)
            if peer.link is not None:  # its name may resolve by then
                table.counters[peer.slot + RETRIES] += 1
                peer.handshake_wanted_at = now + retry_secs(peer, table.counters, self._draw())
            return
        try:
            self._begin_handshake(peer, endpoint, started_at, now, retry_at)
        except StorageError:
            peer.initiation_sent_at = now
            # Tried again like one that was not answered: the records may have room by then.
            again_at = now + retry_secs(peer, table.counters, self._draw())
            if peer.handshake is not None:
                peer.handshake.retry_at = again_at
            else:
                peer.handshake_wanted_at = again_at

    def _begin_handshake(
        self, peer: Peer, endpoint: Endpoint, started_at: float, now: float, retry_at: float | None
    ) -> None:
        """Record an initiation, and send it; raises StorageError, with nothing sent."""
        table = self._table
        table.allocate_slot(peer)
        index = table.indices.new(None, table.random_bytes)
        timestamp = label_of(self._next_timestamp(peer))
        state, message = create_initiation(self.identity, peer.remote, index, timestamp, table.random_bytes)
        stamped = peer.cookie_jar.stamp(message, now)
        draw = self._draw()
        peer.jitter = draw * REKEY_TIMEOUT_JITTER_MAX
        if retry_at is None:
            retry_at = now + retry_secs(peer, table.counters, draw)
            table.counters[peer.slot + RETRIES] += 1
        pending = PendingHandshake(peer, state, started_at, now, retry_at, peer.cookie_jar.last_mac1)
        try:
            table.begin_handshake(pending)
        except StorageError:
            table.indices.release(index)
            raise
        peer.initiation_sent_at = now
        table.counters[peer.slot + FIRST_UNANSWERED_NS] = 0
        table.count(Total.INITIATIONS_SENT)
        table.transmit(peer, endpoint, [stamped], now)

    def _draw(self) -> float:
        return int.from_bytes(self._table.random_bytes(2), "big") / 65536

    def _next_timestamp(self, peer: Peer) -> int:
        """Return the timestamp of an initiation, ns since the epoch: later than the last, even after a clock reset.

        A responder ignores a timestamp that is not newer (section 5.1), for as long as the clock had been ahead.
        """
        counters, index = self._table.counters, peer.slot + INITIATION_UNIX_NS
        timestamp = counters[index] = next_timestamp(self._unix_time(), counters[index])
        return timestamp

    def answer_unknown_index(self, endpoint: Endpoint, now: float) -> Peer | None:
        """Start a handshake with a peer that uses a session which this side has lost, as in a reboot; return the peer.

        Only with a peer that was last at this endpoint and that has no session here; None otherwise. The datagram may
        be forged: so it causes one initiation without retries, at most one in UNKNOWN_INDEX_INTERVAL for a peer, and
        moves no endpoint. The initiation leaves from the address that the datagram came to: one from another address
        of this host would not pass the peer's address translation.
        """
        peer = self._table.by_remote.get(endpoint.remote)
        if peer is None or not self.accepting or peer.handshake is not None or peer.has_session(now):
            return None
        if now < peer.initiation_sent_at + UNKNOWN_INDEX_INTERVAL:
            return None
        if not self.admission.allows_unasked(now):
            return None
        self._table.count(Total.UNKNOWN_INDEX_INITIATIONS)
        self._send_initiation(peer, NOT_RETRIED, now, endpoint=endpoint)
        return peer

    # --- Messages of peers ---

    def receive(self, data: bytes | memoryview, endpoint: Endpoint, now: float) -> DropReason | Handled:
        """Handle one datagram that is not a data message; return what it has changed, or why it was dropped."""
        kind = message_type(data)
        if kind == 0 or len(data) > INITIATION_SIZE:
            return DropReason.MALFORMED
        try:
            if kind == TYPE_INITIATION:
                return self._receive_initiation(data, endpoint, now)
            message = bytes(data)
            if kind == TYPE_RESPONSE:
                return self._receive_response(Response.decode(message), message, endpoint, now)
            if kind == TYPE_COOKIE_REPLY:
                return self._receive_cookie_reply(CookieReply.decode(message), now)
        except DecodeError:
            return DropReason.MALFORMED
        except StorageError:
            return DropReason.NOT_RECORDED
        return DropReason.MALFORMED

    def _find_remote(self, public_key: bytes) -> RemoteIdentity | None:
        peer = self._table.peers.get(public_key)
        return peer.remote if peer is not None else None

    def _receive_initiation(self, data: bytes | memoryview, endpoint: Endpoint, now: float) -> DropReason | Handled:
        if len(data) != INITIATION_SIZE:
            return DropReason.MALFORMED
        if (refused := self.admission.refuse(data, endpoint, now)) is not None:
            return refused
        if not self.accepting:
            return DropReason.DRAINING
        raw = bytes(data)
        outcome = self._answer(Initiation.decode(raw), raw, endpoint, now)
        if not isinstance(outcome, Handled):
            self.admission.note_failed(now)
        return outcome

    def _answer(self, message: Initiation, raw: bytes, endpoint: Endpoint, now: float) -> DropReason | Handled:
        received = consume_initiation(self.identity, message, self._find_remote)
        if isinstance(received, DropReason):
            return received
        peer = self._table.peers[received.remote.public_key]
        if received.timestamp <= peer.last_timestamp:
            return DropReason.REPLAYED_TIMESTAMP
        if now - peer.initiation_received_at < INITIATION_INTERVAL_MIN:
            return DropReason.INITIATION_FLOOD
        table = self._table
        table.allocate_slot(peer)
        index = table.indices.new(None, table.random_bytes)
        answer = create_response(received, index, table.random_bytes)
        if answer is None:
            table.indices.release(index)
            return DropReason.AUTHENTICATION_FAILED
        response, keys = answer
        try:
            table.record(PeerTimestamp(peer.public_key, received.timestamp, now))
            peer.last_timestamp, peer.initiation_received_at = received.timestamp, now
            keypair = table.create_keypair(peer, keys, (index, received.sender_index), False, now)
            table.rotate(peer, lambda: peer.rotate_as_responder(keypair))
        except StorageError:
            table.indices.release(index)
            raise
        self._on_authenticated(peer, endpoint, len(raw), now)
        table.count(Total.INITIATIONS_RECEIVED)
        table.transmit(peer, endpoint, [peer.cookie_jar.stamp(response, now)], now)
        return Handled(peer, has_session=False)

    def _receive_response(self, message: Response, raw: bytes, endpoint: Endpoint, now: float) -> DropReason | Handled:
        table = self._table
        pending = table.indices.get(message.receiver_index)
        if not isinstance(pending, PendingHandshake):
            return DropReason.UNKNOWN_INDEX
        peer = pending.peer
        if pending is not peer.handshake and now - pending.sent_at > SUPERSEDED_SECS_MAX:
            return DropReason.UNKNOWN_INDEX
        if not self.cookie_checker.check_mac1(raw):
            return DropReason.MAC1_INVALID
        if pending.forged >= FORGED_ANSWERS_MAX:
            return DropReason.AUTHENTICATION_FAILED
        keys = consume_response(self.identity, peer.remote, pending.state, message)
        if keys is None:
            pending.forged += 1
            return DropReason.AUTHENTICATION_FAILED
        indices = (pending.state.local_index, message.sender_index)
        keypair = table.create_keypair(peer, keys, indices, True, now)
        peer.last_handshake_unix = self._unix_time()
        self._measure_round_trip(pending, now)
        table.rotate(peer, lambda: peer.rotate_as_initiator(keypair))
        table.answer_handshake(pending)
        self._on_authenticated(peer, endpoint, len(raw), now)
        table.forget_remembered(peer)
        table.count(Total.HANDSHAKES_INITIATOR)
        return Handled(peer, has_session=True)

    def _receive_cookie_reply(self, message: CookieReply, now: float) -> DropReason | Handled:
        entry = self._table.indices.get(message.receiver_index)
        if entry is None:
            return DropReason.UNKNOWN_INDEX
        jar = entry.peer.cookie_jar
        latest_mac1 = jar.last_mac1
        if isinstance(entry, PendingHandshake) and entry is not entry.peer.handshake:
            # A peer that takes longer than the next initiation of this side never replies to the latest one.
            jar.last_mac1 = entry.mac1
        if not jar.consume_reply(message, now):
            jar.last_mac1 = latest_mac1
            return DropReason.AUTHENTICATION_FAILED
        if isinstance(entry, PendingHandshake):
            entry.mac1 = b""
        self._table.try_record(PeerCookie(entry.peer.public_key, jar.cookie, jar.received_at))
        self._table.count(Total.COOKIE_REPLIES_RECEIVED)
        return Handled(entry.peer, has_session=False)

    def _on_authenticated(self, peer: Peer, endpoint: Endpoint, size: int, now: float) -> None:
        table = self._table
        table.move_endpoint(peer, endpoint, now)
        table.counters[peer.slot + RECEIVED_BYTES] += size
        any_authenticated_received(peer, table.counters, now)

    def _measure_round_trip(self, pending: PendingHandshake, now: float) -> None:
        """Measure the round trip by the first answer to a handshake's initiations.

        Not by one to an initiation that was superseded while the link was down, nor by a later answer: those
        initiations may have waited in the queue of a server that was away.
        """
        counters, slot, latest = self._table.counters, pending.peer.slot, pending.peer.handshake
        if pending is not latest and (latest is None or counters[slot + LINK_STATE] != LinkState.CONNECTED):
            return
        # Negative where a predecessor's clock was ahead of this process's.
        measured = int(min(max(now - pending.sent_at, 0.0), ROUND_TRIP_SECS_MAX) * 1e9)
        before = counters[slot + ROUND_TRIP_NS]
        counters[slot + ROUND_TRIP_NS] = before + (measured - before) // ROUND_TRIP_WEIGHT if before else measured

    def confirm(self, peer: Peer) -> bool:
        """Take the next keypair into use: the initiator has just proved that it has it, and there is a session.

        A handshake of this side that is in flight has become needless: both sides started one at once. Return False
        where that could not be recorded: it is left to the next message.
        """
        peer.last_handshake_unix = self._unix_time()
        try:
            self._table.rotate(peer, peer.promote_next)
        except StorageError:
            return False
        self._table.end_handshake(peer)
        self._table.forget_remembered(peer)
        self._table.count(Total.HANDSHAKES_RESPONDER)
        return True
