"""Asking a server through its takeover socket: `status` and whatever else its host answers.

The rule: the answer comes in a memfd, so that it may be of any size, and from whoever serves by then: a connection that
ends without an answer was to a process that had just handed over. Descriptors that come along belong to whoever asked
for them, and are closed where nobody did, or where anything about the answer is wrong.
"""

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

from oxidize.errors import DecodeError, TakeoverError
from oxidize.takeover.channel import Channel, Received, close_fds, connect
from oxidize.takeover.host import Answer, NamedFd
from oxidize.takeover.machine import CONNECT_ATTEMPTS_MAX
from oxidize.takeover.messages import Busy, Query, Refused, Reply
from oxidize.takeover.reception import ANSWER_BYTES_MAX
from oxidize.takeover.successor import RETRY_DELAY

QUERY_TIMEOUT = 5.0


def query(path: Path, name: str, *, clock: Callable[[], float], timeout: float = QUERY_TIMEOUT) -> bytes | None:
    """Return the answer of the server that listens at a path, or None where nobody listens.

    Raises TakeoverError where there is no answer within `timeout` seconds or the server refuses, with its reason.
    """
    answer = query_with_fds(path, name, clock=clock, timeout=timeout)
    if answer is None:
        return None
    close_fds(named.fd for named in answer.fds)
    return answer.content


def query_with_fds(
    path: Path, name: str, *, clock: Callable[[], float], timeout: float = QUERY_TIMEOUT
) -> Answer | None:
    """Return the same with the descriptors that came with it, which are the caller's to close; raises as `query`."""
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


def _read(received: Received) -> Answer:
    """Return what came with a reply; closes its memfd, and where it raises every descriptor."""
    with contextlib.ExitStack() as undo:
        undo.callback(close_fds, received.fds)
        match received:
            case Received(Reply(entries), (memfd, *fds)) if len(entries) == len(fds):
                content = _content(memfd)
                undo.pop_all()
                os.close(memfd)
                named = zip(entries, fds, strict=True)
                return Answer(content, tuple(NamedFd(entry.name, fd, entry.kind, entry.options) for entry, fd in named))
            case Received(Refused(reason) | Busy(reason)):
                raise TakeoverError("QUERY", reason)
            case Received(message, came):
                raise TakeoverError("QUERY", f"{type(message).__name__} with {len(came)} descriptors is no answer")


def _content(memfd: int) -> bytes:
    size = os.fstat(memfd).st_size
    if size > ANSWER_BYTES_MAX:
        raise TakeoverError("QUERY", f"an answer of {size} bytes; expected at most {ANSWER_BYTES_MAX}")
    parts = bytearray()
    while len(parts) < size and (part := os.pread(memfd, size - len(parts), len(parts))):
        parts += part
    return bytes(parts)


def who_listens(path: Path, *, clock: Callable[[], float], timeout: float = QUERY_TIMEOUT) -> tuple[int, int] | None:
    """To be merged."""
    channel = connect(path, timeout)
    if channel is None:
        return None
    found = channel.peer.pid, channel.peer.uid
    channel.close()
    return found
