"""Both sides of a takeover for one process, in any loop: the successor's first, then the predecessor's.

The rule: the order is connect, ready, serve, and then `process` in each iteration of the loop. A failure before `ready`
returns leaves the process that serves as it was. After a failure between `ready` and the first `process` that process
serves again, as soon as this one has ended.

    with Upgrader(path, release="1.0") as upgrader:
        offer = upgrader.connect()      # None: no process serves, start afresh
        ...                             # restore; read nothing from the descriptors
        commit = upgrader.ready({})     # the process that served has stopped
        ...                             # register the descriptors with the loop
        upgrader.serve(host)            # from here on this process can be replaced in turn
        while not host.is_finished:     # wait until a descriptor or the upgrader is readable, or its deadline has come
            ...                         # its own callbacks
            upgrader.process()          # last, for it may call `host.freeze`

A host with a loop that calls back for descriptors and deadlines may use `Predecessor` and `Successor` themselves.
Source: epoll(7), an epoll descriptor is readable while one of its own is.
"""

import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from oxidize.clock import boot_time
from oxidize.errors import StateError, reason_of
from oxidize.takeover.host import Offer, TakeoverHost
from oxidize.takeover.listener import Listener
from oxidize.takeover.machine import DEFAULT_TIMEOUTS, Timeouts
from oxidize.takeover.path_lock import PathLock
from oxidize.takeover.predecessor import Predecessor
from oxidize.takeover.successor import Commit, Successor


class Upgrader:
    """A process that replaces the one that serves at a path, and then serves there until it is replaced.

    release: for logs and for the other side. state_versions: the versions of the offer's state that this release reads;
    a host that is asked for an offer finds them in `hello.snapshot_versions`.
    """

    def __init__(
        self,
        path: Path,
        *,
        release: str,
        state_versions: Sequence[int] = (1,),
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._path = path
        self._release = release
        self._timeouts = timeouts
        self._lock = PathLock(path)
        self._successor = Successor(
            path, release=release, snapshot_versions=state_versions, timeouts=timeouts, lock=self._lock
        )
        self._predecessor: Predecessor | None = None
        self._is_taken = False
        self._awaits_end = False  # of the process that served before
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close; an error before the first `process` goes to the process that served, as the reason of the failure."""
        if error is not None and self._awaits_end and not self._is_taken:
            self._successor.failed(reason_of(error))
        self.close()

    # --- Before this process serves ---

    def connect(self) -> Offer | None:
        """Return what the process that serves hands over, or None where no process listens at the path.

        The descriptors are the caller's. Raises TakeoverError where that process makes no offer.
        """
        offer = self._successor.connect()
        self._awaits_end = offer is not None
        return offer

    def ready(self, report: dict[str, Any]) -> Commit:
        """Report that all slow work is done and wait until this process owns; an empty Commit where there was no offer.

        Raises TakeoverError where it never will own: the other process still serves, and this one must end.
        """
        return self._successor.ready(report) if self._awaits_end else Commit()

    def serve(self, host: TakeoverHost) -> None:
        """Listen for the next successor; the first `process` then ends the process that served before.

        Raises TakeoverError where the path cannot be bound and the process that served can serve again; without such a
        process the path is tried again.
        """
        self._predecessor = Predecessor(
            Listener(self._path, required=self._awaits_end),
            host,
            release=self._release,
            register=self._register,
            unregister=self._unregister,
            timeouts=self._timeouts,
            held=self._awaits_end,
            lock=self._lock,
        )
        if self._awaits_end:
            self._register(self._successor.predecessor_fd, self._check_end)

    # --- In the loop ---

    def fileno(self) -> int:
        """Return the descriptor to watch: readable while `process` has something to do."""
        return self._epoll.fileno()

    def timeout(self) -> float | None:
        """Return the seconds after which `process` is due although nothing is readable, or None."""
        due = [self._serving().next_deadline(), self._successor.next_deadline() if self._awaits_end else None]
        deadlines = [each for each in due if each is not None]
        return max(0.0, min(deadlines) - boot_time()) if deadlines else None

    def process(self) -> None:
        """Do all that is due, without waiting. The host's methods are called from here.

        Call it last in each iteration: a callback that was due when the host froze must not read.
        """
        predecessor = self._serving()
        if self._awaits_end and not self._is_taken:
            self._successor.taken({})
        self._is_taken = True
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)  # None where an earlier callback of this batch unregistered it
            if callback is not None:
                callback()
        predecessor.handle_timeout(boot_time())
        if self._awaits_end:
            self._check_end()

    def close(self) -> None:
        """Withdraw an open offer and stop listening; idempotent."""
        if self._predecessor is not None:
            self._predecessor.close()
        self._successor.close()
        self._lock.close()  # last: from here on another process may serve
        self._epoll.close()

    def _serving(self) -> Predecessor:
        if self._predecessor is None:
            raise StateError("there is nothing to process; expected serve() before")
        return self._predecessor

    def _check_end(self) -> None:
        """Let further successors in once the process that served before has ended: at most two exist at a time."""
        if self._awaits_end and self._successor.has_predecessor_ended():
            self._awaits_end = False
            self._unregister(self._successor.predecessor_fd)
            self._successor.close()
            self._serving().release()

    def _register(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = on_readable

    def _unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._callbacks[fd]
