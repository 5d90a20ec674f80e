"""The data path: between the UDP socket, the device and the tunnel.

The rule: a batch is read, processed and written before the next one is read. Between two calls this process therefore
holds no packet, which is when ownership may change, and a crash loses one batch at most.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from oxidize.net.udp import UdpSocket
from oxidize.net.udp_cmsg import SEGMENTED_BYTES_MAX, Datagram
from oxidize.protocol.constants import BATCH_PACKETS_MAX, DATA_OVERHEAD
from oxidize.protocol.counters import DROPS_START, Counters, DropReason, Total
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.inner_packets import Frame
from oxidize.protocol.rows import ReceivedRows

# Then the other event sources are served: a batch takes up to a millisecond, and a turn of the loop 2 us more.
BATCHES_PER_EVENT_MAX = 2


def packets_per_send(mtu: int) -> int:
    """Return how many packets of `mtu` bytes one segmented send carries: the rest of a batch would be sent alone."""
    return min(BATCH_PACKETS_MAX, SEGMENTED_BYTES_MAX // (mtu + DATA_OVERHEAD) or 1)


class Tunnel(Protocol):
    """The inner side of the data path, as `TunDevice` and `UserspaceNetwork` implement it.

    header_size: of the header before each frame, bytes. takes_super_packets: whether frames may be super-packets.
    """

    header_size: int
    takes_super_packets: bool

    def fileno(self) -> int | None:
        """Return the descriptor that is readable while packets wait, or None if they are ready after each write."""

    def read_packets(self, limit: int) -> Sequence[bytes | memoryview]:
        """Return up to `limit` packets for the peers, without waiting."""

    def write_packets(self, packets: Sequence[bytes | memoryview]) -> int:
        """Deliver packets that came from the peers; return how many were refused."""

    def write_frames(self, frames: Sequence[Frame]) -> int:
        """Like `write_packets`, for packets behind a header of `header_size` zeros, and super-packets of them."""


class DataPath:
    """Carries batches in both directions.

    now: returns the loop's time. write_drop: the reason under which packets that the tunnel refuses are counted.
    """

    def __init__(
        self,
        device: Device,
        udp: UdpSocket,
        tunnel: Tunnel,
        counters: Counters,
        now: Callable[[], float],
        write_drop: DropReason = DropReason.NETWORK_WRITE_FAILED,
    ) -> None:
        self.device = device
        self.udp = udp
        self.tunnel = tunnel
        self._counters = counters
        self._now = now
        self._write_drop_word = DROPS_START + write_drop
        self._replies_at_once = tunnel.fileno() is None
        self._rows = ReceivedRows(tunnel.header_size)
        self._read_max = packets_per_send(device.mtu)

    def from_udp(self) -> None:
        """Carry the datagrams that wait in the UDP socket to the tunnel."""
        receiver, rows = self.udp.receiver, self._rows
        for _ in range(BATCHES_PER_EVENT_MAX):
            now = self._now()
            batch = receiver.receive(rows, parts_initiations=not self.device.admission.is_loaded(now))
            if rows.sizes:
                joins = self.tunnel.takes_super_packets
                for frames in self.device.receive_rows(rows, now, join_segments=joins):
                    self._deliver(frames)
            if batch is not None:
                if batch.truncated:
                    self._counters[DROPS_START + DropReason.TRUNCATED] += 1
                packets = self.device.receive_datagrams(batch.datagrams, batch.endpoint, now)
                self._deliver(list(map(rows.framed, packets)))
            self.flush()
            if receiver.is_empty or receiver.is_cut:
                break
        self.device.fair_share.note(self._now(), is_empty=receiver.is_empty)

    def _deliver(self, frames: Sequence[Frame]) -> None:
        if not frames:
            return
        refused = self.tunnel.write_frames(frames)
        if refused:
            self._counters[self._write_drop_word] += refused
        if self._replies_at_once:
            self.from_tunnel()

    def from_tunnel(self) -> None:
        """Carry the packets that wait in the tunnel to the peers."""
        for _ in range(BATCHES_PER_EVENT_MAX):
            packets = self.tunnel.read_packets(self._read_max)
            if packets:
                for batch in self.device.send_rows(packets, self._now()):
                    self._transmit(*batch)
                self.flush()
            if len(packets) < self._read_max:
                return

    def flush(self) -> None:
        """Send the datagrams that the device has queued, and answer the packets that it could not."""
        for transmit in self.device.take_transmits():
            self._transmit(transmit.endpoint, transmit.datagrams)
        if self.udp.receiver.unreachable:
            self._report_unreachable()
        if self.device.undelivered.answers:
            self._answer_undelivered()

    def _transmit(self, endpoint: Endpoint, datagrams: Sequence[Datagram], joined: memoryview | None = None) -> None:
        failed = len(datagrams) - self.udp.transmit(endpoint, datagrams, joined)
        if failed:
            self._counters[DROPS_START + DropReason.SEND_FAILED] += failed

    def _answer_undelivered(self) -> None:
        """Tell the senders of packets that no peer gets; a tunnel without hosts behind it refuses that."""
        answers = self.device.undelivered.take_answers()
        self._counters[Total.UNREACHABLES_SENT] += len(answers) - self.tunnel.write_packets(answers)

    def _report_unreachable(self) -> None:
        errors, self.udp.receiver.unreachable = self.udp.receiver.unreachable, []
        now = self._now()
        for remote, refused in dict.fromkeys(errors):
            self.device.on_unreachable(remote, now, refused=refused)

    # --- Called by the loop: the device's timers ---

    def next_deadline(self) -> float | None:
        """Return when the device's next timer expires."""
        return self.device.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Run the device's due timers, and send what they queued."""
        self.device.handle_timeout(now)
        self.flush()
