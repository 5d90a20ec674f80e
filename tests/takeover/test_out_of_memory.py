"""The kernel's OOM killer, where a reload needs more memory than there is: it ends the newcomer, never the server."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, Lab, Server, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("choom")]

PACKETS_PER_SECOND = 200.0
MEBIBYTE = 1 << 20
# Of room for a reload, up to what it needs: the least lets its command begin, and no successor.
ROOM = tuple(mebibytes * MEBIBYTE for mebibytes in range(18, 60))
# The server's own score: the kernel would take it before any process that has not raised its own.
SERVER_SCORE = 200


class MemoryCgroup:
    """A cgroup with a limit of memory, of version 2 where that has the controller, else of version 1."""

    def __init__(self, name: str) -> None:
        unified, legacy = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
        self._is_unified = not legacy.is_dir()
        self.folder = (unified if self._is_unified else legacy) / name
        if self._is_unified:
            (unified / "cgroup.subtree_control").write_text("+memory")
        self.folder.mkdir()

    def remove(self) -> None:
        def is_removed() -> bool:
            with contextlib.suppress(OSError):  # a process in it has not ended yet
                self.folder.rmdir()
            return not self.folder.exists()

        wait_for("the cgroup to be empty", is_removed)

    def command(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs the given one inside."""
        return ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command)

    def limit(self, size: int) -> None:
        (self.folder / ("memory.max" if self._is_unified else "memory.limit_in_bytes")).write_text(str(size))

    def anonymous(self) -> int:
        """Return the bytes that no file holds."""
        return self._read("memory.stat", "anon" if self._is_unified else "rss")

    def kills(self) -> int:
        """Return how many processes the OOM killer has ended here."""
        return self._read("memory.events" if self._is_unified else "memory.oom_control", "oom_kill")

    def _read(self, file: str, key: str) -> int:
        rows = (line.split() for line in (self.folder / file).read_text().splitlines())
        return int(next(value for name, value in rows if name == key))


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    cgroup = MemoryCgroup(f"oxidize-test-{os.getpid()}")
    yield cgroup
    cgroup.remove()


@pytest.fixture
def lab(tmp_path: Path, cgroup: MemoryCgroup) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def score_of(pid: int | str) -> str:
    return Path("/proc", str(pid), "oom_score_adj").read_text()


def test_a_successor_that_the_oom_killer_ends_takes_no_server_along(lab: Lab, cgroup: MemoryCgroup) -> None:
    client = EchoClient(2)
    lab.stack.callback(client.socket.close)
    server = Server(lab, [client.table()])
    pid = server.start(program=cgroup.command("choom", "-n", str(SERVER_SCORE), "--", *OXIDIZE))
    reload = cgroup.command(*OXIDIZE, "reload", "-c", str(server.config_path))
    with Traffic(server, [client], PACKETS_PER_SECOND) as traffic:
        failed = ""
        for room in ROOM:
            killed = cgroup.kills()
            cgroup.limit(cgroup.anonymous() + room)
            outcome = run(reload)
            if outcome.returncode == 0:
                break
            failed += outcome.stderr
            assert cgroup.kills() > killed, outcome
            assert server.status()["pid"] == pid, outcome
            traffic.wait_for_more()
        assert "failed while preparing" in failed
        assert "failed while taking over" in failed
        assert server.status()["generation"] == 2
        wait_for("the score of a process that serves", lambda: score_of(server.status()["pid"]) == score_of("self"))
        traffic.assert_unharmed()
