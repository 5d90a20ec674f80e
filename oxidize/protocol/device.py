"""The device: the WireGuard protocol behind one façade.

The rule: it is driven by exactly four calls - `receive_rows`, `send_rows`, `handle_timeout` when
`next_deadline` has passed, and `take_transmits` after each of them - and never reads a clock, a socket or a random
source by itself. A peer's bytes never raise: what cannot be used is counted under a `DropReason`. Its parts never call
it: they return what happened and what is left to do.

Source: J. A. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", sections 2, 5 and 6.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from oxidize.errors import StorageError
from oxidize.protocol import timers
from oxidize.protocol.allowed_ips import AllowedIPs, packet_source
from oxidize.protocol.changes import Change, PeerRemoved, PeerStaged, PeerStagedMore
from oxidize.protocol.constants import BATCH_PACKETS_MAX, DATA_OVERHEAD, NEVER
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    KEEPALIVE_OWED_NS,
    LAST_SENT_NS,
    RECEIVED_BYTES,
    SENT_PACKETS,
    DropReason,
    LinkState,
    Slots,
    Total,
)
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.endpoint_sources import EndpointSources
from oxidize.protocol.fair_share import FairShare
from oxidize.protocol.handshaker import Handled, Handshaker
from oxidize.protocol.inner_packets import Frame, InnerPackets
from oxidize.protocol.keypair import Keypair
from oxidize.protocol.link import Links, ToDo
from oxidize.protocol.link_machine import Link, LinkDo
from oxidize.protocol.membership import Membership
from oxidize.protocol.messages import runs_by_receiver
from oxidize.protocol.noise import LocalIdentity
from oxidize.protocol.peer import Peer, PeerKeypair
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.rate_limiter import UNDER_LOAD_HANDSHAKES, LoadMeter
from oxidize.protocol.restore import RestoreReport, restore_change
from oxidize.protocol.row_receiver import RowReceiver
from oxidize.protocol.row_sender import RowSender, SealedBatch
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.schedule import Schedule
from oxidize.protocol.session_table import SessionTable, Transmit
from oxidize.protocol.staging import Staging
from oxidize.protocol.timers import Timer
from oxidize.protocol.undelivered import Undelivered
from oxidize.protocol.unrecorded import Unrecorded

_KEEPALIVE = b""
STORAGE_RETRY_SECS = 1.0  # before what could not be recorded is tried again by a timer
_OF_STAGED = (PeerStaged, PeerStagedMore, PeerRemoved)  # changes of what waits for a session
PEERS_PER_SLICE = 64  # peers scheduled at a time: a quarter of a millisecond


class Device:
    """One WireGuard interface with its peers.

    private_key: 32 bytes. slots: the store of its counters. random_bytes: count -> bytes. unix_time: () -> seconds, for
    timestamps. record: takes every change before its effect can be seen. public_key: of `private_key`, where it is
    known. mtu: of the tunnel, bytes; messages are not padded beyond it. Raises StateError beyond PEERS_MAX peers.

    `now` is always a time in seconds of one monotonic clock that all generations share (CLOCK_BOOTTIME).
    """

    def __init__(
        self,
        private_key: bytes,
        peers: Iterable[PeerSettings],
        slots: Slots,
        random_bytes: Callable[[int], bytes],
        unix_time: Callable[[], float],
        record: Callable[[Change], None],
        *,
        public_key: bytes | None = None,
        mtu: int = 1420,
        under_load_handshakes: int = UNDER_LOAD_HANDSHAKES,
    ) -> None:
        self.identity = LocalIdentity(private_key, public_key)
        self.mtu = mtu
        self._table = SessionTable(slots, record, random_bytes)
        self._counters = self._table.counters
        load = LoadMeter(under_load_handshakes)
        self._handshaker = Handshaker(self.identity, self._table, unix_time, load)
        self.admission = self._handshaker.admission
        self._routes: AllowedIPs[Peer] = AllowedIPs()
        self._schedule = Schedule(self._counters)
        self.next_deadline = self._schedule.next_deadline
        self._staging = Staging(self._table)
        self._links = Links(self._table, self._staging)
        self.fair_share = FairShare(random_bytes)
        self._sender = RowSender(self._table, self._routes, self._links, self._schedule, mtu)
        self._receiver = RowReceiver(self._table, self._links, self._schedule, self.fair_share)
        self._inner = InnerPackets(self._table, self._routes)
        self.undelivered = Undelivered(self._table)
        self.unrecorded = Unrecorded(self._table, self._staging)
        self.endpoints = EndpointSources(self._table)
        self.membership = Membership(self.identity, self._table, self._routes, self._staging, self._schedule)
        for settings in peers:
            self.membership.add(settings)

    # --- Read-only state ---

    @property
    def peers(self) -> dict[bytes, Peer]:
        """The peers by public key; callers must not change them."""
        return self._table.peers

    @property
    def endpoint_changes(self) -> int:
        """The number of times that any peer's endpoint was set; to be compared with an earlier value."""
        return self._table.endpoint_changes

    def live_sessions(self, now: float) -> int:
        """Return the number of peers that have a keypair which is not expired."""
        return self._table.session_count.count(now)

    @property
    def accepting(self) -> bool:
        """Whether new handshakes are answered; False while draining."""
        return self._handshaker.accepting

    @accepting.setter
    def accepting(self, value: bool) -> None:
        self._handshaker.accepting = value

    def link_state(self, peer: Peer) -> LinkState | None:
        """Return the state of the link to a peer, None for a peer without a link."""
        return self._links.state(peer) if peer.link is not None else None

    def take_transmits(self) -> list[Transmit]:
        """Return the queued datagrams, in order, and forget them."""
        transmits, self._table.transmits = self._table.transmits, []
        return transmits

    # --- From the network: outer datagrams in, inner packets out ---

    def receive_rows(self, rows: ReceivedRows, now: float, *, join_segments: bool = False) -> Iterator[list[Frame]]:
        """Receive the datagrams in `rows`, one at least; yield the packets to deliver, each peer's in order.

        What is common comes first: it waits for no handshake, which takes as long as a batch. Each packet is a frame as
        of `ReceivedRows.frame`, which lasts as long as the rows do, or with `join_segments` a super-packet of some. A
        crash may lose one such batch.
        """
        rows.read_headers()
        self._count_received(rows.sizes)
        owners, left = self._receiver.receive(rows, now)
        yield self._inner.unwrap_rows(rows, owners, join_segments=join_segments)
        for run in [left] if rows.are_joined else [[number] for number in left]:  # `admission` counts those alone
            if run:
                packets = self._receive([rows.datagram(number) for number in run], rows.endpoints[run[0]], now)
                yield list(map(rows.framed, packets))

    def receive_datagrams(self, datagrams: Sequence[bytes | memoryview], endpoint: Endpoint, now: float) -> list[bytes]:
        """Receive at most BATCH_PACKETS_MAX datagrams from one endpoint; return the packets to deliver, in order.

        A crash may lose one such batch.
        """
        self._count_received(list(map(len, datagrams)))
        return self._receive(datagrams, endpoint, now)

    def _count_received(self, sizes: Sequence[int]) -> None:
        """Count datagrams of `sizes`, bytes."""
        self._counters[Total.RECEIVED_DATAGRAMS] += len(sizes)
        self._counters[Total.RECEIVED_BYTES] += sum(sizes)

    def _receive(self, datagrams: Sequence[bytes | memoryview], endpoint: Endpoint, now: float) -> list[bytes]:
        packets: list[bytes] = []
        for receiver, run in runs_by_receiver(datagrams):
            if receiver is not None:
                packets += self._receive_data(receiver, run, endpoint, now)
                continue
            for datagram in self.admission.sift(run, endpoint, now):
                self._receive_handshake(datagram, endpoint, now)
        return packets

    def _receive_handshake(self, datagram: bytes | memoryview, endpoint: Endpoint, now: float) -> None:
        result = self._handshaker.receive(datagram, endpoint, now)
        if not isinstance(result, Handled):
            self._table.drop(result)
        elif result.has_session:
            self._on_session(result.peer, now)
        else:
            self._schedule.add(result.peer)

    def _receive_data(
        self, receiver: int, messages: Sequence[bytes | memoryview], endpoint: Endpoint, now: float
    ) -> list[bytes]:
        """Receive data messages for one keypair; return the packets to deliver."""
        table, counters = self._table, self._counters
        keypair = table.indices.get(receiver)
        if not isinstance(keypair, Keypair):
            table.drop(DropReason.UNKNOWN_INDEX, len(messages))
            asked = self._handshaker.answer_unknown_index(endpoint, now)
            if asked is not None:
                self._schedule.add(asked)
            return []
        if now >= keypair.expires_at:
            table.drop(DropReason.KEYPAIR_EXPIRED, len(messages))
            return []
        plaintexts, drops = keypair.open(messages)
        for reason in drops:
            table.drop(reason)
        if not plaintexts:
            return []
        peer = keypair.peer
        table.move_endpoint(peer, endpoint, now)
        first_unanswered_ns = counters[peer.slot + FIRST_UNANSWERED_NS]
        # Before anything is sent in reply: a reply is unanswered.
        timers.any_authenticated_received(peer, counters, now)
        if keypair is peer.next and self._handshaker.confirm(peer):
            self._on_session(peer, now)
        if (link := peer.link) is not None:
            if to_do := self._links.on_received(peer, link, keypair, first_unanswered_ns, now):
                self._carry_out(peer, to_do, now)
            link.first_sent.clear()  # what was to be sent again has been, or was dropped
        counters[peer.slot + RECEIVED_BYTES] += sum(map(len, plaintexts)) + DATA_OVERHEAD * len(plaintexts)
        if timers.receiving_wants_rekey(keypair, now) and keypair is peer.current:
            self._handshaker.initiate(peer, now)
        if any(plaintexts):
            timers.data_received(peer, counters, now)
        self._schedule.add(peer)
        return self._inner.unwrap(peer, plaintexts)

    # --- To the network: inner packets in, outer datagrams queued ---

    def send_rows(self, packets: Sequence[bytes | memoryview], now: float) -> list[SealedBatch]:
        """Like `send_packets`, but return most of the datagrams, which the caller sends before the queued ones."""
        batches, left = self._sender.send(packets, now)
        if left:
            self.send_packets(left, now)
        return batches

    def send_packets(self, packets: Sequence[bytes | memoryview], now: float) -> None:
        """Seal and queue at most BATCH_PACKETS_MAX packets from the tunnel.

        Packets for a peer without a session are staged, and a handshake begins.
        """
        for peer, run in groupby(packets, key=self._routes.lookup_packet_destination):
            if peer is not None:
                self._send_to(peer, list(run), now)
            else:
                self.undelivered.drop_unrouted(list(run), now)

    def _send_to(self, peer: Peer, packets: Sequence[bytes | memoryview], now: float) -> None:
        if peer.link is not None and self._links.holds_back(peer, peer.link):
            self._stage(peer, packets, now)
        else:
            self._send_now(peer, packets, now)

    def _send_now(self, peer: Peer, packets: Sequence[bytes | memoryview], now: float) -> None:
        keypair = peer.current
        if keypair is None or keypair.is_expired(now) or peer.endpoint is None:
            self._stage(peer, packets, now)
            return
        self._seal(peer, keypair, peer.endpoint, packets, now)
        timers.data_sent(peer, self._counters, now)
        if peer.link is not None:
            self._links.on_sent(peer.link, packets, now)
        if timers.sending_wants_rekey(keypair, now):
            self._handshaker.initiate(peer, now)
        self._schedule.add(peer)

    def _seal(
        self, peer: Peer, keypair: PeerKeypair, endpoint: Endpoint, packets: Sequence[bytes | memoryview], now: float
    ) -> None:
        counters = self._counters
        self._table.transmit(peer, endpoint, keypair.seal(packets, self.mtu), now)
        counters[peer.slot + SENT_PACKETS] += len(packets)
        counters[Total.SENT_PACKETS] += len(packets)
        counters[Total.SENT_PACKET_BYTES] += sum(map(len, packets))

    def _stage(self, peer: Peer, packets: Sequence[bytes | memoryview], now: float) -> None:
        if peer.endpoint is None and peer.link is None:
            self.undelivered.drop(DropReason.NO_ENDPOINT, packets, now)
            return
        self._staging.add(peer, packets)
        # On a link the next retry keeps its time, and packets behind a burst already have a session.
        if peer.link is None or (peer.handshake_wanted_at == NEVER and peer.link.replay_at == NEVER):
            sender = self._routes.lookup_packet_source(packets[0])
            self._handshaker.initiate(peer, now, sender.public_key if sender else packet_source(packets[0]))
        self._schedule.add(peer)

    def _send_keepalive(self, peer: Peer, now: float) -> bool:
        """Send a keepalive if there is a session to send it in; return whether there is."""
        keypair = peer.current
        if keypair is None or keypair.is_expired(now) or peer.endpoint is None:
            return False
        self._table.transmit(peer, peer.endpoint, keypair.seal([_KEEPALIVE], self.mtu), now)
        self._counters[Total.SENT_KEEPALIVES] += 1
        if timers.sending_wants_rekey(keypair, now):
            self._handshaker.initiate(peer, now)
        return True

    def _on_session(self, peer: Peer, now: float) -> None:
        """Send the staged packets in a new session; an initiator without any confirms it by a keepalive."""
        peer.handshake_wanted_at = NEVER
        if peer.link is not None:
            self._links.on_session(peer, peer.link, now)
        sent = self._send_staged(peer, now)
        if not sent and peer.current is not None and peer.current.state.is_initiator:
            self._send_keepalive(peer, now)
        self._schedule.add(peer)

    def _send_staged(self, peer: Peer, now: float) -> int:
        """Send the staged packets, on a link the next burst of them; return how many that were."""
        link = peer.link
        try:
            staged = self._links.take_burst(peer, link, now) if link is not None else self._staging.take(peer)
        except StorageError:  # the next owner would send them as well
            peer.handshake_wanted_at = now + STORAGE_RETRY_SECS
            return 0
        self._table.count(Total.REPLAYED_PACKETS, len(staged))
        for first in range(0, len(staged), BATCH_PACKETS_MAX):
            self._send_now(peer, staged[first : first + BATCH_PACKETS_MAX], now)
        return len(staged)

    # --- Timers ---

    def handle_timeout(self, now: float) -> None:
        """Handle the timers that have ended: retries, keepalives, forgetting keys.

        Only of a few peers, so that packets need not wait for all; the rest stay due.
        """
        for peer in self._schedule.take_due(now):
            if peer.is_removed:
                continue
            try:
                self._run_timers(peer, now)
            except StorageError:
                self._schedule.add_at(peer, now + STORAGE_RETRY_SECS)  # not at once: the loop would do nothing else
                continue
            self._schedule.add(peer)

    def _run_timers(self, peer: Peer, now: float) -> None:
        for timer, ends_at in timers.EXPIRIES.items():
            if ends_at(peer, self._counters) <= now:
                self._run_timer(timer, peer, now)

    def _run_timer(self, timer: Timer, peer: Peer, now: float) -> None:
        counters = self._counters
        match timer:
            case Timer.ENDPOINT_RECORD:
                self._table.record_endpoint(peer, now)
            case Timer.ZERO_KEYS:
                self._table.forget_keys(peer)
            case Timer.HANDSHAKE:
                self._run_handshake_timer(peer, now)
            case Timer.SILENCE:
                if peer.link is not None:
                    self._links.on_silence(peer, peer.link, now)
                counters[peer.slot + FIRST_UNANSWERED_NS] = 0
                self._table.clear_source(peer, now)
                self._handshaker.initiate(peer, now)
            case Timer.KEEPALIVE:
                counters[peer.slot + KEEPALIVE_OWED_NS] = 0
                self._send_keepalive(peer, now)
            case Timer.PERSISTENT_KEEPALIVE:
                self._table.allocate_slot(peer)
                counters[peer.slot + LAST_SENT_NS] = int(now * 1e9)
                if not self._send_keepalive(peer, now):
                    self._handshaker.initiate(peer, now)
            case Timer.LINK:
                if peer.link is not None:
                    self._carry_out(peer, self._links.on_timers(peer, peer.link, now), now)

    def _run_handshake_timer(self, peer: Peer, now: float) -> None:
        """Send an initiation or give up; a session that was made since then is used instead."""
        link, pending = peer.link, peer.handshake
        holds_back = link is not None and self._links.holds_back(peer, link)
        if pending is None and peer.staged and peer.can_send(now) and not holds_back:
            self._on_session(peer, now)
        elif link is not None and (pending is not None or peer.endpoint is None):
            self._carry_out(peer, self._links.on_unanswered(peer, link, now), now)
        elif pending is not None and pending.is_exhausted(now):
            self._table.end_handshake(peer)
            self.undelivered.drop(DropReason.HANDSHAKE_TIMED_OUT, self._staging.take(peer), now)
        else:
            self._handshaker.retry(peer, now)

    # --- Links: peers with which a session is kept up at all times ---

    def watch_links(self, notify: Callable[[Peer, LinkState, str], None]) -> None:
        """Have `notify` called with each peer whose link changed, its state and the reason; it must not call back."""
        self._links.notify = notify

    def begin_links(self, now: float) -> None:
        """Keep the links up from now on; for the owner."""
        for peer, link in self._linked():
            self._carry_out(peer, self._links.begin(peer, link, now), now)

    def on_unreachable(self, remote: tuple[bytes, int, int], now: float, *, refused: bool) -> None:
        """Handle an error of the network about `remote` (`Endpoint.remote`); refused: the port is closed there."""
        peer = self._table.by_remote.get(remote)
        if peer is not None and (link := peer.link) is not None:
            self._carry_out(peer, self._links.on_unreachable(peer, link, now, refused=refused), now)

    def on_route_change(self, now: float, *, is_lost: bool = False) -> None:
        """Handle a change of this machine's routes; is_lost: no route leads to its peers."""
        for peer, link in self._linked():
            self._carry_out(peer, self._links.on_route_change(peer, link, now, is_lost=is_lost), now)

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Move a peer to the endpoint that a resolver has returned; a handshake that is wanted continues there."""
        if peer.link is None and not peer.has_session(now):
            self._table.forget_remembered(peer)
            peer.remembered = endpoint.remote
        self._table.move_endpoint(peer, endpoint, now)
        self._carry_out(peer, [LinkDo.RESET_BACKOFF] if peer.link or peer.handshake else (), now)

    def _linked(self) -> list[tuple[Peer, Link]]:
        return [(peer, peer.link) for peer in self._table.peers.values() if peer.link is not None]

    def _carry_out(self, peer: Peer, to_do: ToDo, now: float) -> None:
        """Do what a link has left to the device."""
        for do in to_do:
            match do:
                case LinkDo.INITIATE:
                    self._handshaker.initiate(peer, now)
                case LinkDo.INITIATE_BETWEEN:
                    self._handshaker.initiate_between(peer, now)
                case LinkDo.RETRY:
                    self._handshaker.retry(peer, now)
                case LinkDo.RESET_BACKOFF:
                    self._handshaker.reset_backoff(peer, now)
                case LinkDo.SEND_KEEPALIVE:
                    self._send_keepalive(peer, now)
                case LinkDo.SEND_STAGED:
                    self._send_staged(peer, now)
        self._schedule.add(peer)

    # --- Takeover ---

    def restore(self, changes: Iterable[Change], now: float) -> RestoreReport:
        """Apply `changes` in order without recording or sending; may be called again with later changes.

        What belongs to peers that are not configured is left alone until `forget_unknown_peers`.
        """
        report = RestoreReport()
        touched: set[Peer] = set()
        restaged: set[Peer] = set()
        for change in changes:
            peer = restore_change(self._table, self._handshaker.cookie_checker, change)
            if peer is not None:
                touched.add(peer)
                if isinstance(change, _OF_STAGED):
                    restaged.add(peer)
            report.applied += 1
        self._staging.on_restored(restaged)
        for peer in touched:
            if peer.staged:
                peer.want_session(now)
            self._schedule.add(peer)
        report.unknown_peers = len(self._table.unknown_peers)
        return report

    def prepare(self) -> None:
        """Schedule every peer by its counters, also peers without a restored change."""
        for _ in self.prepare_in_slices():
            pass

    def prepare_in_slices(self) -> Iterator[None]:
        """Like `prepare`, but yield after every PEERS_PER_SLICE peers.

        Required once more when this device owns: what the predecessor noted in the counters after `restore`, such as a
        packet that is owed an answer, has left no record.
        """
        for number, peer in enumerate(list(self._table.peers.values()), start=1):
            self._schedule.add(peer)
            if number % PEERS_PER_SLICE == 0:
                yield

    def prepare_handshakes(self) -> None:
        """Make what the first handshake would wait for: it takes some milliseconds, and no session needs it."""
        _ = self.identity.private

    def own(self) -> None:
        """Begin to own the counters and the journal: from here this device may seal, open and record."""
        self._table.record_answered()

    def forget_unknown_peers(self) -> Iterator[None]:
        """Record the removal of the predecessor's peers that are not configured here, in slices."""
        return self._table.forget_unknown_peers()

    def freeze(self) -> None:
        """Record what only this process knows; `unrecorded` makes that little before."""
        self.unrecorded.record_all()
