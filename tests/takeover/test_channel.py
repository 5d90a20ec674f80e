"""Channel and listener on real sockets: descriptors move, none leaks, and the path always has a listener."""

import contextlib
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import DecodeError, StateError, TakeoverError
from oxidize.takeover.channel import FDS_PER_MESSAGE_MAX, Channel, close_fds, connect
from oxidize.takeover.connection import is_authorised
from oxidize.takeover.listener import Listener
from oxidize.takeover.messages import MESSAGE_BYTES_MAX, MoreFds, Query, Ready, Withdrawn

pytestmark = pytest.mark.usefixtures("no_leak")


def names_in(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


@contextlib.contextmanager
def joined(directory: Path) -> Iterator[tuple[Channel, Channel]]:
    listener = Listener(directory / "takeover.sock")
    near = connect(listener.path, 1.0)
    far = listener.accept()
    assert near is not None
    assert far is not None
    try:
        yield near, far
    finally:
        near.close()
        far.close()
        listener.close()


@contextlib.contextmanager
def raw(channel: Channel) -> Iterator[socket.socket]:
    """The channel's own socket, for messages that the channel itself would not send."""
    with socket.socket(fileno=os.dup(channel.fileno())) as connection:
        yield connection


def test_a_descriptor_moves_and_is_not_inherited(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        reading, writing = os.pipe()
        near.send(Ready({"n": 1}), [writing])
        os.close(writing)
        received = far.receive()
        assert received is not None
        assert received.message == Ready({"n": 1})
        (moved,) = received.fds
        assert not os.get_inheritable(moved)
        os.write(moved, b"through")
        assert os.read(reading, 100) == b"through"
        close_fds([reading, moved])


def test_a_message_carries_as_many_descriptors_as_the_kernel_allows(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        near.send(MoreFds(), [near.fileno()] * FDS_PER_MESSAGE_MAX)
        received = far.receive()
        assert received is not None
        assert len(set(received.fds)) == FDS_PER_MESSAGE_MAX
        close_fds(received.fds)
        with pytest.raises(StateError, match="254"):
            near.send(MoreFds(), [near.fileno()] * (FDS_PER_MESSAGE_MAX + 1))


def test_descriptors_beyond_the_limit_of_open_files_are_an_error_and_no_leak(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        near.send(MoreFds(), [near.fileno()] * 100)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
        try:
            with pytest.raises(DecodeError, match="limit of open files"):
                far.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"\xc1", "no msgpack"), (b"\x80" * (MESSAGE_BYTES_MAX + 1), "more than"), (b"\x80", "type None")],
)
def test_descriptors_without_a_message_are_closed(tmp_path: Path, data: bytes, says: str) -> None:
    with joined(tmp_path) as (near, far):
        with raw(near) as connection:
            socket.send_fds(connection, [data], [0, 0, 0])
        with pytest.raises(DecodeError, match=says):
            far.receive()
        near.send(Query("after"))
        batch = far.receive_all()
        assert [each.message for each in batch.received] == [Query("after")]


def test_an_empty_datagram_counts_as_the_end_and_leaks_nothing(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        with raw(near) as connection:
            connection.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\x00\x00\x00\x00")])
        assert far.receive() is None


def test_an_empty_queue_is_not_the_end_of_a_connection(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        with pytest.raises(BlockingIOError):
            far.receive()
        batch = far.receive_all()
        assert (batch.received, batch.closed, batch.violation) == ([], False, "")
        near.close()
        assert far.receive() is None
        assert far.receive_all().closed
        with pytest.raises(BrokenPipeError):
            far.send(Query("too late"))


def test_unread_messages_to_a_peer_do_not_hide_its_last_message(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        far.send(Ready({}))  # never read: the kernel reports a reset to far, before what near had said
        near.send(Withdrawn("the server is stopping"))
        near.close()
        batch = far.receive_all()
        assert [each.message for each in batch.received] == [Withdrawn("the server is stopping")]
        assert batch.closed


def test_a_peer_that_does_not_read_does_not_block_the_sender(tmp_path: Path) -> None:
    def flood(channel: Channel) -> None:
        for _ in range(10_000):
            channel.send(Ready({"x": bytes(60_000)}))

    with joined(tmp_path) as (near, _), pytest.raises(BlockingIOError):
        flood(near)


def test_a_channel_knows_the_process_of_its_peer(tmp_path: Path) -> None:
    with joined(tmp_path) as (near, far):
        for channel in (near, far):
            assert (channel.peer.pid, channel.peer.uid) == (os.getpid(), os.geteuid())
            assert not os.get_inheritable(channel.peer.fileno())
            assert not channel.peer.is_dead()
            assert channel.peer.may_be_killed()


CONNECT_AND_STAY = """
import socket, sys, time
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
print("connected", flush=True)
if sys.argv[2] == "hang-up":
    connection.close()
    print("closed", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["stay", "hang-up"])
def test_the_end_of_a_connection_is_not_the_end_of_its_process(tmp_path: Path, how: str) -> None:
    listener = Listener(tmp_path / "takeover.sock")
    command = [sys.executable, "-c", CONNECT_AND_STAY, str(listener.path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"connected\n"
        channel = listener.accept()
        assert channel is not None
        assert channel.peer.pid == process.pid
        if how == "hang-up":
            assert process.stdout.readline() == b"closed\n"
        assert channel.receive_all().closed is (how == "hang-up")
        assert not channel.peer.is_dead()
        assert channel.peer.kill()
        process.wait(10)
        assert channel.peer.is_dead()
        assert channel.receive_all().closed
        assert channel.peer.kill()  # reaped: it counts as killed
    channel.close()
    listener.close()


def test_only_the_same_user_and_root_are_authorised() -> None:
    assert is_authorised(1000, 1000)
    assert is_authorised(0, 1000)
    assert not is_authorised(1000, 0)
    assert not is_authorised(1001, 1000)


# --- The listener ---


def test_the_socket_file_admits_no_other_user_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        listener = Listener(tmp_path / "takeover.sock")
    finally:
        os.umask(before)
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["takeover.sock"]
    listener.close()
    assert names_in(tmp_path) == []


def test_connecting_without_a_listener_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "takeover.sock"
    assert connect(path, 1.0) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    assert connect(path, 1.0) is None
    listener = Listener(path)  # over the socket file of a killed process
    channel = connect(path, 1.0)
    assert channel is not None
    channel.close()
    listener.close()


def test_connecting_to_a_socket_of_another_kind_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "takeover.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(TakeoverError, match="expected a takeover socket"):
            connect(path, 1.0)


def test_connecting_to_a_listener_that_never_accepts_times_out(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "takeover.sock")
    waiting = []

    def fill() -> None:
        while True:
            channel = connect(listener.path, 0.01)
            assert channel is not None
            waiting.append(channel)

    with pytest.raises(TakeoverError, match="does it hang"):
        fill()
    for channel in waiting:
        channel.close()
    listener.close()


def test_a_new_owner_takes_the_path_and_the_old_one_leaves_it_alone(tmp_path: Path) -> None:
    old = Listener(tmp_path / "takeover.sock")
    new = Listener(tmp_path / "takeover.sock")
    assert (old.is_bound(), new.is_bound()) == (False, True)
    old.close()
    assert new.is_bound()
    new.close()
    new.close()
    assert not new.path.exists()


def test_the_path_is_never_without_a_listener(tmp_path: Path) -> None:
    path = tmp_path / "takeover.sock"
    current = Listener(path)
    failures: list[str] = []
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            with contextlib.suppress(TakeoverError):  # its backlog is full: a process listens
                channel = connect(path, 0.001)
                if channel is None:
                    failures.append("no process listened")
                    return
                channel.close()

    thread = threading.Thread(target=probe)
    thread.start()
    for _ in range(300):
        following = Listener(path)
        while (channel := current.accept()) is not None:
            channel.close()
        # The path leads to the new one. Only a connection that had looked it up before can be refused by the old end.
        retired, current = current, following
        done.wait(0.0005)
        retired_channel = retired.accept()
        if retired_channel is not None:
            retired_channel.close()
        retired.close()
    done.set()
    thread.join()
    current.close()
    assert failures == []


def test_an_impossible_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TakeoverError, match="at most 107"):
        Listener(tmp_path / ("x" * 108))
    (tmp_path / "file").touch()
    with pytest.raises(TakeoverError, match=r"cannot listen.*expected a folder with room"):
        Listener(tmp_path / "file" / "takeover.sock")
    (tmp_path / "occupied").mkdir()
    with pytest.raises(TakeoverError, match=r"cannot listen.*expected a folder with room"):
        Listener(tmp_path / "occupied")
    assert names_in(tmp_path) == ["file", "occupied"]


def test_a_missing_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "missing" / "below"
    listener = Listener(folder / "takeover.sock")
    assert listener.is_bound()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names_in(folder) == ["takeover.sock"]
    listener.close()


def test_a_forked_process_cannot_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(tmp_path / "takeover.sock")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StateError, match="after the last fork"):
            listener.accept()
    listener.close()
