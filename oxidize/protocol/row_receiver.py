"""The fast path of receiving: single data messages of any peers, opened in their rows.

The rule: it does to tables, counters and timers what `Device.receive_datagrams` does for the same datagrams, and a
property test compares the two. It takes the common case alone - messages in sessions that are in use, of peers of which
nothing else is due - and leaves the rest to the slow path: of a session all rows or none.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import repeat

from cryptography.exceptions import InvalidTag

from oxidize.protocol.constants import DATA_OVERHEAD, KEEPALIVE_TIMEOUT, REJECT_AFTER_MESSAGES, TYPE_DATA
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    KEEPALIVE_OWED_NS,
    LAST_RECEIVED_NS,
    LINK_STATE,
    RECEIVE_NEXT,
    RECEIVED_BYTES,
    DropReason,
    LinkState,
)
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.fair_share import FairShare
from oxidize.protocol.keypair import Keypair
from oxidize.protocol.link import Links
from oxidize.protocol.peer import Peer, PeerKeypair
from oxidize.protocol.replay import is_fresh, mark, mark_run
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.schedule import Schedule
from oxidize.protocol.session_table import SessionTable


class RowReceiver:
    """The part of a device that opens rows; share: which of a session's rows are opened."""

    def __init__(self, table: SessionTable, links: Links, schedule: Schedule, share: FairShare) -> None:
        self._table = table
        self._links = links
        self._schedule = schedule
        self._share = share
        self._counters = table.counters

    def receive(self, rows: ReceivedRows, now: float) -> tuple[list[Peer | None], list[int]]:
        """Open the rows that are common; return whose plaintext each row holds now, and the rows that are left."""
        owners: list[Peer | None] = [None] * len(rows.sizes)
        groups, left = _by_receiver(rows)
        groups = self._admit(groups, rows)
        counters, find = self._counters, self._table.indices.get
        strays: list[int] = []
        for receiver, numbers in groups.items():
            keypair = find(receiver)
            if isinstance(keypair, Keypair):
                peer = keypair.peer
                if (
                    now < keypair.quiet_until
                    and keypair is not peer.next
                    and (peer.link is None or counters[peer.slot + LINK_STATE] == LinkState.CONNECTED)
                ):
                    if len(numbers) == 1:  # as nearly all are where there are many peers
                        opened = numbers if self._open_one(keypair, rows, numbers[0]) else ()
                    else:
                        opened = self._open(keypair, rows, numbers)
                    if opened:
                        self._note(keypair, peer, rows, opened, now)
                        if len(opened) == len(owners):
                            owners = [peer] * len(owners)
                        else:
                            for number in opened:
                                owners[number] = peer
                    continue
            if keypair is None:
                strays += numbers
            else:
                left += numbers
        if strays:
            left += self._signs_of_lost_sessions(rows, strays)
        left.sort()
        return owners, left

    def _admit(self, groups: Mapping[int, Sequence[int]], rows: ReceivedRows) -> Mapping[int, Sequence[int]]:
        """Return the groups without what is over the fair share of a session, which is dropped."""
        if not self._share.is_counting:
            return groups
        admitted: dict[int, Sequence[int]] = {}
        sizes, find = rows.sizes, self._table.indices.get
        self._share.count(len(sizes))
        for receiver, numbers in groups.items():
            passed = numbers
            if isinstance(find(receiver), Keypair):
                size = sum([sizes[number] for number in numbers])
                passed = self._share.admit(receiver, numbers, size, are_joined=rows.are_joined)
                if len(passed) < len(numbers):
                    self._table.drop(DropReason.OVER_FAIR_SHARE, len(numbers) - len(passed))
            if passed:
                admitted[receiver] = passed
        return admitted

    def _signs_of_lost_sessions(self, rows: ReceivedRows, strays: Sequence[int]) -> list[int]:
        """Return, of the rows with messages of no session, the first from each peer's endpoint; drop the others.

        The slow path would do no more: it starts a handshake only with a peer whose endpoint this is, and rarely.
        """
        first_of: dict[Endpoint, int] = {}
        for number in strays:
            first_of.setdefault(rows.endpoints[number], number)
        by_remote = self._table.by_remote
        signs = [number for endpoint, number in first_of.items() if endpoint.remote in by_remote]
        self._table.drop(DropReason.UNKNOWN_INDEX, len(strays) - len(signs))
        return signs

    def _open_one(self, keypair: PeerKeypair, rows: ReceivedRows, number: int) -> bool:
        """Open one row and mark its counter; return whether it is authentic and was not marked."""
        words, slot, counter = self._counters, keypair.slot, rows.counters[number]
        if words[slot + RECEIVE_NEXT] <= counter < REJECT_AFTER_MESSAGES or is_fresh(words, slot, counter):
            sealed, plain = rows.views.of(rows.sizes[number], number + 1)
            try:
                keypair.opener.decrypt_into(rows.nonces[number], sealed[number], None, plain[number])
                return mark(words, slot, counter)
            except InvalidTag:
                self._table.drop(DropReason.AUTHENTICATION_FAILED)
                return False
        is_last = counter >= REJECT_AFTER_MESSAGES
        self._table.drop(DropReason.KEYPAIR_EXPIRED if is_last else DropReason.REPLAYED_COUNTER)
        return False

    def _open(self, keypair: PeerKeypair, rows: ReceivedRows, numbers: Sequence[int]) -> Sequence[int]:
        """Open rows of one session and mark their counters; return those that are authentic and were not marked."""
        words, slot, counters = self._counters, keypair.slot, rows.counters
        if len(numbers) < len(counters):
            counters = tuple([counters[number] for number in numbers])
        first, end = counters[0], counters[0] + len(numbers)
        in_order = first >= words[slot + RECEIVE_NEXT] and end <= REJECT_AFTER_MESSAGES
        if not in_order or counters != tuple(range(first, end)):
            return [number for number in numbers if self._open_one(keypair, rows, number)]
        try:
            _decrypt(keypair, rows, numbers)
        except InvalidTag:
            return [number for number in numbers if self._open_one(keypair, rows, number)]
        mark_run(words, slot, first, end - first)
        return numbers

    def _note(self, keypair: PeerKeypair, peer: Peer, rows: ReceivedRows, opened: Sequence[int], now: float) -> None:
        """Note that the rows `opened` came from a peer."""
        counters, slot, sizes = self._counters, peer.slot, rows.sizes
        endpoint = rows.endpoints[opened[-1]]
        if peer.endpoint is not endpoint:
            self._table.move_endpoint(peer, endpoint, now)
            self._schedule.add(peer)  # the record of it may be what is due next
        if (link := peer.link) is not None:
            self._links.on_received(peer, link, keypair, counters[slot + FIRST_UNANSWERED_NS], now)
            link.first_sent.clear()
        received = sum(sizes if len(opened) == len(sizes) else [sizes[number] for number in opened])
        now_ns = int(now * 1e9)
        counters[slot + RECEIVED_BYTES] += received
        counters[slot + LAST_RECEIVED_NS] = now_ns
        counters[slot + FIRST_UNANSWERED_NS] = 0
        if received > DATA_OVERHEAD * len(opened) and not counters[slot + KEEPALIVE_OWED_NS]:
            counters[slot + KEEPALIVE_OWED_NS] = now_ns
        deadlines = peer.deadlines
        if not deadlines or deadlines[-1] > now + KEEPALIVE_TIMEOUT:
            self._schedule.add(peer)  # the one timer that starts by this is a keepalive's


