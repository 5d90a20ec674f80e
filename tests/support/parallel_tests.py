"""Run long tests that mostly wait in a pytest of their own, in parallel with tests that only compute.

The rule: the outcome and output are those of the test itself; if no computing test is selected, the test runs in its
place. Tests that measure traffic on this machine never run in parallel with each other.
"""

import os
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oxidize.holder.processes import reap, spawn

COMPUTING = ("golden", "properties", "simulation", "unit")  # folders of tests
ALONE = "OXIDIZE_TESTALONE"  # set for the pytest that runs the one test
PRIORITY = -10  # the nice value of a parallel test and of the processes that it starts


@dataclass(eq=False)  # pluggy wants a hash
class ParallelTests:
    """Plugin that starts tests marked `parallel` after the collection and reports their outcomes in their places."""

    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="oxidize-parallel-")))
    _started: dict[str, int] = field(default_factory=dict)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Start the marked tests, and order the computing tests first, then the marked ones."""
        tests = Path(__file__).parents[1]
        computing = [item for item in session.items if item.path.relative_to(tests).parts[0] in COMPUTING]
        marked = [
            item
            for item in session.items
            if item.get_closest_marker("parallel") and not item.get_closest_marker("skip")
        ]
        if session.config.option.collectonly or not computing:
            return
        for item in marked:
            self._start(item)
        first = {*computing, *marked}
        session.items[:] = [*computing, *marked, *(item for item in session.items if item not in first)]

    def _start(self, item: pytest.Item) -> None:
        with self._output(item).open("wb") as output:
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{item.path}::{item.name}"]
            pid = spawn(command, os.environ | {ALONE: "1"}, output.fileno())
            self._started[item.nodeid] = pid
        if os.geteuid() == 0:  # the tests that compute must not decide how much time its processes get
            os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)

    def _output(self, item: pytest.Item) -> Path:
        return self._folder / f"{item.name}.log"

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Wait for the outcome of a started test, and do not call its function here."""
        pid = self._started.pop(pyfuncitem.nodeid, None)
        if pid is None:
            return None
        ended = reap(pid, block=True)
        assert ended is not None
        assert ended.status == 0, self._output(pyfuncitem).read_text(errors="replace")
        return True

    def pytest_unconfigure(self) -> None:
        """Interrupt the tests still running; each ends its own processes (tests.support.traffic.server.Lab)."""
        for pid in self._started.values():
            os.kill(pid, signal.SIGINT)
            reap(pid, block=True)
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()
