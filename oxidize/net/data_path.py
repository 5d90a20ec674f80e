"""The data path: between the UDP socket, the device and the tunnel's network.

The rule: a batch is read, carried through and written before the next one is read. So between two calls this process
holds no packet in its hand, which is when ownership may change, and a crash loses one batch at most.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from oxidize.net.udp import UdpSocket
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.counters import DROPS_START, Counters, DropReason
from oxidize.protocol.device import Device

BATCHES_PER_EVENT_MAX = 8  # then the other sources have their turn


class Tunnel(Protocol):
    """The tunnel's inside: a TUN device, or the userspace network."""

    def fileno(self) -> int | None:
        """Return what becomes readable when packets wait, or None where they are ready after each write."""

    def read_packets(self, limit: int) -> Sequence[bytes | memoryview]:
        """Return up to `limit` packets that leave through the tunnel, without waiting."""

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """Take packets that came through the tunnel; return how many were not taken."""


class DataPath:
    """Carries batches both ways.

    now: returns the loop's time. write_drop: the reason that counts what the network refuses.
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
        """Carry what waits in the UDP socket to the tunnel's network."""
        device, tunnel = self.device, self.tunnel
        for _ in range(BATCHES_PER_EVENT_MAX):
            batch = self.udp.receive()
            if batch is None:
                if self.udp.unreachable:
                    self._tell_unreachable()
                return
            if batch.truncated:
                self._counters[DROPS_START + DropReason.TRUNCATED] += 1
            packets = device.receive_datagrams(batch.datagrams, batch.endpoint, self._now())
            if packets:
                refused = tunnel.write_packets(packets)
                if refused:
                    self._counters[self._write_drop_word] += refused
                if self._replies_at_once:
                    self.from_tunnel()
            self.flush()

    def from_tunnel(self) -> None:
        """Carry what waits in the tunnel's network to the peers."""
        for _ in range(BATCHES_PER_EVENT_MAX):
            packets = self.tunnel.read_packets(BATCH_PACKETS_MAX)
            if packets:
                self.device.send_packets(packets, self._now())
                self.flush()
            if len(packets) < BATCH_PACKETS_MAX:
                return

    def flush(self) -> None:
        """Send what the device has queued."""
        for transmit in self.device.take_transmits():
            taken = self.udp.transmit(transmit.endpoint, transmit.datagrams)
            failed = len(transmit.datagrams) - taken
            if failed:
                self._counters[DROPS_START + DropReason.SEND_FAILED] += failed
        if self.udp.unreachable:
            self._tell_unreachable()

    def _tell_unreachable(self) -> None:
        errors, self.udp.unreachable = self.udp.unreachable, []
        now = self._now()
        for remote, refused in dict.fromkeys(errors):
            self.device.note_unreachable(remote, now, refused=refused)

    # --- What the loop asks for: the device's timers ---

    def next_deadline(self) -> float | None:
        """Return when the device's next timer ends."""
        return self.device.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Let the device do what is due, and send what comes of it."""
        self.device.handle_timeout(now)
        self.flush()