def _decrypt(keypair: PeerKeypair, rows: ReceivedRows, numbers: Sequence[int]) -> None:
    """Open rows of one session, whatever their counters are; raises InvalidTag."""
    decrypt_into, nonces, views, sizes = keypair.opener.decrypt_into, rows.nonces, rows.views, rows.sizes
    size, alike = sizes[0], len(sizes) - (sizes[-1] != sizes[0])
    if len(numbers) == len(sizes) and sizes.count(size) == alike:  # all are as long, but for the last perhaps
        sealed, plain = views.of(size, alike)
        deque(map(decrypt_into, nonces[:alike], sealed, repeat(None), plain), maxlen=0)
        numbers = numbers[alike:]
    size = 0
    for number in numbers:
        if sizes[number] != size:
            size = sizes[number]
            sealed, plain = views.of(size, numbers[-1] + 1)
        decrypt_into(nonces[number], sealed[number], None, plain[number])


def _by_receiver(rows: ReceivedRows) -> tuple[Mapping[int, Sequence[int]], list[int]]:
    """Return the rows of data messages by their receiver index, in order, and the rows of other datagrams."""
    types, receivers, sizes = rows.types, rows.receivers, rows.sizes
    count, only = len(sizes), receivers[0]
    all_data = types.count(TYPE_DATA) == count and min(sizes) >= DATA_OVERHEAD
    if all_data and receivers.count(only) == count:
        return {only: range(count)}, []
    groups: dict[int, list[int]] = {}
    others = []
    for number, receiver in enumerate(receivers):
        if not all_data and (types[number] != TYPE_DATA or sizes[number] < DATA_OVERHEAD):
            others.append(number)
        elif receiver in groups:
            groups[receiver].append(number)
        else:
            groups[receiver] = [number]
    return groups, others
