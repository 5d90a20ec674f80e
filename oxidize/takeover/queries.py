"""Queries to a server through its takeover socket: `status`, and what else its host answers.

The rule: the answer comes in a memfd, so that it may be of any size, and from the process that serves by then: a
connection that ends without an answer was to a process that had just handed over. Descriptors that come along belong to
the caller that asked for them, and are closed if it did not, or if anything about the answer is wrong. The process that
listens is not trusted: whatever it sends, there is an answer or a TakeoverError by the deadline.

Source: F_GET_SEALS of fcntl(2), which only memory files have: reading any other file may wait for its owner.
"""

import contextlib
import fcntl
import os
import select
from pathlib import Path

from oxidize.clock import boot_time
from oxidize.errors import DecodeError, Phase, TakeoverError
from oxidize.takeover.channel import Channel, Received, close_unasked, connect
from oxidize.takeover.host import Answer, NamedFd
from oxidize.takeover.messages import CONNECT_ATTEMPTS_MAX, RETRY_DELAY, Busy, Query, Refused, Reply
from oxidize.takeover.query_reply import ANSWER_BYTES_MAX

QUERY_TIMEOUT = 5.0
READ_BYTES = 1 << 20  # bytes of an answer that are read at once


def query(
    path: Path,
    name: str,
    *,
    timeout: float = QUERY_TIMEOUT,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> bytes | None:
    """Return the answer of the server that listens at a path, or None if no process listens.

    Raises TakeoverError if there is no answer within `timeout` seconds, if it has more than `bytes_max` bytes, or if
    the server refuses; the reason is then its own text, unchecked.
    """
    answer = query_with_fds(path, name, timeout=timeout, bytes_max=bytes_max)
    if answer is None:
        return None
    close_unasked([named.fd for named in answer.fds])
    return answer.content


def query_with_fds(
    path: Path,
    name: str,
    *,
    timeout: float = QUERY_TIMEOUT,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> Answer | None:
    """Return the answer with its descriptors, which are the caller's to close; raises as `query` does."""
    deadline = boot_time() + timeout
    for _ in range(CONNECT_ATTEMPTS_MAX):
        channel = connect(path, max(deadline - boot_time(), 0.0))
        if channel is None:
            return None
        try:
            received = _ask(channel, name, deadline)
        finally:
            channel.discard()
            channel.close()
        if received is not None:
            return _read(received, bytes_max, deadline)
        select.select([], [], [], RETRY_DELAY)
    raise TakeoverError(Phase.QUERYING, f"{path} closed {CONNECT_ATTEMPTS_MAX} connections without an answer")


def _ask(channel: Channel, name: str, deadline: float) -> Received | None:
    """Return the first message, or None if the connection ended before it."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have sent the reason before it closed
        channel.send(Query(name))
    while True:
        try:
            return channel.receive()
        except BlockingIOError:
            remaining = deadline - boot_time()
            if remaining <= 0:
                raise TakeoverError(Phase.QUERYING, f"pid {channel.peer.pid} gives no answer: does it hang?") from None
            poll.poll(remaining * 1000 + 1)
        except DecodeError as error:
            raise TakeoverError(Phase.QUERYING, f"pid {channel.peer.pid} sent what is no message: {error}") from error


def _read(received: Received, bytes_max: int, deadline: float) -> Answer:
    """Return the answer in a reply. Closes the memfd, and every descriptor if it raises."""
    with contextlib.ExitStack() as undo:
        undo.callback(close_unasked, received.fds)
        match received:
            case Received(Reply(entries), (memfd, *fds)) if len(entries) == len(fds):
                content = _content(memfd, bytes_max, deadline)
                undo.pop_all()
                os.close(memfd)
                named = zip(entries, fds, strict=True)
                return Answer(content, tuple(NamedFd(entry.name, fd, entry.kind, entry.options) for entry, fd in named))
            case Received(Refused(reason) | Busy(reason)):
                raise TakeoverError(Phase.QUERYING, reason)
            case Received(message, came):
                raise TakeoverError(
                    Phase.QUERYING, f"{type(message).__name__} with {len(came)} descriptors is no answer"
                )


def _content(memfd: int, bytes_max: int, deadline: float) -> bytes:
    try:
        fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
        size = os.fstat(memfd).st_size
        if size > bytes_max:
            raise TakeoverError(Phase.QUERYING, f"an answer of {size} bytes; expected at most {bytes_max}")
        parts = bytearray()
        while len(parts) < size and (part := os.pread(memfd, min(READ_BYTES, size - len(parts)), len(parts))):
            if boot_time() >= deadline:
                raise TakeoverError(
                    Phase.QUERYING, f"an answer of {size} bytes, of which {len(parts)} could be read in time"
                )
            parts += part
    except OSError as error:
        raise TakeoverError(Phase.QUERYING, f"an answer that cannot be read: {error}; expected a memfd") from error
    return bytes(parts)
