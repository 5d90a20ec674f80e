"""A benchmark that is interrupted at any point leaves no process, and with that none of its unnamed namespaces."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.traffic.server import wait_for
from tests.support.traffic.wireguard_go import CONTROL

ROOT = Path(__file__).parents[2]
ROOTS = (pytest.mark.root, pytest.mark.needs("wireguard-go", "ping", "taskset"))


# A benchmark that starts a process and prints nothing, so that no broken pipe ends it.
SILENT = """\
import signal, subprocess
from benchmarks.owner import run
run(lambda: (subprocess.Popen(["sleep", "600"]), signal.pause()))
"""
OWNER_OF_SILENT = """\
import os, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]], env={**os.environ, "BENCHMARK_OWNER": str(os.getpid())})
"""


class Interruptible:
    """A Python in a process group of its own; all its descendants inherit a mark in their environment."""

    def __init__(self, folder: str, *arguments: str) -> None:
        self._folder = Path(folder)
        self._mark = f"BENCHMARK_TEST={secrets.token_hex(8)}".encode()
        key, _, value = self._mark.decode().partition("=")
        command = [sys.executable, *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, key: value, "TMPDIR": folder},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def commands(self) -> dict[int, str]:
        """Return pid and command line of every process with the mark, the one that was started here included."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, word: str) -> int:
        """Wait for a process with `word` in its command line."""
        return wait_for(word, lambda: next((pid for pid, line in self.commands().items() if word in line), 0))

    def assert_nothing_is_left(self) -> None:
        """Fail if a process, a temporary file, or a mount that names one is left."""
        assert self.commands() == {}
        assert list(self._folder.iterdir()) == []
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        assert [line for line in mounts if str(self._folder) in line] == []

    def end(self) -> None:
        """Kill whatever is left."""
        for pid in self.commands():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def python(*arguments: str) -> Iterator[Interruptible]:
    with tempfile.TemporaryDirectory() as folder:  # what was killed leaves its files there
        started = Interruptible(folder, *arguments)
        try:
            yield started
        finally:
            started.end()


def control_sockets(commands: Iterable[str]) -> list[Path]:
    """Return the paths of the control sockets of all wireguard-go among the commands."""
    return [CONTROL / f"{line.split()[-1]}.sock" for line in commands if "wireguard-go -f" in line]


@pytest.mark.parametrize(
    ("name", "word", "number"),
    [
        pytest.param("blackout", "benchmarks.bench_", signal.SIGTERM, id="before it has started anything"),
        pytest.param("blackout", "oxidize reload", signal.SIGINT, id="in a reload"),
        pytest.param("reconnect", "wireguard-go", signal.SIGHUP, id="beside wireguard-go", marks=ROOTS),
        pytest.param("singles", "benchmarks.player", signal.SIGTERM, id="under load", marks=ROOTS),
        pytest.param("idle", "bin/ping", signal.SIGINT, id="between two ends", marks=ROOTS),
        pytest.param("crash", "oxidize server", signal.SIGTERM, id="at the start of a server", marks=ROOTS),
    ],
)
def test_an_interrupted_benchmark_leaves_nothing_behind(name: str, word: str, number: signal.Signals) -> None:
    with python("-m", "benchmarks", name) as started:
        started.pid_of(word)
        paths = control_sockets(started.commands().values())
        started.process.send_signal(number)
        assert started.process.wait(30) == 128 + number
        started.assert_nothing_is_left()
        assert [path for path in paths if path.exists()] == []


def test_a_killed_benchmark_leaves_nothing_behind() -> None:
    with python("-m", "benchmarks", "blackout") as started:
        started.pid_of("oxidize server")
        os.kill(started.pid_of("benchmarks.bench_"), signal.SIGKILL)
        assert started.process.wait(30) == 1
        assert started.commands() == {}


def test_a_benchmark_whose_owner_is_killed_ends_by_itself() -> None:
    with python("-c", OWNER_OF_SILENT, SILENT) as started:
        started.pid_of("sleep 600")
        started.process.kill()
        wait_for("the end of all", lambda: started.commands() == {})


@pytest.mark.parametrize(
    ("name", "word"),
    [
        pytest.param("blackout", "oxidize reload", id="in a reload"),
        pytest.param("singles", "benchmarks.player", id="under load", marks=ROOTS),
    ],
)
def test_a_run_of_benchmarks_that_is_killed_leaves_nothing_behind(name: str, word: str) -> None:
    with python("-m", "benchmarks", name) as started:
        started.pid_of(word)
        started.process.kill()
        wait_for("the end of all", lambda: started.commands() == {})
        started.process.wait()
