"""The fast path of sending: the packets of a batch, to any peers, sealed into rows.

The rule: it does to counters and timers what `Device.send_packets` does for the same packets, and a property test
compares the two. It takes the common case alone - peers with a session in which nothing is due but
to send - and leaves the rest: of a peer all packets or none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from oxidize.protocol.allowed_ips import AllowedIPs
from oxidize.protocol.constants import (
    BATCH_PACKETS_MAX,
    DATA_OVERHEAD,
    PADDING_MULTIPLE,
    REKEY_AFTER_MESSAGES,
    TYPE_DATA,
)
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    KEEPALIVE_OWED_NS,
    LAST_SENT_NS,
    SEND_COUNTER,
    SENT_BYTES,
    SENT_PACKETS,
    Total,
)
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link import Links
from oxidize.protocol.peer import Peer, PeerKeypair
from oxidize.protocol.rows import ROW_BYTES, SealedRows
from oxidize.protocol.schedule import Schedule
from oxidize.protocol.session_table import SessionTable

Packet = bytes | memoryview

PACKET_BYTES_MAX = ROW_BYTES - DATA_OVERHEAD - PADDING_MULTIPLE  # a longer one has no place in a row

_ZEROS = bytes(PADDING_MULTIPLE)


class SealedBatch(NamedTuple):
    """Datagrams to send to one endpoint, in order: views that last until the next batch is sealed."""

    endpoint: Endpoint
    datagrams: list[memoryview]


class _Group(NamedTuple):
    """What is sent to one peer."""

    keypair: PeerKeypair
    endpoint: Endpoint
    packets: list[Packet]


class RowSender:
    """The part of a device that seals into rows; mtu: of the tunnel, bytes."""

    def __init__(
        self, table: SessionTable, routes: AllowedIPs[Peer], links: Links, schedule: Schedule, mtu: int
    ) -> None:
        self._counters = table.counters
        self._find = routes.lookup_packet_destination
        self._links = links
        self._schedule = schedule
        self._mtu = mtu
        self._rows = SealedRows()

    def send(self, packets: Sequence[Packet], now: float) -> tuple[list[SealedBatch], Sequence[Packet]]:
        """Seal the packets that are common; return the messages to send, and the packets that are left, in order."""
        if len(packets) > BATCH_PACKETS_MAX or max(map(len, packets), default=0) > PACKET_BYTES_MAX:
            return [], packets
        owners = list(map(self._find, packets))
        groups: dict[Peer, _Group] = {}
        left = []
        for packet, peer in zip(packets, owners, strict=True):
            if peer in groups:
                groups[peer].packets.append(packet)
            elif peer is not None and (group := self._group_of(peer, now)) is not None:
                group.packets.append(packet)
                groups[peer] = group
            else:
                left.append(packet)
        return self._seal(groups, now) if groups else [], left

    def _group_of(self, peer: Peer, now: float) -> _Group | None:
        """Return the empty group of a peer to which packets only have to be sent, None for another."""
        keypair, endpoint, link = peer.current, peer.endpoint, peer.link
        if (
            keypair is None
            or endpoint is None
            or now >= keypair.seals_until
            or self._counters[keypair.slot + SEND_COUNTER] >= REKEY_AFTER_MESSAGES
            or (link is not None and self._links.holds_back(peer, link))
        ):
            return None
        return _Group(keypair, endpoint, [])

    def _seal(self, groups: dict[Peer, _Group], now: float) -> list[SealedBatch]:
        counters, rows = self._counters, self._rows
        headers: list[int] = []
        for group in groups.values():  # a counter is advanced before anything is sealed with it
            word, count = group.keypair.slot + SEND_COUNTER, len(group.packets)
            first = counters[word]
            counters[word] = first + count
            index = group.keypair.state.remote_index
            for counter in range(first, first + count):
                headers += (TYPE_DATA, index, counter)
        rows.set_headers(headers)
        sent = sent_packets = row = 0
        batches = []
        for peer, group in groups.items():
            messages = self._seal_group(group, row)
            row += len(messages)
            size = sum(map(len, messages))
            batches.append(SealedBatch(group.endpoint, messages))
            self._note(peer, group, size, now)
            sent += size
            sent_packets += sum(map(len, group.packets))
        counters[Total.SENT_DATAGRAMS] += row
        counters[Total.SENT_BYTES] += sent
        counters[Total.SENT_PACKETS] += row
        counters[Total.SENT_PACKET_BYTES] += sent_packets
        return batches

    def _seal_group(self, group: _Group, first: int) -> list[memoryview]:
        """Seal packets to one peer into the rows from `first` on, padded as in `Keypair.seal`; return the messages."""
        encrypt_into = group.keypair.sealer.encrypt_into
        nonces, views, mtu = self._rows.nonces, self._rows.views, self._mtu
        messages: list[memoryview] = []
        for row, packet in enumerate(group.packets, first):
            size = len(packet)
            if (padding := -size % PADDING_MULTIPLE) and (padding := min(padding, mtu - size)) > 0:
                size += padding
                packet = b"".join((packet, _ZEROS[:padding]))  # noqa: PLW2901  # padded
            sealed, whole = views[size]
            encrypt_into(nonces[row], packet, None, sealed[row])
            messages.append(whole[row])
        return messages

    def _note(self, peer: Peer, group: _Group, size: int, now: float) -> None:
        """Note that messages of `size` bytes together were sent to a peer."""
        counters, slot = self._counters, peer.slot
        now_ns = int(now * 1e9)
        counters[slot + SENT_BYTES] += size
        counters[slot + SENT_PACKETS] += len(group.packets)
        counters[slot + LAST_SENT_NS] = now_ns
        counters[slot + KEEPALIVE_OWED_NS] = 0
        if peer.link is not None:
            self._links.on_sent(peer.link, list(map(bytes, group.packets)), now)
        if not counters[slot + FIRST_UNANSWERED_NS]:
            counters[slot + FIRST_UNANSWERED_NS] = now_ns
            self._schedule.add(peer)  # the one timer that starts by this is that of silence
