"""The channel between a coordinator and its successor, over a real socket pair."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from oxidize.control.reload_channel import Control, receive, send, send_settings
from oxidize.cpu_priority import CpuPriority
from oxidize.errors import Phase, TakeoverError

Pair = tuple[socket.socket, Control]


def socket_of(control: Control) -> socket.socket:
    assert control._socket is not None
    return control._socket


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(theirs.detach())
    yield ours, control
    ours.close()
    socket_of(control).close()


def sent(coordinator: socket.socket) -> dict[str, object]:
    message: dict[str, object] = json.loads(coordinator.recv(65_536))
    return message


def test_prepared_waits_for_go(pair: Pair) -> None:
    coordinator, control = pair
    send(coordinator, {"event": "go"})
    control.prepared({"sessions": 3})
    assert sent(coordinator) == {"event": "prepared", "pid": os.getpid(), "sessions": 3}
    control.done({"generation": 2})
    assert sent(coordinator) == {"event": "done", "pid": os.getpid(), "generation": 2}
    assert receive(coordinator) is None


@pytest.mark.root
def test_a_successor_is_at_full_priority_when_it_says_that_it_is_prepared() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    priority = CpuPriority()
    priority.lower()
    control = Control(theirs.detach(), priority)
    assert os.getpriority(os.PRIO_PROCESS, 0) > before
    ours.close()
    with pytest.raises(TakeoverError):  # it may inherit all the same
        control.prepared({})
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    socket_of(control).close()


def test_settings_are_taken_before_all_else(pair: Pair) -> None:
    coordinator, control = pair
    assert control.take_settings() == [], "a coordinator of an older release sends none"
    file = os.memfd_create("settings")
    send_settings(coordinator, file)
    (taken,) = control.take_settings()
    assert os.fstat(taken).st_ino == os.fstat(file).st_ino
    assert not os.get_inheritable(taken)
    send(coordinator, {"event": "go"})
    control.prepared({})
    for fd in (file, taken):
        os.close(fd)


def test_a_coordinator_that_has_ended_sends_no_settings(pair: Pair) -> None:
    coordinator, control = pair
    coordinator.close()
    assert control.take_settings() == []
    assert Control(None).take_settings() == []


def test_prepared_fails_if_the_coordinator_has_ended(pair: Pair) -> None:
    coordinator, control = pair
    coordinator.shutdown(socket.SHUT_WR)
    with pytest.raises(TakeoverError, match="the coordinator is gone") as caught:
        control.prepared({})
    assert caught.value.phase is Phase.PREPARING


def test_prepared_fails_for_any_message_but_go(pair: Pair) -> None:
    coordinator, control = pair
    send(coordinator, {"event": "stop"})
    with pytest.raises(TakeoverError):
        control.prepared({})


def test_the_reason_of_a_failure_reaches_the_coordinator(pair: Pair) -> None:
    coordinator, control = pair
    control.failed("the port is taken")
    assert sent(coordinator) == {"event": "failed", "pid": os.getpid(), "reason": "the port is taken"}


def test_done_and_failed_need_no_coordinator_that_listens(pair: Pair) -> None:
    coordinator, control = pair
    coordinator.close()
    control.done({})


def test_the_channel_is_not_inherited_by_children(pair: Pair) -> None:
    _, control = pair
    assert not os.get_inheritable(socket_of(control).fileno())


@pytest.mark.parametrize("data", [b"[]", b"3", b'"go"'])
def test_data_that_is_no_message_is_received_as_none(pair: Pair, data: bytes) -> None:
    coordinator, control = pair
    coordinator.send(data)
    assert receive(socket_of(control)) is None


def test_without_a_coordinator_every_step_is_allowed() -> None:
    control = Control(None)
    assert not control.is_coordinated
    control.prepared({})
    control.done({})
    control.failed("")


def test_a_predecessor_that_dies_ends_the_wait_for_go(pair: Pair) -> None:
    coordinator, control = pair
    with subprocess.Popen(["/bin/true"]) as predecessor:
        pidfd = os.pidfd_open(predecessor.pid)
        control.prepared({}, pidfd)
        os.close(pidfd)
    assert sent(coordinator)["event"] == "prepared"  # and no answer was needed


def test_go_counts_while_the_predecessor_lives(pair: Pair) -> None:
    coordinator, control = pair
    send(coordinator, {"event": "go"})
    pidfd = os.pidfd_open(os.getpid())
    control.prepared({}, pidfd)
    os.close(pidfd)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 60_000, b"1" * 60_000])
def test_bytes_that_are_no_json_are_received_as_none(pair: Pair, data: bytes) -> None:
    coordinator, control = pair
    coordinator.send(data)
    assert receive(socket_of(control)) is None


def test_the_last_message_of_a_successor_that_leaves_go_unread_is_received() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        send(near, {"event": "go"})
        Control(far.detach()).done({"generation": 2})
        assert receive(near) == {"event": "done", "pid": os.getpid(), "generation": 2}
        assert receive(near) is None


def test_a_failure_is_told_only_where_a_coordinator_gets_it(pair: Pair) -> None:
    coordinator, control = pair
    control.failed("why")
    assert control.has_told_failure
    assert sent(coordinator)["reason"] == "why"


def test_a_failure_is_not_told_to_a_coordinator_that_has_ended(pair: Pair) -> None:
    coordinator, control = pair
    coordinator.close()
    control.failed("why")
    assert not control.has_told_failure


def test_a_failure_after_done_is_not_told(pair: Pair) -> None:
    _, control = pair
    control.done({"generation": 2})
    assert not control.has_told_failure


def test_a_failure_without_a_coordinator_is_not_told() -> None:
    control = Control(None)
    control.failed("why")
    assert not control.has_told_failure
