"""What runs although no process listens at the path is told with the way to reach it; nothing is where nothing runs."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from oxidize.control import who_runs as module
from oxidize.control.who_runs import HOLDER_NAME, holders_of, who_runs
from oxidize.service_manager import systemctl
from oxidize.takeover.path_lock import PathLock

HOLDER = (
    "import sys, pathlib, signal; from oxidize.takeover.path_lock import PathLock; "
    "print(PathLock(pathlib.Path(sys.argv[1])).take(), flush=True); signal.pause()"
)
OWNER = (
    "import signal, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); "
    "print(s.getsockname()[1], flush=True); signal.pause()"
)


@contextmanager
def program(text: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """Run a program until the end of the context; yield its pid and its first line."""
    with subprocess.Popen([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.sock"


def test_nothing_is_told_where_nothing_runs(path: Path) -> None:
    assert who_runs(path) == []
    PathLock(path).path.touch()
    assert who_runs(path) == []


@pytest.mark.parametrize("is_removed", [False, True], ids=["there", "removed"])
def test_the_holder_of_the_lock_is_told(path: Path, *, is_removed: bool) -> None:
    with program(HOLDER, str(path)) as (pid, line):
        assert line == "True"
        if is_removed:
            PathLock(path).path.unlink()
        (told,) = who_runs(path)
    assert told.startswith(f"pid {pid} runs all the same: it holds the lock {path}.lock; ")
    assert told.endswith(f"try again, or end it with `kill {pid}`, and start it")


def test_a_process_that_only_waits_for_the_lock_is_not_told(path: Path) -> None:
    PathLock(path).path.touch()
    with program("import signal, sys; f = open(sys.argv[1]); print(1, flush=True); signal.pause()", f"{path}.lock"):
        assert who_runs(path) == []


def test_the_owner_of_the_udp_port_is_told(path: Path) -> None:
    with program(OWNER) as (pid, port):
        (told,) = who_runs(path, int(port))
        assert told.startswith(f"pid {pid} runs all the same: it has UDP port {port}; ")
        assert who_runs(path, 0) == []


def test_a_holder_that_no_generation_serves_under_is_called_one(path: Path) -> None:
    with program(f"open('/proc/self/comm', 'w').write('{HOLDER_NAME}'); {OWNER}") as (pid, port):
        (told,) = who_runs(path, int(port))
    assert told.endswith(
        f"it is a holder, and starts the next process: its log says why that fails; end it with `kill {pid}`"
    )


def holder(path: Path) -> AbstractContextManager[tuple[int, str]]:
    """Run a program with the command line of a holder that has forked what it has not executed yet."""
    forked = "import os, signal; pid = os.fork(); print(pid, flush=True) if pid else None; signal.pause()"
    return program(forked, "oxidize.holder", "server", "/srv/server.toml", "info", str(path))


def test_a_holder_is_found_by_the_path_that_it_was_started_for(path: Path) -> None:
    with holder(path) as (pid, forked):
        assert holders_of(path) == [pid]
        (told,) = who_runs(path)
        assert holders_of(path.with_name("other.sock")) == []
        os.kill(int(forked), signal.SIGKILL)
    assert told.startswith(f"pid {pid} runs all the same: it was started for {path}; ")
    assert holders_of(path) == []


@pytest.mark.root
def test_a_holder_of_another_user_or_in_a_container_is_not_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(path) as (pid, forked):
        monkeypatch.setattr(module, "ROOT", -1)
        monkeypatch.setattr(os, "geteuid", lambda: 1)
        assert holders_of(path) == [pid]  # of the owner of the folder
        os.chown(path.parent, 2, 2)
        assert holders_of(path) == []
        monkeypatch.undo()
        assert holders_of(path) == [pid]
        monkeypatch.setattr(Path, "samefile", lambda *_: False)  # another root directory
        assert holders_of(path) == []
        os.kill(int(forked), signal.SIGKILL)


def test_of_a_server_and_the_parent_that_keeps_its_sockets_the_server_is_told(path: Path) -> None:
    with program(OWNER) as (_, port), program(HOLDER, str(path)) as (pid, _):
        (told,) = who_runs(path, int(port))
    assert told.startswith(f"pid {pid} runs all the same: it holds the lock {path}.lock; ")


def test_the_command_itself_is_not_told(path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        assert who_runs(path, own.getsockname()[1]) == []


def test_the_main_process_of_the_unit_is_told_with_its_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "takeover.sock"
    monkeypatch.setattr(module, "UNITS", {str(tmp_path): "oxidize-daemon.service"})
    monkeypatch.setattr(systemctl, "property_of", lambda *_: str(os.getppid()))
    monkeypatch.setattr(systemctl, "service_of", lambda _: "oxidize-daemon.service")
    (told,) = who_runs(path)
    assert told.startswith(f"pid {os.getppid()} runs all the same: it is the main process of oxidize-daemon.service; ")
    assert "try again, or `systemctl reload oxidize-daemon.service`, for which systemd makes the folder again" in told
    assert told.endswith("`systemctl restart oxidize-daemon.service` keeps the sessions, too")


@pytest.mark.parametrize(
    ("folder", "load_state", "expected"),
    [
        ("/run/oxidize", "loaded", "`systemctl start oxidize-daemon.service`"),
        ("/run/oxidize-client", "loaded", "`systemctl start oxidize-client.service`"),
        ("/run/oxidize", "not-found", None),
        ("/run/oxidize", None, None),
        ("/srv/other", "loaded", None),
    ],
)
def test_an_installed_service_is_started_by_systemd(
    monkeypatch: pytest.MonkeyPatch, folder: str, load_state: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(systemctl, "property_of", lambda unit, name: {"LoadState": load_state}[name])
    way = module.way_to_start(Path(folder, "takeover.sock"))
    assert (way is None) == (expected is None)
    assert expected is None or (way is not None and expected in way)
