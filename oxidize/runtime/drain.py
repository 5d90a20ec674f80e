"""Draining: the end of service without a successor.

The rule: who has a session keeps it until nobody uses theirs any more or the time is up; nobody gets a new one.
"""

from typing import TYPE_CHECKING

from oxidize import logs
from oxidize.protocol.words import Total
from oxidize.runtime.loop import Loop, boot_time

if TYPE_CHECKING:
    from oxidize.runtime.node import Node

IDLE_SECS = 3.0  # without a packet in either direction: nobody would notice the end
CHECK_SECS = 0.25

log = logs.get(__name__)


class Drain:
    """Watches a node's traffic once `begin` was called, and stops the loop in the end."""

    def __init__(self, node: "Node", loop: Loop) -> None:
        self._node = node
        self._loop = loop
        self._ends_at = 0.0
        self._due_at = 0.0
        self._packets = -1
        self._moved_at = 0.0

    def begin(self, timeout_secs: float) -> None:
        """Refuse new handshakes, and end after `timeout_secs` or when every session is idle."""
        now = boot_time()
        self._node.device.accepting = False
        self._ends_at = now + timeout_secs
        self._due_at = self._moved_at = now
        self._loop.add_timed(self)
        sessions = self._node.device.live_sessions(now)
        log.info("draining", timeout_secs=timeout_secs, sessions=sessions)

    def next_deadline(self) -> float:
        """Return when the traffic is looked at next."""
        return min(self._due_at, self._ends_at)

    def handle_timeout(self, now: float) -> None:
        """Stop the loop if the time is up, no session is left, or nothing has moved for IDLE_SECS."""
        self._due_at = now + CHECK_SECS
        words = self._node.words
        packets = words[Total.RECEIVED_PACKETS] + words[Total.SENT_PACKETS]
        if packets != self._packets:
            self._packets, self._moved_at = packets, now
        sessions = self._node.device.live_sessions(now)
        if now >= self._ends_at or not sessions or now - self._moved_at >= IDLE_SECS:
            log.info("drained", sessions=sessions, in_time=now < self._ends_at)
            self._loop.stop()
