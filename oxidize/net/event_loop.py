"""The event loop: one thread, one epoll, one clock.

The rule: an unregistered callback is never called again, not even for an event of the same poll; nor is a removed
timer. After a hand-off, this keeps a predecessor off the sockets that its successor owns.

While events come, the deadlines are looked at once in BURST_SECS: a look takes as long as a packet, and would stand
between a packet and its reply.

Source: epoll(7).
"""

import os
import select
import signal
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from oxidize.clock import boot_time

READABLE = select.EPOLLIN
EVENTS_MAX = 64  # events taken from one poll
IDLE_WAIT_SECS = 60.0  # the longest poll; nothing depends on it
BURST_SECS = 0.001  # of events without a pause, after which deadlines are looked at; timers have no finer resolution


class Timed(Protocol):
    """An object with a deadline."""

    def next_deadline(self) -> float | None:
        """Return the deadline on the loop's clock, or None."""

    def handle_timeout(self, now: float) -> None:
        """Do the work that is due; do nothing if called too early."""


class Loop:
    """Calls back for ready file descriptors, expired deadlines and signals, until it is stopped."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timed: list[Timed] = []
        self._signals: dict[int, Callable[[], None]] = {}
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wakeup_read, select.EPOLLIN)
        self._callbacks[self._wakeup_read] = self._handle_signals
        self.stopped = False
        self.longest_pause_secs = 0.0  # in which no descriptor was looked at, while that is measured
        self._looked_at: float | None = None  # the latest look at them; None: it is not measured
        self._burst_since: float | None = None  # when events began to come, or deadlines were looked at then

    now = staticmethod(boot_time)

    def register(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` while one of `events` holds for `fd`; a second registration replaces the first.

        Raises OSError for one that is new, where the kernel has no room for it (ENOSPC, ENOMEM).
        """
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        """Stop calling back for `fd`; a no-op if it is not registered."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def pause(self, fd: int) -> None:
        """Stop calling back for `fd`, and keep its place in the kernel: the next `register` cannot fail for room.

        A no-op if it is not registered.
        """
        if fd in self._callbacks:
            # Without ONESHOT an error or a hang-up, which cannot be masked, would wake the loop for ever.
            self._epoll.modify(fd, select.EPOLLONESHOT)
            self._callbacks[fd] = _do_nothing

    def add_timed(self, timed: Timed) -> None:
        """Watch the deadlines of `timed`; a no-op if they are watched already."""
        if timed not in self._timed:
            self._timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        """Stop watching the deadlines of `timed`; a no-op if they are not watched."""
        if timed in self._timed:
            self._timed.remove(timed)

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` after the signal has arrived, from the loop and not from the signal handler."""
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self._signals[number] = callback
        signal.signal(number, _noted_by_wakeup_fd)

    def run_once(self, timeout_secs: float | None = None) -> None:
        """Wait for events until the next deadline, at most `timeout_secs`, and call back for each of them."""
        ready = self._poll(0.0) if self._burst_since is not None else []
        if not ready:
            self._burst_since = None
            ready = self._poll(self._wait_secs(timeout_secs))
        for fd, _ in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
        now, since = self.now(), self._burst_since
        # A caller with a limit has other work, and may not come again at once.
        if not ready or timeout_secs is not None or (since is not None and now - since >= BURST_SECS):
            self._handle_timeouts(now)
            self._burst_since = now if ready else None
        elif since is None:
            self._burst_since = now

    def _poll(self, wait_secs: float) -> list[tuple[int, int]]:
        if self._looked_at is not None:
            self.longest_pause_secs = max(self.longest_pause_secs, self.now() - self._looked_at)
        ready = self._epoll.poll(wait_secs, EVENTS_MAX)
        if self._looked_at is not None:
            self._looked_at = self.now()
        return ready

    def _handle_timeouts(self, now: float) -> None:
        for timed in tuple(self._timed):
            due = timed.next_deadline()
            if due is not None and due <= now and timed in self._timed:  # else another timeout removed it
                timed.handle_timeout(now)

    def measure_pauses(self, since: float | None) -> None:
        """Measure `longest_pause_secs` from now on, the first pause from `since`; None: measure it no more."""
        self._looked_at = since
        self.longest_pause_secs = 0.0

    def run(self) -> None:
        """Run until `stop` is called."""
        while not self.stopped:
            self.run_once()

    def stop(self) -> None:
        """Make `run` return after the current iteration."""
        self.stopped = True

    def close(self) -> None:
        """Close the loop's own file descriptors; registered ones stay their owners'."""
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    def _wait_secs(self, timeout_secs: float | None) -> float:
        wait = IDLE_WAIT_SECS if timeout_secs is None else timeout_secs
        deadlines = [due for timed in self._timed if (due := timed.next_deadline()) is not None]
        if deadlines:
            wait = min(wait, max(0.0, min(deadlines) - self.now()))
        return wait

    def _handle_signals(self) -> None:
        for number in os.read(self._wakeup_read, 256):
            callback = self._signals.get(number)
            if callback is not None:
                callback()


def _do_nothing() -> None:
    """Take the place of a callback while its descriptor is paused."""


def _noted_by_wakeup_fd(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python writes the signal's number to the wakeup fd, which the loop reads."""
