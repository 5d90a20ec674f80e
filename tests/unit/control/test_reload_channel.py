"""The link between a coordinator and its successor, over a real socket pair."""

import json
import os
import socket
from collections.abc import Iterator

import pytest

from oxidize.control.reload_channel import Control, receive, send
from oxidize.errors import Phase, TakeoverError

Pair = tuple[socket.socket, Control]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(theirs.detach())
    yield ours, control
    ours.close()
    control._socket.close()


def said(link: socket.socket) -> dict[str, object]:
    return json.loads(link.recv(65_536))


def test_prepared_waits_for_go(pair: Pair) -> None:
    link, control = pair
    send(link, {"event": "go"})
    control.prepared({"sessions": 3})
    assert said(link) == {"event": "prepared", "pid": os.getpid(), "sessions": 3}
    control.done({"generation": 2})
    assert said(link) == {"event": "done", "pid": os.getpid(), "generation": 2}
    assert receive(link) is None


def test_a_coordinator_that_is_gone_never_says_go(pair: Pair) -> None:
    link, control = pair
    link.shutdown(socket.SHUT_WR)
    with pytest.raises(TakeoverError, match="the coordinator is gone") as caught:
        control.prepared({})
    assert caught.value.phase is Phase.PREPARING


def test_anything_else_is_no_go(pair: Pair) -> None:
    link, control = pair
    send(link, {"event": "stop"})
    with pytest.raises(TakeoverError):
        control.prepared({})


def test_the_reason_of_a_failure_reaches_the_coordinator(pair: Pair) -> None:
    link, control = pair
    control.failed("the port is taken")
    assert said(link) == {"event": "failed", "pid": os.getpid(), "reason": "the port is taken"}


def test_the_end_needs_nobody_to_listen(pair: Pair) -> None:
    link, control = pair
    link.close()
    control.done({})


def test_the_link_is_not_inherited_any_further(pair: Pair) -> None:
    _, control = pair
    assert not os.get_inheritable(control._socket.fileno())


@pytest.mark.parametrize("data", [b"[]", b"3", b'"go"'])
def test_what_is_no_message_counts_as_none(pair: Pair, data: bytes) -> None:
    link, control = pair
    link.send(data)
    assert receive(control._socket) is None


def test_without_a_coordinator_every_step_is_allowed() -> None:
    control = Control(None)
    assert not control.is_coordinated
    control.prepared({})
    control.done({})
    control.failed("")
