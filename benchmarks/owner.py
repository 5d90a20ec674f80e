"""The owner of all that a benchmark starts: however it is interrupted, no process is left, and so no namespace.

Rule: a signal that ends a program becomes an exception, so what is open is closed in order; what has survived that is
killed, orphans included, and then their temporary files go. The namespaces have no names: each ends with the last
process inside. A benchmark that `make bench` started ends with it, even where that was killed. Sources: signal(7),
prctl(2) PR_SET_PDEATHSIG.
"""

import ctypes
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from demo.processes import children, end_children
from oxidize.holder.processes import Subreaper

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OWNER = "BENCHMARK_OWNER"  # the environment's name of the pid without which a benchmark ends
_PR_SET_PDEATHSIG = 1


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the cleaning
    raise SystemExit(128 + number)  # as a shell tells of a signal


@contextmanager
def owner() -> Iterator[set[int]]:
    """End all processes that are started while entered, and all that they have started, at exit.

    The value is the pids of the children that were there before, which are spared. Temporary files are made in a folder
    that is removed at last, for a process writes there until it ends.
    """
    Subreaper().enter()
    spared = children()
    for number in ENDING:
        signal.signal(number, _interrupt)
    outside = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:  # short: it is part of the paths of sockets
        try:
            tempfile.tempdir = os.environ["TMPDIR"] = folder
            yield spared
        finally:
            tempfile.tempdir = os.environ["TMPDIR"] = outside
            end_children(spared)


def run(main: Callable[[], None]) -> None:
    """Run a benchmark that ends with the process named in the environment."""
    with owner():
        if expected := os.environ.get(OWNER):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != int(expected):  # it ended before the kernel was asked to tell
                return
        main()
