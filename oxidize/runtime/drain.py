"""Draining: the end of service without a successor.

The rules: sessions are kept until all of them are idle or the time is up, and no new one is made. What drains stays
drained: the next generation continues after a takeover and after a crash, by two counters that outlive the process.
"""

from collections.abc import Callable

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.net.event_loop import Loop
from oxidize.protocol.counters import DRAIN_ENDS_NS, DRAIN_GENERATION, Counters, Total
from oxidize.protocol.device import Device
from oxidize.service_manager import notify

IDLE_SECS = 3.0  # without a packet in either direction: no client notices the end
CHECK_SECS = 0.25
PATIENCE_SECS = 10  # requested of the service manager at each check, so that it waits as long as the drain takes

log = logs.get(__name__)


class Drain:
    """Watches a device's traffic after `begin`, and calls `then` at the end. For the owner only.

    counters: the device's totals. generation: returns that of the newest owner.
    """

    def __init__(self, device: Device, counters: Counters, loop: Loop, generation: Callable[[], int]) -> None:
        self._device = device
        self._counters = counters
        self._loop = loop
        self._generation = generation
        self._then: Callable[[], None] = loop.stop
        self._is_over = False
        self._ends_at: float | None = None
        self._due_at = 0.0
        self._packets = -1
        self._moved_at = 0.0

    @property
    def left_secs(self) -> float | None:
        """Seconds until the time is up, 0.0 when the drain has ended, None where there is none."""
        if self._ends_at is None:
            return None
        return 0.0 if self._is_over else max(0.0, self._ends_at - boot_time())

    def begin(self, timeout_secs: float, then: Callable[[], None]) -> None:
        """Refuse new handshakes, and call `then` after `timeout_secs` or when every session is idle.

        A drain that is under way keeps its time limit, and calls this `then` instead of its own.
        """
        self._then = then
        if self._ends_at is not None:
            if self._is_over:
                then()
            return
        now = boot_time()
        # The generation first: a process that is killed between the two leaves no drain, or this one.
        self._counters[DRAIN_GENERATION] = self._generation()
        self._counters[DRAIN_ENDS_NS] = int((now + timeout_secs) * 1e9)
        self._watch(now + timeout_secs, now)
        log.info("draining", timeout_secs=timeout_secs, sessions=self._device.live_sessions(now))

    def resume(self, then: Callable[[], None]) -> bool:
        """Continue the drain of the owner before, or accept handshakes if there is none; return whether there is."""
        counters, generation = self._counters, self._generation()
        if not counters[DRAIN_ENDS_NS] or generation - counters[DRAIN_GENERATION] > 1:
            self.cancel()
            return False
        counters[DRAIN_GENERATION] = generation
        now, ends_at = boot_time(), counters[DRAIN_ENDS_NS] / 1e9
        self._then = then
        self._watch(ends_at, now)
        self._is_over = ends_at <= now
        log.info("draining, as the process before", left_secs=self.left_secs)
        if self._is_over:
            then()
        return True

    def _watch(self, ends_at: float, now: float) -> None:
        self._device.accepting = False
        self._ends_at, self._is_over = ends_at, False
        self._due_at = self._moved_at = now
        self._loop.add_timed(self)

    def cancel(self) -> None:
        """Accept handshakes again, and do not end; idempotent."""
        self._device.accepting = True
        self._ends_at = None
        self._counters[DRAIN_ENDS_NS] = 0
        self._loop.remove_timed(self)

    def next_deadline(self) -> float | None:
        """Return when the traffic is checked next, or None without a drain."""
        return None if self._ends_at is None or self._is_over else min(self._due_at, self._ends_at)

    def handle_timeout(self, now: float) -> None:
        """End if the time is up, no session is left, or no packet has passed for IDLE_SECS."""
        if self._ends_at is None or self._is_over:
            return
        self._due_at = now + CHECK_SECS
        notify.notify(f"EXTEND_TIMEOUT_USEC={PATIENCE_SECS * 1_000_000}")
        counters = self._counters
        packets = counters[Total.RECEIVED_PACKETS] + counters[Total.SENT_PACKETS]
        if packets != self._packets:
            self._packets, self._moved_at = packets, now
        sessions = self._device.live_sessions(now)
        if now >= self._ends_at or not sessions or now - self._moved_at >= IDLE_SECS:
            self._is_over = True
            self._counters[DRAIN_ENDS_NS] = int(now * 1e9)
            log.info("drained", sessions=sessions, in_time=now < self._ends_at)
            self._then()
