"""A socket whose buffers cannot be raised is owned all the same."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from oxidize.net.udp import UdpSocket, bind_udp

HUGE = 1 << 30  # more than any system grants


@pytest.fixture
def udp(monkeypatch: pytest.MonkeyPatch) -> Iterator[UdpSocket]:
    udp = UdpSocket(bind_udp("127.0.0.1", 0))
    monkeypatch.setattr(UdpSocket, "_force_buffer", lambda *_: False)  # as for an ordinary user
    yield udp
    udp.close()


def refusing(number: int) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_a_socket_is_owned_although_no_scratch_socket_can_be_made(
    udp: UdpSocket, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = udp.receive_buffer
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", refusing(number))
        udp.take_ownership(receive_buffer=HUGE, send_buffer=HUGE)
    assert udp.receive_buffer == before
    udp.take_ownership(receive_buffer=HUGE, send_buffer=HUGE)
    assert udp.receive_buffer >= before
    assert udp.framing()["gro"]
