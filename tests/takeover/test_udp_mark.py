"""The mark of the tunnel's own packets: an option of the shared socket, which its owner sets."""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from oxidize.net.udp import UdpSocket, bind_udp


@pytest.fixture
def wrapped() -> Iterator[UdpSocket]:
    opened = UdpSocket(bind_udp("::", 0))
    opened.take_ownership()
    yield opened
    opened.close()


@pytest.mark.root
def test_only_the_owner_marks_what_it_sends(wrapped: UdpSocket) -> None:
    assert mark_of(wrapped) == 0
    wrapped.set_mark(0x6F78)
    successors = UdpSocket(wrapped._socket.dup())
    assert mark_of(successors) == 0x6F78
    successors.set_mark(7)
    successors.close()
    assert mark_of(wrapped) == 7
    wrapped.take_ownership()
    wrapped.set_mark(0)
    assert mark_of(wrapped) == 0


def test_a_mark_without_the_capability_is_only_a_warning(wrapped: UdpSocket, caplog: pytest.LogCaptureFixture) -> None:
    real = wrapped._socket

    class Unprivileged(socket.socket):
        def setsockopt(self, level: int, option: int, *value: Any) -> None:
            if option == socket.SO_MARK:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            super().setsockopt(level, option, *value)

    wrapped._socket = Unprivileged(fileno=real.detach())
    try:
        wrapped.set_mark(7)
    finally:
        wrapped.close()
    assert "the UDP socket is not marked: that needs CAP_NET_ADMIN" in caplog.text


def mark_of(wrapped: UdpSocket) -> int:
    return wrapped._socket.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
