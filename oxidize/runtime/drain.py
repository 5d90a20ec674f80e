"""Draining: the end of service without a successor.

The rule: sessions are kept until all of them are idle or the time is up, and no new one is made.
"""

from collections.abc import Callable

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.net.event_loop import Loop
from oxidize.protocol.counters import Counters, Total
from oxidize.protocol.device import Device
from oxidize.service_manager import notify

IDLE_SECS = 3.0  # without a packet in either direction: no client notices the end
CHECK_SECS = 0.25
PATIENCE_SECS = 10  # requested of the service manager at each check, so that it waits as long as the drain takes

log = logs.get(__name__)


class Drain:
    """Watches a device's traffic after `begin`, and calls `then` at the end. `counters`: the device's totals."""

    def __init__(self, device: Device, counters: Counters, loop: Loop) -> None:
        self._device = device
        self._counters = counters
        self._loop = loop
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
        self._device.accepting = False
        self._ends_at = now + timeout_secs
        self._is_over = False
        self._due_at = self._moved_at = now
        self._loop.add_timed(self)
        log.info("draining", timeout_secs=timeout_secs, sessions=self._device.live_sessions(now))

    def cancel(self) -> None:
        """Accept handshakes again, and do not end; idempotent."""
        self._device.accepting = True
        self._ends_at = None
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
            log.info("drained", sessions=sessions, in_time=now < self._ends_at)
            self._then()
