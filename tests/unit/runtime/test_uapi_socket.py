"""The socket of wg: bound, adopted, kept, handed over, and never left unanswered or taken from another process."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from oxidize.net import uapi_path
from oxidize.net.event_loop import Loop
from oxidize.runtime.offer import FdName, named_fd
from oxidize.runtime.uapi_socket import CHECK_SECS, LONGEST_PAUSE_SECS, UapiSocket
from oxidize.service_manager import notify
from oxidize.takeover.host import NamedFd
from tests.support.node_settings import settings_with

pytestmark = pytest.mark.usefixtures("no_leak")


class Bench:
    """Generations with a loop and a clock, and the folder of wg."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        self.folder = folder
        self.now = 100.0
        self.loop = Loop()
        undo.callback(self.loop.close)
        self._undo = undo

    def generation(self, passed: NamedFd | None = None, name: str = "1", **settings: Any) -> UapiSocket:
        """Return the socket of a generation that answers with its name."""
        made = UapiSocket(
            settings_with(**settings), self.loop, lambda *_: iter([f"{name}\n\n".encode()]), passed, lambda: self.now
        )
        self._undo.callback(made.close)
        return made

    def passed_on(self, before: UapiSocket) -> NamedFd:
        """Return the descriptor that a generation hands over, as its successor gets it."""
        named = before.named_fd()
        assert named is not None
        return named._replace(fd=os.dup(named.fd))

    def of_unit(self, name: str = "oxidize0") -> NamedFd:
        """Return the descriptor of a socket unit."""
        path = self.folder / f"{name}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(os.fspath(path))
            listener.listen()
            return named_fd(FdName.UAPI, os.dup(listener.fileno()))

    def ask(self, name: str = "oxidize0") -> str:
        """Return the answer at a path; "" for none yet."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(os.fspath(self.folder / f"{name}.sock"))
            client.send(b"get=1\n\n")
            client.setblocking(False)
            for _ in range(10):
                self.loop.run_once(0)
            try:
                return client.recv(4096).decode().strip()
            except BlockingIOError:
                return ""

    def wait(self, secs: float) -> None:
        self.now += secs
        self.loop.run_once(0)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.folder.iterdir())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folder = tmp_path / "wireguard"
    folder.mkdir(0o700)
    monkeypatch.setattr(uapi_path, "FOLDER", folder)
    with ExitStack() as undo:
        bench = Bench(folder, undo)
        monkeypatch.setattr(bench.loop, "now", lambda: bench.now)
        yield bench


def test_a_generation_without_a_passed_socket_binds_one(bench: Bench) -> None:
    made = bench.generation()
    bench.wait(0)
    assert bench.ask() == "1"
    assert made.problem is None
    made.remove_path()
    assert bench.names() == []


def test_a_userspace_network_has_none(bench: Bench) -> None:
    made = bench.generation(network="userspace")
    bench.wait(0)
    assert (made.next_deadline(), made.named_fd(), made.problem, bench.names()) == (None, None, None, [])


def test_a_request_during_a_hand_off_waits_for_the_successor(bench: Bench) -> None:
    before = bench.generation()
    bench.wait(0)
    passed = bench.passed_on(before)
    before.pause()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(os.fspath(before.path))
        client.send(b"get=1\n\n")
        client.setblocking(False)
        bench.wait(2 * CHECK_SECS)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        bench.generation(passed, "2")
        before.close()
        for _ in range(5):
            bench.wait(0)
        assert client.recv(4096) == b"2\n\n"
    assert bench.ask() == "2"


def test_a_node_that_thaws_answers_again(bench: Bench) -> None:
    made = bench.generation()
    bench.wait(0)
    made.pause()
    assert bench.ask() == ""
    made.resume()
    assert bench.ask() == "1"


def test_a_successor_removes_the_path_that_its_predecessor_bound(bench: Bench) -> None:
    before = bench.generation()
    bench.wait(0)
    after = bench.generation(bench.passed_on(before), "2")
    before.close()
    assert bench.names() == ["oxidize0.sock"]
    after.remove_path()
    assert bench.names() == []


def test_a_path_that_leads_elsewhere_is_bound_again(bench: Bench) -> None:
    made = bench.generation()
    bench.wait(0)
    made.path.unlink()
    bench.wait(CHECK_SECS)
    assert bench.ask() == "1"


def test_a_path_that_another_process_serves_is_its_own_until_it_ends(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other, identity = uapi_path.bind(bench.folder / "oxidize0.sock")
    with other:
        made = bench.generation()
        due = []
        for _ in range(12):
            deadline = made.next_deadline()
            assert deadline is not None
            due.append(deadline)
            bench.wait(deadline - bench.now)
        assert "another process listens" in str(made.problem)
        assert uapi_path.leads_to(made.path, identity)
        assert [record.getMessage() for record in caplog.records] == ["wg does not find this process"]
        assert max(later - earlier for earlier, later in pairwise(due[2:])) == LONGEST_PAUSE_SECS
        made.remove_path()
        assert uapi_path.leads_to(made.path, identity)
    bench.wait(LONGEST_PAUSE_SECS)
    assert bench.ask() == "1"
    assert made.problem is None


def test_the_socket_of_a_unit_is_used_and_its_path_left_alone(bench: Bench) -> None:
    made = bench.generation(bench.of_unit())
    assert bench.ask() == "1"
    assert made.next_deadline() is None
    made.remove_path()
    assert bench.names() == ["oxidize0.sock"]
    after = bench.generation(bench.passed_on(made), "2")
    made.close()
    assert bench.ask() == "2"
    assert (after.next_deadline(), after.problem) == (None, None)


def test_the_socket_of_a_unit_with_another_name_answers_with_an_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    made = bench.generation(bench.of_unit("wg0"))
    assert bench.ask("wg0") == f"errno={errno.ENODEV}"
    assert f"listens at {bench.folder}/wg0.sock: expected {bench.folder}/oxidize0.sock" in str(made.problem)
    assert len(caplog.records) == 1


def test_a_unit_of_a_userspace_network_answers_with_an_error(bench: Bench) -> None:
    made = bench.generation(bench.of_unit(), network="userspace")
    assert bench.ask() == f"errno={errno.ENODEV}"
    assert made.problem is None


def test_an_interface_of_another_name_moves_the_path(bench: Bench) -> None:
    before = bench.generation()
    bench.wait(0)
    after = bench.generation(bench.passed_on(before), "2", interface="wg7")
    before.close()
    bench.wait(0)
    assert bench.names() == ["wg7.sock"]
    assert bench.ask("wg7") == "2"
    assert after.problem is None


def test_an_older_release_leaves_no_request_waiting(bench: Bench) -> None:
    before = bench.generation()
    bench.wait(0)
    with socket.socket(fileno=bench.passed_on(before).fd), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        before.shut_down()
        assert bench.names() == []
        with pytest.raises(FileNotFoundError):
            client.connect(os.fspath(before.path))


def test_the_socket_of_a_unit_refuses_under_an_older_release(bench: Bench) -> None:
    before = bench.generation(bench.of_unit())
    with socket.socket(fileno=bench.passed_on(before).fd), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        before.shut_down()
        with pytest.raises(ConnectionRefusedError):
            client.connect(os.fspath(before.path))


@pytest.mark.parametrize("kind", ["a pipe", "not listening", "datagrams", "TCP"])
def test_a_passed_descriptor_of_another_kind_is_closed_and_one_is_bound(
    bench: Bench, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    if kind == "a pipe":
        descriptor, other = os.pipe()
        os.close(other)
    elif kind == "not listening":
        descriptor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
    elif kind == "datagrams":
        descriptor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    else:
        descriptor = socket.create_server(("127.0.0.1", 0)).detach()
    bench.generation(named_fd(FdName.UAPI, descriptor))
    assert "the passed socket of wg is not used" in caplog.text
    bench.wait(0)
    assert bench.ask() == "1"


@pytest.mark.parametrize("identity", [None, [1], ["1", 2], "12", [1, 2, 3]])
def test_an_identity_of_another_form_is_that_of_a_unit(bench: Bench, identity: object) -> None:
    made = bench.generation(bench.of_unit()._replace(options={"path": "/x", "path_identity": identity}))
    assert bench.ask() == "1"
    assert made.next_deadline() is None


@pytest.mark.parametrize("is_unit", [True, False])
def test_a_service_without_the_socket_of_its_unit_says_how_it_gets_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_unit: bool
) -> None:
    """As after a takeover from an older release."""
    monkeypatch.setattr(notify, "is_unit", lambda: is_unit)
    bench.folder.chmod(0o777)
    made = bench.generation()
    bench.wait(0)
    assert ("`systemctl restart` of this service, which keeps the sessions" in str(made.problem)) == is_unit
