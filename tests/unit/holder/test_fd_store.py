"""The fd store and its messages."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.holder.fd_store import (
    DEFAULT_NAME,
    MESSAGE_BYTES_MAX,
    STORE_MAX,
    FdStore,
    Notification,
    bind_notify_socket,
    receive_notification,
)

Pair = tuple[socket.socket, socket.socket]  # sender, receiver


@pytest.fixture
def store() -> Iterator[FdStore]:
    store = FdStore()
    yield store
    store.close()


@pytest.fixture
def memfds() -> Iterator[list[int]]:
    fds = [os.memfd_create(f"test-{i}") for i in range(STORE_MAX + 1)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    receiver = bind_notify_socket(str(tmp_path / "notify"))
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(str(tmp_path / "notify"))
    yield sender, receiver
    sender.close()
    receiver.close()


def stored(text: str, *fds: int) -> Notification:
    return Notification(dict(line.split("=", 1) for line in text.splitlines()), 1, fds)


def test_the_same_open_file_is_kept_once(store: FdStore, memfds: list[int]) -> None:
    assert store.add("journal", memfds[0])
    again = os.dup(memfds[0])
    assert not store.add("other", again)
    os.close(again)
    assert store.names == ("journal",)


def test_two_files_of_one_name_are_removed_together(store: FdStore, memfds: list[int]) -> None:
    store.add("a", memfds[0])
    store.add("b", memfds[1])
    store.add("a", memfds[2])
    assert store.names == ("a", "b", "a")
    kept = [fd for name, fd in store.entries if name == "a"]
    assert store.remove("a") == 2
    assert [name for name, _ in store.entries] == ["b"]
    for fd in kept:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_the_store_keeps_copies_of_descriptors(store: FdStore, memfds: list[int]) -> None:
    fd = os.memfd_create("short")
    os.pwrite(fd, b"state", 0)
    store.add("journal", fd)
    os.close(fd)
    assert os.pread(store.entries[0][1], 5, 0) == b"state"
    assert not os.get_inheritable(store.entries[0][1])


def test_the_store_has_a_limit(store: FdStore, memfds: list[int]) -> None:
    assert [store.add(f"n{i}", fd) for i, fd in enumerate(memfds)] == [True] * STORE_MAX + [False]


@pytest.mark.parametrize("name", ["", "a:b", "tab\there", "x" * 256, "é"])
def test_a_name_invalid_in_listen_fdnames_is_replaced(store: FdStore, memfds: list[int], name: str) -> None:
    store.add(name, memfds[0])
    assert store.names == (DEFAULT_NAME,)


def test_a_notification_adds_and_removes_descriptors(store: FdStore, memfds: list[int]) -> None:
    store.apply(stored("FDSTORE=1\nFDNAME=journal\nFDPOLL=0", memfds[0]))
    store.apply(stored("FDSTORE=1", memfds[1]))
    store.apply(stored("READY=1\nFDNAME=journal", memfds[2]))
    assert store.names == ("journal", DEFAULT_NAME)
    store.apply(stored("FDSTOREREMOVE=1\nFDNAME=journal"))
    assert [name for name, _ in store.entries] == [DEFAULT_NAME]


def test_a_message_has_its_sender_and_its_descriptors(pair: Pair, memfds: list[int]) -> None:
    sender, receiver = pair
    socket.send_fds(sender, [b"FDSTORE=1\nFDNAME=a=b\nnonsense\n"], memfds[:2])
    message = receive_notification(receiver)
    assert message is not None
    assert message.assignments == {"FDSTORE": "1", "FDNAME": "a=b"}
    assert message.sender == os.getpid()
    assert [os.fstat(fd).st_ino for fd in message.fds] == [os.fstat(fd).st_ino for fd in memfds[:2]]
    assert not any(map(os.get_inheritable, message.fds))
    message.close()
    assert receive_notification(receiver) is None


def test_a_truncated_message_has_no_assignments(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(b"MAINPID=1\n" + b"X=" + b"y" * MESSAGE_BYTES_MAX)
    message = receive_notification(receiver)
    assert message is not None
    assert message.assignments == {}


def test_undecodable_bytes_do_not_hide_other_assignments(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(b"\xff\xfe=\x80\0\nREADY=1")
    message = receive_notification(receiver)
    assert message is not None
    assert message.assignments["READY"] == "1"
