"""The fast path of sending: the packets of a batch, to any peers, sealed into rows.

The rule: it does to counters and timers what `Device.send_packets` does for the same packets, and a property test
compares the two. It takes the common case alone - peers with a session in which nothing is due but
to send - and leaves the rest: of a peer all packets or none.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from oxidize.protocol import timers
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
from oxidize.protocol.keypair import padding
from oxidize.protocol.link import Links
from oxidize.protocol.peer import Peer, PeerKeypair
from oxidize.protocol.rows import ROW_BYTES, SealedRows
from oxidize.protocol.schedule import Schedule
from oxidize.protocol.session_table import SessionTable

Packet = bytes | memoryview

PACKET_BYTES_MAX = ROW_BYTES - DATA_OVERHEAD - PADDING_MULTIPLE  # a longer one has no place in a row


class SealedBatch(NamedTuple):
    """Datagrams to send to one endpoint, in order: views that last until the next batch is sealed.

    joined: all of them without gaps, where all are as long and only the last may be shorter; None otherwise.
    """

    endpoint: Endpoint
    datagrams: list[memoryview]
    joined: memoryview | None = None


_Group = tuple[PeerKeypair, Endpoint, list[Packet]]  # what is sent to one peer


class RowSender:
    """The part of a device that seals into rows; mtu: of the tunnel, bytes."""

    def __init__(
        self, table: SessionTable, routes: AllowedIPs[Peer], links: Links, schedule: Schedule, mtu: int
    ) -> None:
        self._counters = table.counters
        self._find = routes.lookup_packet_destinations
        self._links = links
        self._schedule = schedule
        self._mtu = mtu
        self._rows = SealedRows()

    def send(self, packets: Sequence[Packet], now: float) -> tuple[list[SealedBatch], Sequence[Packet]]:
        """Seal the packets that are common; return the messages to send, and the packets that are left, in order."""
        if not packets or len(packets) > BATCH_PACKETS_MAX or max(map(len, packets)) > PACKET_BYTES_MAX:
            return [], packets
        owners = self._find(packets)
        first = owners[0]
        if first is not None and owners.count(first) == len(owners):
            group = self._group_of(first, list(packets), now)
            return (self._seal({first: group}, now), []) if group is not None else ([], packets)
        groups: dict[Peer, _Group] = {}
        left = []
        for number, peer in enumerate(owners):
            if peer in groups:
                groups[peer][2].append(packets[number])
            elif peer is not None and (group := self._group_of(peer, [packets[number]], now)) is not None:
                groups[peer] = group
            else:
                left.append(packets[number])
        return self._seal(groups, now) if groups else [], left

    def _group_of(self, peer: Peer, packets: list[Packet], now: float) -> _Group | None:
        """Return the group of a peer to which packets only have to be sent, None for another."""
        keypair, endpoint, link = peer.current, peer.endpoint, peer.link
        if (
            keypair is None
            or endpoint is None
            or now >= keypair.seals_until
            or self._counters[keypair.slot + SEND_COUNTER] >= REKEY_AFTER_MESSAGES
            or (link is not None and self._links.holds_back(peer, link))
        ):
            return None
        return keypair, endpoint, packets

    def _seal(self, groups: Mapping[Peer, _Group], now: float) -> list[SealedBatch]:
        counters, rows = self._counters, self._rows
        headers: list[int] = []
        for keypair, _, packets in groups.values():  # a counter is advanced before anything is sealed with it
            word, count = keypair.slot + SEND_COUNTER, len(packets)
            first = counters[word]
            counters[word] = first + count
            fields = [TYPE_DATA, keypair.state.remote_index, 0] * count
            fields[2::3] = range(first, first + count)
            headers += fields
        stride = self._joined_size(packets) if len(groups) == 1 else 0  # `packets`: of the only group
        rows.set_headers(headers, stride)
        sent = sent_packets = row = 0
        batches = []
        for peer, (keypair, endpoint, packets) in groups.items():
            messages = (
                self._seal_joined(keypair, packets, stride) if stride else self._seal_group(keypair, packets, row)
            )
            row += len(messages)
            size = _total(messages, are_alike=stride > 0)
            batches.append(SealedBatch(endpoint, messages, rows.joined(size) if stride else None))
            self._note(peer, packets, size, now)
            sent += size
            sent_packets += _total(packets, are_alike=stride > 0)
        counters[Total.SENT_DATAGRAMS] += row
        counters[Total.SENT_BYTES] += sent
        counters[Total.SENT_PACKETS] += row
        counters[Total.SENT_PACKET_BYTES] += sent_packets
        return batches

    def _joined_size(self, packets: Sequence[Packet]) -> int:
        """Return the size of messages that may lie without gaps, only the last shorter; 0 where they may not."""
        first, last = len(packets[0]), len(packets[-1])
        if len(packets) == 1 or list(map(len, packets)).count(first) < len(packets) - (last < first):
            return 0
        return first + len(padding(first, self._mtu)) + DATA_OVERHEAD

    def _seal_joined(self, keypair: PeerKeypair, packets: Sequence[Packet], stride: int) -> list[memoryview]:
        """Seal packets to one peer into rows of `stride` bytes, one call of the cipher behind the other."""
        rows, encrypt_into = self._rows, keypair.sealer.encrypt_into
        alike = len(packets) - (len(packets[-1]) < len(packets[0]))
        sealed, whole = rows.views.of(stride - DATA_OVERHEAD, alike)
        padded = self._padded(packets[:alike])
        deque(map(encrypt_into, rows.nonces, padded, repeat(None), sealed), maxlen=0)
        messages = whole[:alike]
        if alike < len(packets):
            (last,) = self._padded(packets[alike:])
            room, message = rows.last_joined(alike, stride, len(last))
            encrypt_into(rows.nonces[alike], last, None, room)
            messages.append(message)
        return messages

    def _padded(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """Return packets of one size with their padding."""
        zeros = padding(len(packets[0]), self._mtu)
        return [b"".join((packet, zeros)) for packet in packets] if zeros else packets

    def _seal_group(self, keypair: PeerKeypair, packets: Sequence[Packet], first: int) -> list[memoryview]:
        """Seal packets to one peer into the rows from `first` on; return the messages."""
        encrypt_into = keypair.sealer.encrypt_into
        nonces, views, mtu = self._rows.nonces, self._rows.views, self._mtu
        messages: list[memoryview] = []
        for row, packet in enumerate(packets, first):
            zeros = padding(len(packet), mtu)
            padded = b"".join((packet, zeros)) if zeros else packet
            sealed, whole = views.of(len(padded), row + 1)
            encrypt_into(nonces[row], padded, None, sealed[row])
            messages.append(whole[row])
        return messages

    def _note(self, peer: Peer, packets: Sequence[Packet], size: int, now: float) -> None:
        """Note that messages of `size` bytes together were sent to a peer."""
        counters, slot = self._counters, peer.slot
        now_ns = int(now * 1e9)
        counters[slot + SENT_BYTES] += size
        counters[slot + SENT_PACKETS] += len(packets)
        counters[slot + LAST_SENT_NS] = now_ns
        counters[slot + KEEPALIVE_OWED_NS] = 0
        if peer.link is not None:
            self._links.on_sent(peer.link, packets, now)
        if not counters[slot + FIRST_UNANSWERED_NS]:
            counters[slot + FIRST_UNANSWERED_NS] = now_ns
            deadlines = peer.deadlines
            if not deadlines or deadlines[-1] > now + timers.silence_secs(peer, counters):
                self._schedule.add(peer)  # the one timer that starts by this is that of silence


def _total(pieces: Sequence[Packet], *, are_alike: bool) -> int:
    """Return the bytes of all pieces; are_alike: whether all but the last one are known to be as long."""
    return len(pieces[0]) * (len(pieces) - 1) + len(pieces[-1]) if are_alike else sum(map(len, pieces))
