"""What only the process knows: staged packets and moves of endpoints that no record holds.

The rule: it is recorded before a freeze, in bounded slices between batches, so that the freeze itself records no more
than FREEZE_PACKETS_MAX, FREEZE_BYTES_MAX and FREEZE_MOVES_MAX, however many sessions, packets and moves there are.
"""

from itertools import islice

from oxidize.errors import StorageError
from oxidize.protocol.counters import DropReason
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.staging import Staging

# --- What a freeze may record: together less than a millisecond ---
FREEZE_PACKETS_MAX = 128
FREEZE_BYTES_MAX = 128 << 10  # of packets
FREEZE_MOVES_MAX = 64  # of endpoints

# --- What one slice records, between two batches: about a millisecond ---
SLICE_RECORDS_MAX = 32
SLICE_BYTES_MAX = 128 << 10  # of packets; a peer's packets are one record, so it may be exceeded by one


class Unrecorded:
    """What a device has staged and moved since it was recorded."""

    def __init__(self, table: SessionTable, staging: Staging) -> None:
        self._table = table
        self._staging = staging

    @property
    def is_small(self) -> bool:
        """Whether it is so little that a freeze may record it."""
        staging = self._staging
        if len(self._table.moved) > FREEZE_MOVES_MAX or len(staging.unrecorded) > FREEZE_PACKETS_MAX:
            return False
        count = size = 0
        for peer in staging.unrecorded:
            for packet in staging.lacking(peer):
                count += 1
                size += len(packet)
                if count > FREEZE_PACKETS_MAX or size > FREEZE_BYTES_MAX:
                    return False
        return True

    def record_slice(self, now: float) -> int:
        """Record some of it, the oldest first; return the bytes of the packets' records."""
        table, staging, size = self._table, self._staging, 0
        for peer in list(islice(table.moved, SLICE_RECORDS_MAX)):
            table.record_endpoint(peer, now)
        for peer in list(islice(staging.unrecorded, SLICE_RECORDS_MAX)):
            size += staging.record(peer)
            if size >= SLICE_BYTES_MAX:
                break
        return size

    def record_all(self) -> None:
        """Record all of it; packets that the records cannot take are dropped."""
        for peer in list(self._table.moved):
            self._table.record_endpoint(peer, peer.endpoint_record_at)
        for peer in list(self._staging.unrecorded):
            self._staging.record(peer)
            if peer in self._staging.unrecorded:
                self._staging.drop_unrecorded(peer, DropReason.NOT_RECORDED)

    def record_whole(self, is_whole: bool) -> None:
        """Record for a reader that knows no PeerStagedMore, or no longer."""
        self._staging.record_whole(is_whole)

    def shrink(self) -> None:
        """Drop the packets, and forget to record the moves, that a freeze may not record.

        A peer whose move is not recorded is found at its new endpoint again when its next packet comes.
        """
        for peer in list(islice(self._table.moved, FREEZE_MOVES_MAX, None)):
            self._table.moved.discard(peer)
        count = size = 0
        for peer in list(self._staging.unrecorded):
            sizes = list(map(len, self._staging.lacking(peer)))
            if count + len(sizes) > FREEZE_PACKETS_MAX or size + sum(sizes) > FREEZE_BYTES_MAX:
                self._staging.drop_unrecorded(peer, DropReason.STAGED_OVERFLOW)
            else:
                count, size = count + len(sizes), size + sum(sizes)

    def retire_slice(self) -> bool:
        """Take some of the packets out of the records, for there is no successor; return whether to continue.

        Where the records cannot take that, the packets stay there until they are sent.
        """
        staging = self._staging
        try:
            for peer in list(islice(staging.recorded, SLICE_RECORDS_MAX)):
                staging.retire(peer)
        except StorageError:
            return False
        return bool(staging.recorded)
