"""Asking a server through its takeover socket: `status` and whatever else its host answers.

The rule: the answer comes in a memfd, so that it may be of any size, and from whoever serves by then: a connection that
ends without an answer was to a process that had just handed over.
"""

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

from oxidize.errors import DecodeError, TakeoverError
from oxidize.takeover.channel import Channel, Received, close_fds, connect
from oxidize.takeover.machine import CONNECT_ATTEMPTS_MAX
from oxidize.takeover.messages import Busy, Query, Refused, Reply
from oxidize.takeover.reception import ANSWER_BYTES_MAX
from oxidize.takeover.successor import RETRY_DELAY

QUERY_TIMEOUT = 5.0


def query(path: Path, name: str, *, clock: Callable[[], float], timeout: float = QUERY_TIMEOUT) -> bytes | None:
    """Return the answer of the server that listens at a path, or None where nobody listens.

    Raises TakeoverError where there is no answer within `timeout` seconds or the server refuses, with its reason.
    """
    deadline = clock() + timeout
    for _ in range(CONNECT_ATTEMPTS_MAX):
        channel = connect(path, max(deadline - clock(), 0.0))
        if channel is None:
            return None
        try:
            received = _ask(channel, name, deadline, clock)
        finally:
            channel.close()
        if received is not None:
            return _read(received)
        select.select([], [], [], RETRY_DELAY)
    raise TakeoverError("QUERY", f"{path} closed {CONNECT_ATTEMPTS_MAX} connections without an answer")


def _ask(channel: Channel, name: str, deadline: float, clock: Callable[[], float]) -> Received | None:
    """Return the first message, or None where the connection ended before."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    with contextlib.suppress(BrokenPipeError):  # perhaps it said why before it closed
        channel.send(Query(name))
    while True:
        try:
            return channel.receive()
        except BlockingIOError:
            remaining = deadline - clock()
            if remaining <= 0:
                raise TakeoverError("QUERY", f"pid {channel.peer.pid} gives no answer: does it hang?") from None
            poll.poll(remaining * 1000 + 1)
        except DecodeError as error:
            raise TakeoverError("QUERY", f"pid {channel.peer.pid} sent what is no message: {error}") from error


def _read(received: Received) -> bytes:
    """Return what the memfd of a reply holds; closes every descriptor."""
    try:
        match received:
            case Received(Reply(), (memfd,)):
                size = os.fstat(memfd).st_size
                if size > ANSWER_BYTES_MAX:
                    raise TakeoverError("QUERY", f"an answer of {size} bytes; expected at most {ANSWER_BYTES_MAX}")
                parts = bytearray()
                while len(parts) < size and (part := os.pread(memfd, size - len(parts), len(parts))):
                    parts += part
                return bytes(parts)
            case Received(Refused(reason) | Busy(reason)):
                raise TakeoverError("QUERY", reason)
            case Received(message, fds):
                raise TakeoverError("QUERY", f"{type(message).__name__} with {len(fds)} descriptors is no answer")
    finally:
        close_fds(received.fds)
