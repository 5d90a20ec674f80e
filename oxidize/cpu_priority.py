"""How much processor time a process gets beside others: less, while it prepares to replace the one that serves.

The rule: the priority is lowered only where it can be raised again, which takes a right or RLIMIT_NICE; whether it can
is tried first, in a thread, for a nice value belongs to a thread. It is the one before again when the preparation has
ended, or after LOW_SECS_MAX: on a machine that is busy at all times it would never end. Whatever the kernel refuses is
no reason to do without the process.

Sources: sched(7), "The nice value"; setpriority(2), "C library/kernel differences"; getrlimit(2), RLIMIT_NICE.
"""

import contextlib
import os
import threading

# A weight of a tenth beside a process of nice 0 that never sleeps: what serves keeps nine tenths of such a processor.
LOW_NICE = 10
# A third of what a predecessor and a coordinator allow for a preparation: the rest is enough for one at full priority.
LOW_SECS_MAX = 10.0


class CpuPriority:
    """The priority of the thread that makes this object."""

    def __init__(self) -> None:
        self._thread = threading.get_native_id()
        self._before: int | None = None  # while it is lowered
        self._clock: threading.Timer | None = None

    def __enter__(self) -> "CpuPriority":
        self.lower()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def lower(self) -> None:
        """Give way to other processes, if that can be undone; idempotent."""
        before = os.getpriority(os.PRIO_PROCESS, self._thread)
        if self._before is not None or before >= LOW_NICE or not _can_be_undone():
            return
        with contextlib.suppress(OSError, RuntimeError):  # no room for a thread: then nothing is lowered
            self._clock = threading.Timer(LOW_SECS_MAX, self._raise, [before])
            self._clock.daemon = True  # a process that fails does not wait for it
            self._clock.start()
            os.setpriority(os.PRIO_PROCESS, self._thread, LOW_NICE)
            self._before = before

    def restore(self) -> None:
        """Return to the priority before, and leave no thread behind; idempotent."""
        before, self._before = self._before, None
        if self._clock is not None:
            self._clock.cancel()
            self._clock.join()
            self._clock = None
        if before is None:
            return
        self._raise(before)
        if (found := os.getpriority(os.PRIO_PROCESS, self._thread)) != before:
            import logging  # noqa: PLC0415  # a reload imports none

            text = "nice %d instead of %d: the kernel refuses what it has allowed before"
            logging.getLogger(__name__).warning(text, found, before)

    def _raise(self, nice: int) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._thread, nice)


def _can_be_undone() -> bool:
    """Return whether this process may raise its priority: some rights say so in vain (user_namespaces(7))."""
    undone = []

    def attempt() -> None:
        own, before = 0, os.getpriority(os.PRIO_PROCESS, 0)  # of this thread
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, own, before + 1)
            os.setpriority(os.PRIO_PROCESS, own, before)
            undone.append(True)

    with contextlib.suppress(RuntimeError):  # no room for a thread
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    return bool(undone)
