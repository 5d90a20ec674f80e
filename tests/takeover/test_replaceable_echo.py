"""The example server on `oxidize.takeover` alone, replaced under traffic: no datagram is lost, none is echoed twice."""

import ast
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import oxidize.takeover
from oxidize.errors import StateError
from oxidize.takeover import Upgrader, query

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "replaceable_echo.py"
WAIT_SECS = 20.0
INTERVAL_SECS = 0.001

# The example, with one step of the public interface replaced by a failure.
WITH_FAULT = """
import os, runpy, signal, sys
from oxidize.takeover import Upgrader

def fail(*arguments):
    raise RuntimeError("planted failure")

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(Upgrader, sys.argv[1], {"fail": fail, "die": die}[sys.argv[2]])
sys.argv = [sys.argv[3], *sys.argv[4:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.handoff


class Traffic(threading.Thread):
    """Sends numbered datagrams to the server and counts how often each comes back."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.echoes: Counter[int] = Counter()
        self.sent = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))
        self._socket.settimeout(INTERVAL_SECS)
        self._is_stopping = threading.Event()

    def run(self) -> None:
        while not self._is_stopping.is_set():
            self._socket.send(self.sent.to_bytes(8, "big"))
            self.sent += 1
            self._receive()
        deadline = time.monotonic() + WAIT_SECS
        while len(self.echoes) < self.sent and time.monotonic() < deadline:
            self._receive()
        self._receive()  # a second echo would be here by now
        self._socket.close()

    def _receive(self) -> None:
        try:
            while True:
                self.echoes[int.from_bytes(self._socket.recv(64), "big")] += 1
        except TimeoutError:
            pass

    def wait_for_an_echo(self) -> None:
        """Wait until a datagram is echoed that is sent from now on: some process serves."""
        first = self.sent + 1
        deadline = time.monotonic() + WAIT_SECS
        while not any(number >= first for number in list(self.echoes)[-8:]):
            assert time.monotonic() < deadline, "no process serves"
            time.sleep(0.01)

    def stop(self) -> None:
        self._is_stopping.set()
        self.join()


class Bench:
    """The processes of the example at one port and one takeover socket."""

    def __init__(self, folder: Path) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.path = folder / "echo.sock"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *fault: str) -> subprocess.Popen[str]:
        program = ["-c", WITH_FAULT, *fault, str(EXAMPLE)] if fault else [str(EXAMPLE)]
        command = [sys.executable, *program, f"127.0.0.1:{self.port}", str(self.path)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return self.processes[-1]

    def serving(self) -> tuple[int, int, int]:
        """Return the generation, the pid and the number of echoes of the process that serves."""
        answer = query(self.path, "status")
        assert answer is not None, "no process listens"
        _, generation, _, pid, echoes, _ = answer.decode().replace(",", "").split()
        return int(generation), int(pid), int(echoes)

    def wait_for_generation(self, generation: int) -> int:
        """Wait until a generation serves, and return its pid."""
        deadline = time.monotonic() + WAIT_SECS
        while not self.path.exists() or self.serving()[0] < generation:
            assert time.monotonic() < deadline, f"generation {generation} does not serve"
            time.sleep(0.01)
        return self.serving()[1]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for process in bench.processes:
        process.kill()
        process.communicate()


@pytest.fixture
def traffic(bench: Bench) -> Iterator[Traffic]:
    bench.start()
    bench.wait_for_generation(1)
    traffic = Traffic(bench.port)
    traffic.start()
    yield traffic
    traffic.stop()


def assert_every_datagram_was_echoed_once(bench: Bench, traffic: Traffic) -> None:
    traffic.stop()
    assert traffic.sent > 0
    assert traffic.echoes == Counter(range(traffic.sent))
    assert bench.serving()[2] == traffic.sent  # the count went along, so no other process echoed one of them


def test_the_example_is_replaced_several_times_without_a_lost_datagram(bench: Bench, traffic: Traffic) -> None:
    for generation in range(2, 7):
        before = bench.processes[-1]
        after = bench.start()
        assert before.wait(WAIT_SECS) == 0
        assert bench.wait_for_generation(generation) == after.pid
    assert_every_datagram_was_echoed_once(bench, traffic)


@pytest.mark.parametrize("step", ["ready", "serve"], ids=["before it is ready", "after the commit"])
@pytest.mark.parametrize(("how", "status"), [("fail", 1), ("die", -signal.SIGKILL)])
def test_a_successor_that_fails_leaves_the_first_process_serving(
    bench: Bench, traffic: Traffic, step: str, how: str, status: int
) -> None:
    first = bench.processes[0]
    failing = bench.start(step, how)
    _, errors = failing.communicate(timeout=WAIT_SECS)
    assert failing.returncode == status
    assert ("planted failure" in errors) is (how == "fail")
    traffic.wait_for_an_echo()  # a predecessor that is still thawing would answer a further successor BUSY
    assert bench.serving()[:2] == (1, first.pid)
    after = bench.start()
    assert bench.wait_for_generation(2) == after.pid
    assert first.wait(WAIT_SECS) == 0
    errors = first.stderr.read() if first.stderr is not None else ""
    assert ("planted failure" in errors) is (how == "fail")
    assert_every_datagram_was_echoed_once(bench, traffic)


def test_a_process_that_dies_leaves_its_port_and_path_to_the_next_one(bench: Bench) -> None:
    first = bench.start()
    bench.wait_for_generation(1)
    first.kill()
    first.wait()
    bench.start()
    deadline = time.monotonic() + WAIT_SECS
    while query(bench.path, "status") is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bench.serving() == (1, bench.processes[-1].pid, 0)


def test_the_example_uses_the_public_names_alone() -> None:
    imports = [node for node in ast.walk(ast.parse(EXAMPLE.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module is not None and node.module.startswith("oxidize")]
    assert [node.module for node in ours] == ["oxidize.takeover"]
    assert {alias.name for alias in ours[0].names} <= set(oxidize.takeover.__all__)


def test_an_upgrader_that_does_not_serve_yet_has_nothing_to_process(tmp_path: Path) -> None:
    with Upgrader(tmp_path / "echo.sock", release="1.0") as upgrader:
        assert upgrader.connect() is None
        assert upgrader.ready({}).info == {}
        with pytest.raises(StateError, match="expected serve"):
            upgrader.process()
