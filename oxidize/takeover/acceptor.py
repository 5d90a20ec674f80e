"""Connections to the takeover socket, until each is answered or becomes the successor.

The rule: every connection is answered or ended by a deadline, and none can make the server wait or run out of
descriptors. Queries are answered at any time; HELLO is admitted, one at a time. What the kernel refuses - a descriptor,
a place in the epoll set, the path - costs a connection or a while without new ones, never the server, and is tried
again; a path that was removed or replaced is bound again.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence

from oxidize.errors import DecodeError, Phase, TakeoverError, reason_of
from oxidize.takeover.channel import Channel, close_unasked
from oxidize.takeover.connection import is_authorised
from oxidize.takeover.host import Answer
from oxidize.takeover.listener import Listener
from oxidize.takeover.messages import (
    PROTOCOL,
    PROTOCOL_MIN,
    Busy,
    Hello,
    Message,
    Query,
    Refused,
)
from oxidize.takeover.namespaces import difference
from oxidize.takeover.path_lock import PathLock
from oxidize.takeover.query_reply import QueryReply

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16  # at once
ACCEPT_PAUSE = 1.0  # seconds without accepting, after the process had no descriptor left
PATH_CHECK_SECS = 1.0  # between two looks whether the path still leads here: one stat(2) each
BIND_PAUSE_SECS_LONGEST = 10.0  # between two attempts to bind it, each pause being twice the one before, up to this
PIECE_PAUSE = 0.05  # seconds until an answer is written on, in a hand-off: the successor needs the processor more

Register = Callable[[int, Callable[[], None]], None]
Unregister = Callable[[int], None]


class _Pending:
    """A connection without an answer. `hello`: its HELLO, if that is held back. `reply`: one that is being written."""

    def __init__(self, channel: Channel, deadline: float) -> None:
        self.channel = channel
        self.deadline = deadline
        self.hello: Hello | None = None
        self.reply: QueryReply | None = None


class Acceptor:
    """Accepts, checks and answers. `admit` gets each acceptable HELLO; it returns a refusal, or keeps the channel."""

    def __init__(
        self,
        listener: Listener,
        *,
        admit: Callable[[Channel, Hello], Busy | Refused | None],
        answer: Callable[[str], Answer | Iterator[bytes]],
        register: Register,
        unregister: Unregister,
        clock: Callable[[], float],
        timeout: float,
        held: bool,
        lock: PathLock | None = None,
    ) -> None:
        self._listener = listener
        self._lock = lock
        self._admit = admit
        self._answer = answer
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self._timeout = timeout
        self._held = held
        self._pending: dict[int, _Pending] = {}  # by descriptor
        self._watched = -1  # the listener's descriptor while it is registered
        self._paused_until: float | None = None
        self._check_at = clock() + PATH_CHECK_SECS
        self._is_lost = not listener.is_bound()  # the path, at the last look
        self._bind_pause = 0.0  # seconds, after an attempt that failed
        self._bind_at = 0.0  # when the next attempt is due
        self._folder: tuple[int, int] | None = None  # of the path, at the last attempt that failed
        self._closed = False
        self._watch()
        if listener.error is not None:
            self._tell_unbound(listener.error)
            self._postpone_binding(clock())

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is due, or None once closed."""
        if not (self._pending or self._closed) and self._paused_until is None:
            return self._check_at  # nearly always
        deadlines = [each.reply.due_at if each.reply else each.deadline for each in self._pending.values()]
        if not self._closed:
            deadlines.append(self._check_at)
        if self._paused_until is not None:
            deadlines.append(self._paused_until)
        return min(deadlines, default=None)

    def handle_timeout(self, now: float, *, may_bind: bool) -> None:
        """Act on every deadline that has passed. may_bind: whether this process owns, and so the path is its own."""
        if self._paused_until is not None and now >= self._paused_until:
            self._watch()
        if now >= self._check_at:
            self._check_at = now + PATH_CHECK_SECS
            if may_bind:
                self.ensure_bound(now)
        if writing := [each for each in self._pending.values() if each.reply is not None]:
            self._write(writing[0], now, is_owner=may_bind)  # one piece in each turn, whatever is asked
        for pending in [each for each in self._pending.values() if now >= each.deadline and each.reply is None]:
            held = "the predecessor of this process has not ended yet: try again"
            silent = f"no HELLO and no query within {self._timeout:g} s"
            self._respond(pending, Refused(held if pending.hello else silent))

    def release(self) -> None:
        """Admit the HELLO that was held back, and all further ones."""
        self._held = False
        for pending in list(self._pending.values()):
            if pending.hello is not None:
                self._admit_pending(pending, pending.hello)

    def ensure_bound(self, now: float | None = None) -> None:
        """Bind again if the path is gone or leads elsewhere, such as to a successor that listened already, and died.

        Where that failed before, a pause passes first. Nothing is bound where another process holds the lock of the
        path: it serves there.
        """
        if self._closed:
            return
        if self._listener.is_bound():
            self._is_lost = False
            self._keep_lock()
            return
        was_lost, self._is_lost = self._is_lost, True  # a loss that lasts, or that repeats at each look, is told once
        try:
            if not self._keep_lock():
                raise TakeoverError(
                    Phase.LISTENING, f"{self._holder()} serves at {self._listener.path}: end one of the two"
                )
            now = self._clock() if now is None else now
            if now < self._bind_at and self._identity_of_folder() == self._folder:
                return
            self._unwatch()
            self._bind(now)
        except TakeoverError as error:
            if not was_lost:
                self._tell_unbound(error)
            return
        if not was_lost or self._bind_pause:
            log.warning("takeover: bound %s again: it was missing, or led elsewhere", self._listener.path)
        self._bind_pause = 0.0
        self._watch()

    def _bind(self, now: float) -> None:
        try:
            self._listener.bind()
        except TakeoverError:
            self._postpone_binding(now)
            raise

    def _postpone_binding(self, now: float) -> None:
        """Let a pause pass before the next attempt, unless there is another folder by then."""
        self._bind_pause = min(max(2 * self._bind_pause, PATH_CHECK_SECS), BIND_PAUSE_SECS_LONGEST)
        self._bind_at = now + self._bind_pause
        self._folder = self._identity_of_folder()

    def _identity_of_folder(self) -> tuple[int, int] | None:
        try:
            found = self._listener.path.parent.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @staticmethod
    def _tell_unbound(error: TakeoverError) -> None:
        log.error("takeover: serving, but no process can take over: %s", error)

    def _keep_lock(self) -> bool:
        """Take the lock again if its file was removed or replaced; return False where another process holds it."""
        try:
            return self._lock is None or self._lock.take()
        except TakeoverError:
            return True  # unknown: a lack of descriptors, or no folder; the next look tries again

    def _holder(self) -> str:
        return "another process" if self._lock is None else self._lock.holder()

    def close(self, reason: str | None) -> None:
        """Stop listening and refuse every connection; without a message if `reason` is None, so that it tries again."""
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        self._listener.close()
        for pending in list(self._pending.values()):
            self._respond(pending, None if reason is None else Refused(reason))

    def _watch(self) -> None:
        """Accept from now on, or after a pause if the kernel cannot watch the listener now."""
        self._paused_until = None
        if self._listener.fileno() < 0:
            return
        try:
            self._register(self._listener.fileno(), self._accept)
        except OSError as error:  # ENOSPC, ENOMEM: epoll_ctl(2)
            self._pause(error)
        else:
            self._watched = self._listener.fileno()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._unregister(self._watched)
        self._watched, self._paused_until = -1, None

    def _pause(self, error: OSError) -> None:
        log.error("takeover: cannot accept, pausing for %g s: %s", ACCEPT_PAUSE, error)
        self._unwatch()
        self._paused_until = self._clock() + ACCEPT_PAUSE

    def _accept(self) -> None:
        for _ in range(CONNECTIONS_MAX):
            if self._closed or self._paused_until is not None:
                return
            try:
                channel = self._listener.accept()
            except TakeoverError as error:
                log.warning("takeover: a connection was dropped: %s", error)
                continue
            except OSError as error:
                # Level-triggered: a connection that cannot be accepted would wake the loop for ever.
                self._pause(error)
                return
            if channel is None:
                return
            self._receive(channel)

    def _receive(self, channel: Channel) -> None:
        uid, own_uid = channel.peer.uid, os.geteuid()
        refusal: Message | None = None
        if not is_authorised(uid, own_uid):
            refusal = Refused(f"uid {uid} may not ask; expected uid {own_uid} or root")
        elif len(self._pending) >= CONNECTIONS_MAX:
            refusal = Busy(f"{CONNECTIONS_MAX} connections are open already: try again")
        if refusal is not None:
            _send_and_close(channel, refusal)
            return
        pending = _Pending(channel, self._clock() + self._timeout)
        try:
            self._register(channel.fileno(), lambda: self._handle_readable(pending))
        except OSError as error:
            log.warning("takeover: a connection was dropped: %s", error)
            channel.close()
            return
        self._pending[channel.fileno()] = pending

    def _handle_readable(self, pending: _Pending) -> None:
        if self._pending.get(pending.channel.fileno()) is not pending:
            return  # an event of the same batch in which it was answered
        try:
            received = pending.channel.receive()
        except BlockingIOError:
            return
        except DecodeError as error:
            self._respond(pending, Refused(str(error)))
            return
        except OSError:
            received = None
        if received is None:
            self._respond(pending, None)
            return
        close_unasked(received.fds)
        match received.message:
            case Query(name):
                self._handle_query(pending, name)
            case Hello() as hello if pending.hello is None:
                self._handle_hello(pending, hello)
            case other:
                self._respond(pending, Refused(f"expected HELLO or a query, got {type(other).__name__}"))

    def _handle_query(self, pending: _Pending, query: str) -> None:
        if pending.reply is not None:
            self._respond(pending, Refused("expected one query in a connection"))
            return
        try:
            pending.reply = QueryReply(self._answer(query))
        except Exception as error:  # noqa: BLE001 - the boundary: a query must not end the server
            self._respond(pending, Refused(reason_of(error)))
            return
        if not pending.reply.is_in_pieces:
            self._write(pending, self._clock(), is_owner=True)

    def _write(self, pending: _Pending, now: float, *, is_owner: bool) -> None:
        """Write an answer or a piece of it, and send it when it is whole; in a hand-off after a pause."""
        reply = pending.reply
        if reply is None or now < reply.due_at:
            return
        if not is_owner and not reply.due_at:
            reply.due_at = now + PIECE_PAUSE
            return
        try:
            is_whole = reply.write()
        except Exception as error:  # noqa: BLE001 - as in `_handle_query`
            self._respond(pending, Refused(reason_of(error)))
        else:
            if is_whole:
                self._respond(pending, reply.message, reply.fds)

    def _handle_hello(self, pending: _Pending, hello: Hello) -> None:
        peer = pending.channel.peer
        if hello.protocol < PROTOCOL_MIN or hello.protocol_min > PROTOCOL:
            theirs = f"takeover protocol {hello.protocol_min} to {hello.protocol}"
            self._respond(pending, Refused(f"{theirs}; expected {PROTOCOL_MIN} to {PROTOCOL}: update one side first"))
        elif not peer.may_be_killed():
            # If it hung after COMMIT, no process could ever serve again.
            theirs = f"pid {peer.pid} of uid {peer.uid} cannot be ended if it hangs"
            self._respond(pending, Refused(f"{theirs}; expected uid {os.geteuid()} in this pid namespace"))
        elif (reason := difference(hello.network_namespace, hello.time_namespace)) != "":
            self._respond(pending, Refused(reason))
        elif not self._held:
            self._admit_pending(pending, hello)
        elif any(each.hello for each in self._pending.values()):
            self._respond(pending, Busy("another successor waits already"))
        else:
            pending.hello = hello

    def _admit_pending(self, pending: _Pending, hello: Hello) -> None:
        self._forget(pending)
        refusal = self._admit(pending.channel, hello)
        if refusal is not None:
            _send_and_close(pending.channel, refusal)

    def _respond(self, pending: _Pending, message: Message | None, fds: Sequence[int] = ()) -> None:
        self._forget(pending)
        _send_and_close(pending.channel, message, fds)
        if pending.reply is not None:
            pending.reply.close()

    def _forget(self, pending: _Pending) -> None:
        fd = pending.channel.fileno()
        del self._pending[fd]
        self._unregister(fd)


def _send_and_close(channel: Channel, message: Message | None, fds: Sequence[int] = ()) -> None:
    with contextlib.suppress(OSError):  # the peer closed its end
        if message is not None:
            channel.send(message, fds)
    channel.close()
