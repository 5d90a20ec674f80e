"""The device: everything that speaks WireGuard, behind one façade.

It is driven by exactly four calls - `receive_datagrams`, `send_packets`, `handle_timeout` when `next_deadline` has
come, and `take_transmits` after each of them - and never reads a clock, a socket or a random source by itself. A peer's
bytes never raise: what cannot be used is counted under a `DropReason`.

Source: J. A. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", sections 2, 5 and 6.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, groupby
from math import inf

from oxidize.errors import StateError
from oxidize.protocol import timers
from oxidize.protocol.allowed_ips import AllowedIPs, inner_length
from oxidize.protocol.changes import Change, PeerRemoved, PeerStaged
from oxidize.protocol.constants import (
    BATCH_PACKETS_MAX,
    DATA_OVERHEAD,
    PEERS_MAX,
    PEERS_PER_TIMEOUT_MAX,
    REKEY_ATTEMPT_TIME,
)
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    KEEPALIVE_OWED_NS,
    LAST_SENT_NS,
    RECEIVED_BYTES,
    RECEIVED_PACKETS,
    SENT_PACKETS,
    DropReason,
    LinkState,
    Slots,
    Total,
)
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.handshaker import Handshaker
from oxidize.protocol.keypair import Keypair
from oxidize.protocol.link_keeper import LinkKeeper
from oxidize.protocol.messages import data_receiver
from oxidize.protocol.noise import LocalIdentity, RemoteIdentity
from oxidize.protocol.peer import Peer, PeerKeypair, PeerSettings
from oxidize.protocol.rate_limiter import UNDER_LOAD_HANDSHAKES_PER_SECOND, LoadMeter
from oxidize.protocol.restore import RestoreReport, restore_change
from oxidize.protocol.session_table import SessionTable, Transmit
from oxidize.protocol.staging import Staging

_KEEPALIVE = b""
PEERS_PER_SLICE = 256  # scheduled at a time: less than a millisecond


class Device:
    """One WireGuard interface with its peers.

    private_key: 32 bytes. slots: the store of its counters. random_bytes: count -> bytes. unix_time: () -> seconds, for
    timestamps. record: takes every change before its effect can be seen. mtu: of the tunnel, bytes; messages are not
    padded beyond it. Raises StateError for more than PEERS_MAX peers.

    `now` is everywhere a time in seconds of one monotonic clock that goes on across generations (CLOCK_BOOTTIME).
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
        mtu: int = 1420,
        under_load_handshakes: int = UNDER_LOAD_HANDSHAKES_PER_SECOND,
    ) -> None:
        self.identity = LocalIdentity(private_key)
        self.mtu = mtu
        self._table = SessionTable(slots, record, random_bytes)
        self._counters = self._table.counters
        load = LoadMeter(under_load_handshakes)
        self._handshaker = Handshaker(self.identity, self._table, unix_time, self._on_session, self._schedule, load)
        self._routes: AllowedIPs[Peer] = AllowedIPs()
        self._due: list[tuple[float, int, Peer]] = []
        self._order = count()
        self._staging = Staging(self._table)
        self._links = LinkKeeper(
            self._table, self._handshaker, self._staging, self._send_staged, self._send_keepalive, self._schedule
        )
        for settings in peers:
            self._add_peer(settings)

    def _add_peer(self, settings: PeerSettings) -> None:
        if len(self._table.peers) >= PEERS_MAX:
            raise StateError(
                f"peer {len(self._table.peers) + 1}: expected at most {PEERS_MAX} peers; use another server"
            )
        peer = Peer(settings, RemoteIdentity(self.identity, settings.public_key, settings.preshared_key))
        self._table.peers[settings.public_key] = peer
        self._table.set_endpoint(peer, settings.endpoint)
        for network in settings.allowed_ips:
            self._routes.insert(network, peer)

    # --- What the outside may look at ---

    @property
    def peers(self) -> dict[bytes, Peer]:
        """The peers by public key; to be read, not changed."""
        return self._table.peers

    @property
    def endpoint_changes(self) -> int:
        """How often any peer was found at another endpoint than before; a number to compare with an earlier one."""
        return self._table.endpoint_changes

    def live_sessions(self, now: float) -> int:
        """Return the number of peers that have a keypair which is not expired."""
        return sum(peer.has_session(now) for peer in self._table.peers.values())

    @property
    def accepting(self) -> bool:
        """Whether new handshakes are answered; set it to False to drain."""
        return self._handshaker.accepting

    @accepting.setter
    def accepting(self, value: bool) -> None:
        self._handshaker.accepting = value

    def link_state(self, peer: Peer) -> LinkState | None:
        """Return where the link to a peer stands, None where we keep none up."""
        return self._links.state(peer) if peer.link is not None else None

    def take_transmits(self) -> list[Transmit]:
        """Return the datagrams that are to leave now, in order, and forget them."""
        transmits, self._table.transmits = self._table.transmits, []
        return transmits

    # --- From the network: outer datagrams in, inner packets out ---

    def receive_datagrams(self, datagrams: Sequence[bytes | memoryview], endpoint: Endpoint, now: float) -> list[bytes]:
        """Take datagrams that came from one endpoint; return the packets to deliver, in order.

        At most BATCH_PACKETS_MAX at a time: that is what a crash may lose.
        """
        counters, table = self._counters, self._table
        counters[Total.RECEIVED_DATAGRAMS] += len(datagrams)
        counters[Total.RECEIVED_BYTES] += sum(map(len, datagrams))
        packets: list[bytes] = []
        for receiver, run in groupby(datagrams, key=data_receiver):
            if receiver is not None:
                packets += self._receive_data(receiver, list(run), endpoint, now)
                continue
            for datagram in run:
                dropped = self._handshaker.receive(datagram, endpoint, now)
                if dropped is not None:
                    table.drop(dropped)
        if packets:
            counters[Total.RECEIVED_PACKETS] += len(packets)
            counters[Total.RECEIVED_PACKET_BYTES] += sum(map(len, packets))
        return packets

    def _receive_data(
        self, receiver: int, messages: Sequence[bytes | memoryview], endpoint: Endpoint, now: float
    ) -> list[bytes]:
        """Take data messages to one keypair; return the packets to deliver."""
        table, counters = self._table, self._counters
        keypair = table.indices.get(receiver)
        if not isinstance(keypair, Keypair):
            table.drop(DropReason.UNKNOWN_INDEX, len(messages))
            self._handshaker.answer_unknown_index(endpoint, now)
            return []
        if keypair.is_expired(now):
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
        # Before anything is sent because of it: that is unanswered.
        timers.any_authenticated_received(peer, counters, now)
        if keypair is peer.next:
            self._handshaker.confirm(peer, now)
        if peer.link is not None:
            self._links.note_received(peer, first_unanswered_ns, now)
        counters[peer.slot + RECEIVED_BYTES] += sum(map(len, plaintexts)) + DATA_OVERHEAD * len(plaintexts)
        if timers.receiving_wants_rekey(keypair, now) and keypair is peer.current:
            self._handshaker.initiate(peer, now)
        if any(plaintexts):
            timers.data_received(peer, counters, now)
        self._schedule(peer)
        return self._unwrap(peer, plaintexts)

    def _unwrap(self, peer: Peer, plaintexts: Sequence[bytes]) -> list[bytes]:
        """Return what a peer may send of what it sent, without padding."""
        drop, lookup = self._table.drop, self._routes.lookup_packet_source
        packets = []
        for plaintext in plaintexts:
            if not plaintext:
                self._counters[Total.RECEIVED_KEEPALIVES] += 1
            elif not (length := inner_length(plaintext)):
                drop(DropReason.INNER_MALFORMED)
            elif lookup(plaintext) is not peer:
                drop(DropReason.SOURCE_NOT_ALLOWED)
            else:
                packets.append(plaintext if length == len(plaintext) else plaintext[:length])
        self._counters[peer.slot + RECEIVED_PACKETS] += len(packets)
        return packets

    # --- To the network: inner packets in, outer datagrams queued ---

    def send_packets(self, packets: Sequence[bytes | memoryview], now: float) -> None:
        """Take packets from the tunnel's side, at most BATCH_PACKETS_MAX, and queue what they become.

        Packets for a peer without a session are kept, STAGED_PACKETS_MAX at most, and a handshake begins.
        """
        for peer, run in groupby(packets, key=self._routes.lookup_packet_destination):
            if peer is not None:
                self._send_to(peer, list(run), now)
            else:
                self._table.drop(DropReason.NO_ROUTE, len(list(run)))

    def _send_to(self, peer: Peer, packets: Sequence[bytes | memoryview], now: float) -> None:
        if peer.link is not None and self._links.holds_back(peer):
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
            self._links.note_sent(peer, list(map(bytes, packets)), now)
        if timers.sending_wants_rekey(keypair, now):
            self._handshaker.initiate(peer, now)
        self._schedule(peer)

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
            self._table.drop(DropReason.NO_ENDPOINT, len(packets))
            return
        self._staging.add(peer, packets)
        # On a link the next retry has its time, and behind what is just being sent nothing waits for a session.
        if peer.link is None or (peer.handshake_wanted_at == inf and peer.link.replay_at == inf):
            self._handshaker.initiate(peer, now)
        self._schedule(peer)

    def _send_keepalive(self, peer: Peer, now: float) -> bool:
        keypair = peer.current
        if keypair is None or keypair.is_expired(now) or peer.endpoint is None:
            return False
        self._table.transmit(peer, peer.endpoint, keypair.seal([_KEEPALIVE], self.mtu), now)
        self._counters[Total.SENT_KEEPALIVES] += 1
        if timers.sending_wants_rekey(keypair, now):
            self._handshaker.initiate(peer, now)
        return True

    def _on_session(self, peer: Peer, now: float) -> None:
        """Send what waited for this session; an initiator with nothing to say confirms it by a keepalive."""
        peer.handshake_wanted_at = inf
        if peer.link is not None:
            self._links.note_session(peer, now)
        sent = self._send_staged(peer, now)
        if not sent and peer.current is not None and peer.current.state.is_initiator:
            self._send_keepalive(peer, now)
        self._schedule(peer)

    def _send_staged(self, peer: Peer, now: float) -> int:
        """Send what waited for a session, or the first burst of it; return how many packets that were."""
        staged = self._links.take_burst(peer, now)
        self._table.count(Total.REPLAYED_PACKETS, len(staged))
        for first in range(0, len(staged), BATCH_PACKETS_MAX):
            self._send_now(peer, staged[first : first + BATCH_PACKETS_MAX], now)
        return len(staged)

    # --- Timers ---

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is due, or None; it may turn out that nothing had to be done."""
        return self._due[0][0] if self._due else None

    def handle_timeout(self, now: float) -> None:
        """Do what is due: retries, keepalives, forgetting keys.

        For PEERS_PER_TIMEOUT_MAX peers at most, so that packets need not wait for all; `next_deadline` then says so.
        """
        due: dict[Peer, None] = {}
        while self._due and self._due[0][0] <= now and len(due) < PEERS_PER_TIMEOUT_MAX:
            _, _, peer = heappop(self._due)
            peer.deadlines.pop()
            due[peer] = None
        for peer in due:
            self._run_timers(peer, now)
            self._schedule(peer)

    def _run_timers(self, peer: Peer, now: float) -> None:
        counters = self._counters
        if peer.endpoint_record_at <= now:
            self._table.record_endpoint(peer, now)
        if timers.zero_keys_at(peer) <= now:
            self._table.forget_keys(peer)
        if peer.handshake is not None and peer.handshake.retry_at <= now:
            self._run_retry(peer, peer.handshake.started_at, now)
        elif peer.handshake_wanted_at <= now:
            if peer.staged and peer.can_send(now) and not self._links.holds_back(peer):
                self._on_session(peer, now)
            elif peer.endpoint is not None or self._links.note_unanswered_initiation(peer, now):
                self._handshaker.initiate(peer, now)
        if timers.unanswered_at(peer, counters) <= now:
            self._links.note_silence(peer, now)
            counters[peer.slot + FIRST_UNANSWERED_NS] = 0
            self._table.clear_source(peer, now)
            self._handshaker.initiate(peer, now)
        if timers.keepalive_at(peer, counters) <= now:
            counters[peer.slot + KEEPALIVE_OWED_NS] = 0
            self._send_keepalive(peer, now)
        if timers.persistent_keepalive_at(peer, counters) <= now:
            self._table.allocate_slot(peer)
            counters[peer.slot + LAST_SENT_NS] = int(now * 1e9)
            if not self._send_keepalive(peer, now):
                self._handshaker.initiate(peer, now)
        if peer.link is not None:
            self._links.run_timers(peer, now)

    def _run_retry(self, peer: Peer, started_at: float, now: float) -> None:
        """Send the initiation that was not answered once more, or give up."""
        if peer.link is not None:
            if self._links.note_unanswered_initiation(peer, now):
                self._handshaker.retry(peer, now)
        elif now - started_at >= REKEY_ATTEMPT_TIME:
            self._table.end_handshake(peer)
            dropped = len(self._staging.take(peer))
            self._table.drop(DropReason.HANDSHAKE_TIMED_OUT, dropped)
        else:
            self._handshaker.retry(peer, now)

    def _schedule(self, peer: Peer) -> None:
        # A look that is due earlier anyway will schedule the next one. So a peer's looks are falling in the order in
        # which they were scheduled, and few: no entry is ever stale, nor does one replace another.
        deadline, deadlines = timers.deadline(peer, self._counters), peer.deadlines
        if deadline < (deadlines[-1] if deadlines else inf):
            deadlines.append(deadline)
            heappush(self._due, (deadline, next(self._order), peer))

    def use_cached_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Take it that a peer may be where it was in an earlier life of ours, unless it is known to be elsewhere."""
        if peer.endpoint is None:
            self._table.move_endpoint(peer, endpoint, now)

    # --- Links: peers that a session is kept up with at all times ---

    def watch_links(self, notify: Callable[[Peer, LinkState, str], None]) -> None:
        """Have `notify` called with every peer whose link changed, its state and why; it must not call the device."""
        self._links.notify = notify

    def begin_links(self, now: float) -> None:
        """Keep the links up from now on; for the owner."""
        for peer in self._linked():
            self._links.begin(peer, now)

    def note_unreachable(self, remote: tuple[bytes, int, int], now: float, *, refused: bool) -> None:
        """Take notice that the network says that it does not reach `remote` (`Endpoint.remote`).

        refused: it says that nobody listens there.
        """
        self._links.note_unreachable(remote, now, refused=refused)

    def note_network_change(self, now: float) -> None:
        """Take notice that this machine's way to its peers has changed."""
        for peer in self._linked():
            self._links.note_network_change(peer, now)

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: float) -> None:
        """Take notice that the peer of a link is to be found at `endpoint`, as the resolver says."""
        self._links.set_endpoint(peer, endpoint, now)

    def _linked(self) -> list[Peer]:
        return [peer for peer in self._table.peers.values() if peer.link is not None]

    # --- Taking over from a predecessor, and being taken over ---

    def restore(self, changes: Iterable[Change], now: float) -> RestoreReport:
        """Set what `changes` say, in their order, recording and sending nothing; call it again with what came later.

        What belongs to peers that are not configured is left alone until `forget_unknown_peers`.
        """
        report = RestoreReport()
        touched: set[Peer] = set()
        restaged: set[Peer] = set()
        for change in changes:
            peer = restore_change(self._table, self._handshaker.cookie_checker, change)
            if peer is not None:
                touched.add(peer)
                if isinstance(change, PeerStaged | PeerRemoved):
                    restaged.add(peer)
            report.applied += 1
        self._staging.note_restored(restaged)
        for peer in touched:
            if peer.staged and peer.handshake is None:
                peer.handshake_wanted_at = now  # what was to send these packets may have died with who recorded them
            self._schedule(peer)
        report.unknown_peers = len(self._table.unknown_peers)
        return report

    def prepare(self) -> None:
        """Schedule every peer by its counters: those that no restored change spoke of too."""
        for _ in self.prepare_in_slices():
            pass

    def prepare_in_slices(self) -> Iterator[None]:
        """Do as `prepare`, some peers at a time.

        Due once more when this device owns: what another process noted in the counters after `restore`, a packet that
        is owed an answer, has left no record behind.
        """
        for number, peer in enumerate(list(self._table.peers.values()), start=1):
            self._schedule(peer)
            if number % PEERS_PER_SLICE == 0:
                yield

    def own(self) -> None:
        """Begin to own the counters and the journal: from here this device may seal, open and record."""
        self._table.record_answered()

    def forget_unknown_peers(self) -> None:
        """Declare dead what a predecessor knew of peers that are not configured any more."""
        for public_key in list(self._table.unknown_peers):
            self._table.record(PeerRemoved(public_key))
            self._table.forget_unknown_peer(public_key)

    def freeze(self) -> None:
        """Record what only this process knows: the packets that wait for a session, which the next owner sends."""
        self._table.record_moved()
        self._staging.write_down()
