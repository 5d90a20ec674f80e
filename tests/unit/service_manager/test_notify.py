"""Messages, descriptors and barriers to a service manager, over a real socket."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import ConfigError
from oxidize.service_manager import notify
from oxidize.service_manager.notify import UnreadError


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listening


def read(manager: socket.socket) -> tuple[list[str], list[int]]:
    data, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    return data.decode().split("\n"), list(fds)


def test_without_a_service_manager_no_message_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.is_managed()
    notify.notify("READY=1")
    notify.store_fd("journal", 0)
    notify.forget_fds("journal")


def test_assignments_are_sent_as_one_message(manager: socket.socket) -> None:
    assert notify.is_managed()
    notify.notify("READY=1", "STATUS=generation 1")
    assert read(manager) == (["READY=1", "STATUS=generation 1"], [])
    notify.forget_fds("journal", "arena")
    assert [read(manager)[0] for _ in range(2)] == [
        ["FDSTOREREMOVE=1", "FDNAME=journal"],
        ["FDSTOREREMOVE=1", "FDNAME=arena"],
    ]


def test_a_descriptor_is_stored_with_polling_disabled(manager: socket.socket) -> None:
    memfd = os.memfd_create("journal")
    try:
        notify.store_fd("journal", memfd)
        lines, (stored,) = read(manager)
        assert lines == ["FDSTORE=1", "FDNAME=journal", "FDPOLL=0"]
        assert os.path.sameopenfile(stored, memfd)
        os.close(stored)
    finally:
        os.close(memfd)


def test_a_barrier_waits_for_the_manager_to_close_it(manager: socket.socket) -> None:
    def obey() -> None:
        lines, (barrier,) = read(manager)
        assert lines == ["BARRIER=1"]
        os.close(barrier)

    thread = threading.Thread(target=obey)
    thread.start()
    assert notify.barrier()
    thread.join()


def test_a_barrier_without_an_answer_fails(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "BARRIER_TIMEOUT_SECS", 0.0)
    assert not notify.barrier()
    _, (barrier,) = read(manager)
    os.close(barrier)


def test_descriptors_passed_to_another_process_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert notify.listen_fds() == {}
    monkeypatch.delenv("LISTEN_PID")
    assert notify.listen_fds() == {}


def test_passed_descriptors_have_names_and_are_close_on_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    class Daemon:
        @staticmethod
        def listen_fds_with_names(unset_environment: bool) -> dict[int, str]:
            assert unset_environment
            return {first: "udp", second: "udp", third: "http"}

    first, second, third = (os.dup(2) for _ in range(3))
    try:
        for fd in (first, second, third):
            os.set_inheritable(fd, True)
        monkeypatch.setattr(notify, "_daemon", Daemon)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        passed = notify.listen_fds()
        assert passed == {"udp": [first, second], "http": [third]}
        assert not any(map(os.get_inheritable, (first, second, third)))
    finally:
        for fd in (first, second, third):
            os.close(fd)


def test_two_passed_descriptors_of_one_name_are_an_error() -> None:
    assert notify.single({"udp": [3], "other": [4, 5]}, ("udp", "http")) == {"udp": 3}
    with pytest.raises(ConfigError) as caught:
        notify.single({"udp": [3, 4], "http": [5, 6, 7]}, ("udp", "http"))
    first, second = caught.value.problems
    assert first.startswith("LISTEN_FDS: 2 files are named 'udp': expected one; give each socket unit its own")
    assert second.startswith("LISTEN_FDS: 3 files are named 'http'")


def test_a_service_manager_without_systemd_python_is_an_error(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "systemd", None)
    with pytest.raises(ConfigError, match=r" -m pip install systemd-python`"):
        notify.store_fd("journal", 0)


def test_a_service_manager_that_has_ended_is_an_error_of_one_line(manager: socket.socket) -> None:
    Path(os.environ["NOTIFY_SOCKET"]).unlink()
    with pytest.raises(ConfigError) as caught:
        notify.store_fd("journal", 0)
    (line,) = caught.value.problems
    assert line.startswith(
        f"NOTIFY_SOCKET = {os.environ['NOTIFY_SOCKET']}: No such file or directory: expected a service"
    )
    with pytest.raises(ConfigError):
        notify.barrier()


@pytest.fixture
def unread(manager: socket.socket) -> socket.socket:
    """A manager whose queue is full, as that of one that was stopped."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.setblocking(False)
        filling.connect(manager.getsockname())
        with contextlib.suppress(BlockingIOError):
            while filling.send(b"unread"):
                pass
    return manager


def test_a_manager_that_does_not_read_does_not_stop_the_process(
    unread: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "NOTIFY_TIMEOUT_SECS", 0.001)
    notify.notify("STATUS=generation 1")
    notify.notify("STATUS=generation 2")


def test_a_descriptor_that_a_manager_does_not_read_does_not_stop_the_process(unread: socket.socket) -> None:
    with pytest.raises(UnreadError, match=r"not read for 0.01 s, so FDSTORE=1 is not sent: expected a service manager"):
        notify.store_fd("journal", unread.fileno(), 0.01)
    with pytest.raises(UnreadError, match="so BARRIER=1 is not sent"):
        notify.barrier()


def test_a_process_serves_while_it_waits_for_a_barrier(manager: socket.socket) -> None:
    served: list[float] = []

    def serve(secs: float) -> None:
        served.append(secs)
        if len(served) == 3:
            _, (barrier,) = read(manager)
            os.close(barrier)

    assert notify.barrier(serve)
    assert len(served) == 3


def test_a_manager_at_an_abstract_address_gets_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0oxidize-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@oxidize-test-{os.getpid()}")
        notify.store_fd("udp", listening.fileno())
        lines, (stored,) = read(listening)
        assert lines[1] == "FDNAME=udp"
        os.close(stored)
