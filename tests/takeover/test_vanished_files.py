"""Real servers whose takeover path, folder or metrics address is not to be had: they serve, and get it back."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oxidize.errors import OxidizeError
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, Lab, Server, wait_for

PACKETS_PER_SECOND = 200.0


def is_reached(server: Server) -> bool:
    """Return whether the server answers at its path."""
    with contextlib.suppress(OxidizeError):
        return bool(server.status()["pid"])
    return False


class KnownServer(Server):
    """A server with a takeover socket in a folder of its own, and a port that is known without its status."""

    def __init__(self, lab: Lab, client: EchoClient) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.known_port = int(probe.getsockname()[1])
        super().__init__(lab, [client.table()], listen=f"127.0.0.1:{self.known_port}")
        self.folder = lab.folder / "run"
        self.takeover_socket = self.folder / "takeover.sock"
        self.write_config(takeover_socket=str(self.takeover_socket))

    @property
    def port(self) -> int:
        return self.known_port

    def lines_with(self, text: str) -> list[str]:
        """Return the lines of the log that contain a text."""
        return [line for line in self.log_path.read_text().splitlines() if text in line]


# --- What vanishes, or is replaced, under a server ---


def remove_path(server: KnownServer) -> None:
    server.takeover_socket.unlink()


def remove_path_and_lock(server: KnownServer) -> None:
    for path in server.folder.iterdir():
        path.unlink()


def replace_path_by_a_file(server: KnownServer) -> None:
    server.takeover_socket.unlink()
    server.takeover_socket.write_text("not a socket")


def replace_path_by_a_socket_without_a_process(server: KnownServer) -> None:
    server.takeover_socket.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(server.takeover_socket))


def replace_lock(server: KnownServer) -> None:
    lock = Path(f"{server.takeover_socket}.lock")
    lock.unlink()
    lock.touch(mode=0o600)


def remove_folder(server: KnownServer) -> None:
    shutil.rmtree(server.folder)


def replace_folder(server: KnownServer) -> None:
    server.folder.rename(server.folder.with_name("old"))
    server.folder.mkdir(mode=0o700)


def replace_folder_by_a_file(server: KnownServer) -> None:
    shutil.rmtree(server.folder)
    server.folder.touch()
    wait_for("the loss to be told", lambda: server.lines_with("no process can take over"))
    server.folder.unlink()


VANISHING: tuple[Callable[[KnownServer], None], ...] = (
    remove_path,
    remove_path_and_lock,
    replace_path_by_a_file,
    replace_path_by_a_socket_without_a_process,
    replace_lock,
    remove_folder,
    replace_folder,
    replace_folder_by_a_file,
)


def test_whatever_vanishes_comes_back_under_traffic_and_the_next_reload_works(lab: Lab, client: EchoClient) -> None:
    server = KnownServer(lab, client)
    server.start()
    lock = Path(f"{server.takeover_socket}.lock")
    with Traffic(server, [client], PACKETS_PER_SECOND) as traffic:
        for vanish in VANISHING:
            vanish(server)
            wait_for(f"the path after {vanish.__name__}", lambda: is_reached(server))
            wait_for(f"the lock after {vanish.__name__}", lambda: lock.exists() and not is_free(lock))
            server.replace(here=True)
            traffic.wait_for_more()
        traffic.assert_unharmed()
    assert server.folder.stat().st_mode & 0o777 == 0o700


def is_free(lock: Path) -> bool:
    """Return whether no process holds a lock."""
    return subprocess.run(("flock", "--nonblock", str(lock), "true"), check=False).returncode == 0


def test_a_reload_waits_for_a_path_that_comes_back(lab: Lab, client: EchoClient) -> None:
    server = KnownServer(lab, client)
    server.start()
    remove_folder(server)
    outcome = server.reload()
    assert outcome.status == 0, outcome
    assert server.status()["generation"] == 2


def test_a_command_names_the_server_that_its_path_does_not_lead_to(lab: Lab, client: EchoClient) -> None:
    server = KnownServer(lab, client)
    pid = server.start()
    os.kill(pid, signal.SIGSTOP)  # so that the path stays away
    server.takeover_socket.unlink()
    commands = (("status",), ("drain",), ("stop",), ("peer", "list"), ("peer", "add", "new", "--format", "conf"))
    outcomes = {command: server.command(*command) for command in commands}
    os.kill(pid, signal.SIGCONT)
    for command, outcome in outcomes.items():
        told = f"pid {pid} runs all the same: it holds the lock {server.takeover_socket}.lock, and has UDP port"
        assert told in outcome.errors, (command, outcome)
        for wrong in ("no server is running", "nothing runs"):
            assert wrong not in outcome.output + outcome.errors, (command, outcome)
        assert outcome.status == (0 if command[0] == "peer" else 1), (command, outcome)
    wait_for("the path", lambda: is_reached(server))
    assert server.status()["pid"] == pid


# --- A folder without room ---


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system at a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)), check=True)
    try:
        yield
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(("mount", "-o", f"remount,{options}", str(folder)), check=True)


@pytest.mark.root
@pytest.mark.parametrize(
    ("unusable", "usable", "reason"),
    [
        ("size=64k,nr_inodes=1", "size=64k,nr_inodes=100", "No space left on device"),  # the folder itself is one
        ("ro,size=64k", "rw,size=64k", "Read-only file system"),
    ],
    ids=("full", "read-only"),
)
def test_a_server_starts_without_its_path_and_can_be_replaced_as_soon_as_it_can_make_it(
    lab: Lab, client: EchoClient, unusable: str, usable: str, reason: str
) -> None:
    server = KnownServer(lab, client)
    lab.stack.enter_context(tmpfs(server.folder, unusable))
    lab.spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), "server")
    wait_for("the server", lambda: server.log_path.exists() and server.lines_with(" serving generation="))
    with Traffic(server, [client], PACKETS_PER_SECOND) as traffic:
        (told,) = server.lines_with("serving, but no process can take over")
        assert reason in told
        assert not is_reached(server)
        remount(server.folder, usable)
        wait_for("the path", lambda: is_reached(server))
        assert server.replace()["generation"] == 2
        traffic.assert_unharmed()


@pytest.mark.root
def test_a_reload_that_finds_no_room_is_refused_and_works_once_there_is_some(lab: Lab, client: EchoClient) -> None:
    server = KnownServer(lab, client)
    lab.stack.enter_context(tmpfs(server.folder, "size=64k,nr_inodes=3"))  # of the folder, the socket and the lock
    pid = server.start()
    with Traffic(server, [client], PACKETS_PER_SECOND) as traffic:
        outcome = server.reload()
        assert outcome.status == 1
        assert "No space left on device" in outcome.errors
        assert f"generation 1, pid {pid}, still serves" in outcome.errors
        remount(server.folder, "size=64k,nr_inodes=100")
        outcome = server.reload()
        assert outcome.status == 0, outcome
        assert lab.wait_ended(pid) == 0
        traffic.assert_unharmed()


# --- What belongs to another ---


def test_a_taken_metrics_address_is_told_and_answered_once_it_is_free(lab: Lab, client: EchoClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(lab, [client.table()], metrics_listen=f"127.0.0.1:{port}")
        server.start()
        assert f"metrics_listen = 127.0.0.1:{port}: Address already in use" in server.log_path.read_text()
        assert server.status()["metrics_listen"] is None
        assert "no /health, no /metrics" in server.command("status").output
        assert server.replace()["generation"] == 2
    wait_for("metrics", lambda: server.status()["metrics_listen"])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert answer.status == 200
    assert server.replace()["metrics_listen"] == f"127.0.0.1:{port}"


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        ("network", ("unshare", "--net")),
        ("time", ("unshare", "--time", "--boottime", "100000", "--monotonic", "100000", "--fork")),
    ],
)
def test_a_reload_in_another_namespace_is_refused_with_a_remedy_that_works(
    lab: Lab, client: EchoClient, kind: str, elsewhere: tuple[str, ...]
) -> None:
    server = KnownServer(lab, client)
    pid = server.start()
    command = (*OXIDIZE, "reload", "-c", str(server.config_path))
    with Traffic(server, [client], PACKETS_PER_SECOND) as traffic:
        outcome = subprocess.run((*elsewhere, *command), capture_output=True, text=True, check=False)
        assert outcome.returncode == 1
        assert f"the successor is in {kind} namespace {kind[:3] if kind == 'network' else kind}:[" in outcome.stderr
        assert server.status()["pid"] == pid
        remedy = re.search("put `(nsenter [^`]*)` before the command", outcome.stderr)
        assert remedy is not None, outcome.stderr
        subprocess.run((*elsewhere, *shlex.split(remedy[1]), *command), capture_output=True, check=True)
        assert server.status()["generation"] == 2
        traffic.assert_unharmed()
