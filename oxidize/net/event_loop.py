"""The event loop: one thread, one epoll, and the only reader of clocks.

The rule: a callback that was unregistered is never called again, not even for an event of the same poll, nor is what
was timed and removed. After a hand-off that is what keeps a predecessor off the sockets that are its successor's now.

Sources: epoll(7); clock_gettime(2) for CLOCK_BOOTTIME, which goes on across generations and through a suspend.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
EVENTS_MAX = 64  # events taken from one poll
IDLE_WAIT_SECS = 60.0  # a poll ends at the latest after this; nothing depends on it


class Timed(Protocol):
    """Something that must be called when its deadline has come."""

    def next_deadline(self) -> float | None:
        """Return when, on the loop's clock, or None."""

    def handle_timeout(self, now: float) -> None:
        """Do what is due; called too early, do nothing."""


def boot_time() -> float:
    """Return the seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def unix_time() -> float:
    """Return the seconds since the epoch, for timestamps and for people."""
    return time.time()


class Loop:
    """Calls back for readable file descriptors, ended deadlines and signals, until it is stopped."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timed: list[Timed] = []
        self._signals: dict[int, Callable[[], None]] = {}
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wakeup_read, select.EPOLLIN)
        self._callbacks[self._wakeup_read] = self._handle_signals
        self.stopped = False

    now = staticmethod(boot_time)

    def register(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call back while one of `events` holds for `fd`; a second call replaces the first."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        """Never call back for `fd` again; a no-op where nothing is registered."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def add_timed(self, timed: Timed) -> None:
        """Watch the deadlines of `timed` from now on; a no-op where they are watched already."""
        if timed not in self._timed:
            self._timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        """Watch them no longer; a no-op where they were not watched."""
        if timed in self._timed:
            self._timed.remove(timed)

    def on_signal(self, number: signal.Signals, callback: Callable[[], None]) -> None:
        """Call back, from the loop and not from the handler, when the signal has come."""
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self._signals[number] = callback
        signal.signal(number, _noted_by_wakeup_fd)

    def run_once(self, timeout_secs: float | None = None) -> None:
        """Wait for events until the next deadline, at most `timeout_secs`, and call back for all of them."""
        for fd, _ in self._epoll.poll(self._wait_secs(timeout_secs), EVENTS_MAX):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
        now = self.now()
        for timed in tuple(self._timed):
            due = timed.next_deadline()
            if due is not None and due <= now and timed in self._timed:  # else another one's timeout removed it
                timed.handle_timeout(now)

    def run(self) -> None:
        """Run until `stop`."""
        while not self.stopped:
            self.run_once()

    def stop(self) -> None:
        """Make `run` return after the present iteration."""
        self.stopped = True

    def close(self) -> None:
        """Give up the loop's own file descriptors; what was registered stays its owner's."""
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


def _noted_by_wakeup_fd(number: int, frame: FrameType | None) -> None:
    """Let Python write the signal's number to the wakeup fd; the loop does the rest."""
