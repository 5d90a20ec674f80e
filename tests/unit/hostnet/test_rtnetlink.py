"""Dumps of rtnetlink where the kernel refuses them or leaves something out."""

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from oxidize.hostnet import rtnetlink
from oxidize.hostnet.part import run
from oxidize.hostnet.rtnetlink import DUMPS_MAX, RtnetlinkError, RtnetlinkSocket, read_all

INET6 = 10


@contextmanager
def answered(monkeypatch: pytest.MonkeyPatch, code: int) -> Iterator[RtnetlinkSocket]:
    """Connect to a kernel that answers the first request with an error."""
    body = struct.pack("=i", -code)
    monkeypatch.setattr(RtnetlinkSocket, "_send", lambda *_: 1)
    monkeypatch.setattr(RtnetlinkSocket, "_datagram", lambda _: [(rtnetlink._ERROR, 0, 1, body)])
    with RtnetlinkSocket() as kernel:
        yield kernel


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_a_kernel_without_ipv6_has_no_rules_and_routes_of_it(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with answered(monkeypatch, code) as kernel:
        assert run(read_all(partial(kernel.rules, INET6))) == []
        assert run(read_all(partial(kernel.routes_of, INET6, table=1000))) == []


def test_a_refused_dump_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with answered(monkeypatch, errno.EPERM) as kernel, pytest.raises(RtnetlinkError) as caught:
        run(read_all(partial(kernel.rules, INET6)))
    assert caught.value.code == errno.EPERM


@pytest.mark.parametrize("interruptions", [0, DUMPS_MAX - 1, DUMPS_MAX])
def test_a_dump_that_is_interrupted_starts_again_and_not_for_ever(interruptions: int) -> None:
    dumps = 0

    def dump() -> Iterator[list[int]]:
        nonlocal dumps
        dumps += 1
        yield [1, 2]
        if dumps <= interruptions:
            raise RtnetlinkError(errno.EINTR)
        yield [3]

    if interruptions < DUMPS_MAX:
        assert run(read_all(dump)) == [1, 2, 3]
    else:
        with pytest.raises(RtnetlinkError):
            run(read_all(dump))
    assert dumps == min(interruptions + 1, DUMPS_MAX)
