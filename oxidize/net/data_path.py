"""The data path: between the UDP socket, the device and the tunnel.

The rule: a batch is read, processed and written before the next one is read. Between two calls this process therefore
holds no packet, which is when ownership may change, and a crash loses one batch at most.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from oxidize.net.udp import UdpSocket
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.counters import DROPS_START, Counters, DropReason, Total
from oxidize.protocol.device import Device

BATCHES_PER_EVENT_MAX = 8  # then the other event sources are served

_STRAYS = DROPS_START + DropReason.UNKNOWN_INDEX


class Tunnel(Protocol):
    """The inner side of the data path, as `TunDevice` and `UserspaceNetwork` implement it."""

    def fileno(self) -> int | None:
        """Return the descriptor that is readable while packets wait, or None if they are ready after each write."""

    def read_packets(self, limit: int) -> Sequence[bytes | memoryview]:
        """Return up to `limit` packets for the peers, without waiting."""

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """Deliver packets that came from the peers; return how many were refused."""


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

    def from_udp(self) -> None:
        """Carry the datagrams that wait in the UDP socket to the tunnel."""
        device, tunnel, counters = self.device, self.tunnel, self._counters
        strays, is_stray = counters[_STRAYS], None
        for _ in range(BATCHES_PER_EVENT_MAX):
            batch = self.udp.receive(is_stray)
            if self.udp.strays:
                self._count_strays()
            if batch is None:
                if self.udp.unreachable:
                    self._report_unreachable()
                return
            if batch.truncated:
                counters[DROPS_START + DropReason.TRUNCATED] += 1
            packets = device.receive_datagrams(batch.datagrams, batch.endpoint, self._now())
            if packets:
                refused = tunnel.write_packets(packets)
                if refused:
                    counters[self._write_drop_word] += refused
                if self._replies_at_once:
                    self.from_tunnel()
            elif counters[_STRAYS] != strays:
                is_stray = device.is_stray  # where there is one, there may be a flood: only a part is looked into
            self.flush()

    def _count_strays(self) -> None:
        """Count the datagrams that the socket has skipped as the device would have."""
        sizes, self.udp.strays = self.udp.strays, []
        counters = self._counters
        counters[Total.RECEIVED_DATAGRAMS] += len(sizes)
        counters[Total.RECEIVED_BYTES] += sum(sizes)
        counters[_STRAYS] += len(sizes)

    def from_tunnel(self) -> None:
        """Carry the packets that wait in the tunnel to the peers."""
        for _ in range(BATCHES_PER_EVENT_MAX):
            packets = self.tunnel.read_packets(BATCH_PACKETS_MAX)
            if packets:
                self.device.send_packets(packets, self._now())
                self.flush()
            if len(packets) < BATCH_PACKETS_MAX:
                return

    def flush(self) -> None:
        """Send the datagrams that the device has queued, and answer the packets that it could not."""
        for transmit in self.device.take_transmits():
            taken = self.udp.transmit(transmit.endpoint, transmit.datagrams)
            failed = len(transmit.datagrams) - taken
            if failed:
                self._counters[DROPS_START + DropReason.SEND_FAILED] += failed
        if self.udp.unreachable:
            self._report_unreachable()
        if self.device.undelivered.answers:
            self._answer_undelivered()

    def _answer_undelivered(self) -> None:
        """Tell the senders of packets that no peer gets; a tunnel without hosts behind it refuses that."""
        answers = self.device.undelivered.take_answers()
        self._counters[Total.UNREACHABLES_SENT] += len(answers) - self.tunnel.write_packets(answers)

    def _report_unreachable(self) -> None:
        errors, self.udp.unreachable = self.udp.unreachable, []
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
