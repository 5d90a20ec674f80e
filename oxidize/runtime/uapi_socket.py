"""The socket by which `wg show` finds this process.

The rule: it is no condition for serving, and never another process's. A socket that was passed by systemd or by a
predecessor is used, so that a `wg show` during a reload waits for its answer; where none was, one is bound where this
user may do that, and again where the path no longer leads there. No listener is left unanswered, for `wg` waits without
a limit: one of another interface's name answers with an error, and one that an older release would leave alone is shut
down.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.errors import OxidizeError, reason_of
from oxidize.net import uapi_path
from oxidize.net.event_loop import Loop
from oxidize.net.stream_server import Limits, ServedConnection, StreamServer
from oxidize.net.uapi_path import Identity
from oxidize.runtime.offer import FdName, named_fd
from oxidize.service_manager import notify
from oxidize.settings import NodeSettings
from oxidize.takeover.host import NamedFd

CONNECTIONS_MAX = 8  # commands of root; a further one closes the oldest idle one
CONNECTION_SECS_MAX = 30.0  # from accept to close: 100,000 peers take some seconds of a loaded server
CHECK_SECS = 10.0  # between two looks whether the path still leads here: one stat(2) each
FIRST_PAUSE_SECS = 1.0
LONGEST_PAUSE_SECS = 60.0  # between two attempts to bind; each pause is twice the one before, up to this
# In the offer, of a listener that a generation has bound, and no socket unit: its path, for the kernel knows only the
# name of before the path was renamed, and the device and inode of that.
PATH, PATH_IDENTITY = "path", "path_identity"

OF_UNIT = "; `systemctl restart` of this service, which keeps the sessions, passes it the socket of its unit"

Answer = Callable[[bytes, int], Iterator[bytes]]  # as of `net.uapi_connection`

log = logs.get(__name__)


class UapiSocket:
    """The listener of `wg` (`net.event_loop.Timed`).

    passed: the listener of a socket unit or of the predecessor, which belongs to this object from here on. problem: why
    `wg` does not find this process, None where it does, or where there is no interface.
    """

    def __init__(
        self,
        settings: NodeSettings,
        loop: Loop,
        answer: Answer,
        passed: NamedFd | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.path = uapi_path.path_of(settings.interface)
        self.problem: str | None = None
        self._is_wanted = settings.network == "tun"  # `wg` knows nothing but interfaces
        self._loop = loop
        self._answer = answer
        self._clock = clock
        self._listener: socket.socket | None = None
        self._identity: Identity | None = None  # of the path, where this program bound it; None for a socket unit's
        self._server: StreamServer | None = None
        self._is_paused = False
        self._pause_secs = FIRST_PAUSE_SECS
        self._due_at = 0.0
        if passed is not None:
            self._adopt(passed)
        loop.add_timed(self)

    # --- Called by the loop ---

    def next_deadline(self) -> float | None:
        """Return when the path is bound, or looked at again; None where neither is needed."""
        is_own = self._listener is None or self._identity is not None
        return self._due_at if self._is_wanted and is_own and not self._is_paused else None

    def handle_timeout(self, now: float) -> None:
        """Bind the path if no socket listens, or if it no longer leads to the one that does."""
        due = self.next_deadline()
        if due is None or now < due:
            return
        self._due_at = now + CHECK_SECS
        if self._identity is not None:
            if uapi_path.leads_to(self.path, self._identity):
                return
            log.warning("binds the socket of wg again: its path was missing, or led elsewhere", path=str(self.path))
            self._close()
        try:
            listener, self._identity = uapi_path.bind(self.path)
        except OxidizeError as error:
            self._postpone(f"{reason_of(error)}{OF_UNIT if notify.is_unit() else ''}", now)
        else:
            self.problem, self._pause_secs = None, FIRST_PAUSE_SECS
            self._serve(listener, self._answer)

    def _postpone(self, problem: str, now: float) -> None:
        """Try again later; a problem is told once."""
        if problem != self.problem:
            log.info("wg does not find this process", reason=problem)
        self.problem = problem
        self._due_at = now + self._pause_secs
        self._pause_secs = min(2 * self._pause_secs, LONGEST_PAUSE_SECS)

    # --- The listener ---

    def _adopt(self, passed: NamedFd) -> None:
        listener = _stream_listener(passed.fd)
        if listener is None:
            log.warning("the passed socket of wg is not used", expected="a listening stream socket: ListenStream=PATH")
            return
        listener.setblocking(False)
        self._identity = _identity_in(passed)
        bound = Path(passed.options[PATH] if self._identity is not None else listener.getsockname())
        self._due_at = self._clock() + CHECK_SECS
        if self._is_wanted and bound.name == self.path.name:
            self._serve(listener, self._answer)
        elif self._identity is not None:  # of another interface's name, which has changed
            uapi_path.remove(bound, self._identity)
            listener.close()
            self._identity, self._due_at = None, 0.0
        else:
            self._serve(listener, _refuse)
            if self._is_wanted:
                expected = f"expected {self.path}: set ListenStream= of that unit, and restart it with the service"
                self.problem = f"the socket unit of wg listens at {bound}: {expected}"
                log.warning("wg does not find this process", reason=self.problem)

    def _serve(self, listener: socket.socket, answer: Answer) -> None:
        def connect(accepted: socket.socket, deadline: float) -> ServedConnection:
            from oxidize.net.uapi_connection import UapiConnection  # noqa: PLC0415  # no start waits for it

            return UapiConnection(accepted, answer, deadline)

        limits = Limits(CONNECTIONS_MAX, CONNECTION_SECS_MAX)
        self._listener = listener
        self._server = StreamServer(listener, connect, limits, self._loop.register, self._loop.unregister, self._clock)
        self._loop.add_timed(self._server)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._loop.remove_timed(self._server)
        if self._listener is not None:
            self._listener.close()
        self._server = self._listener = self._identity = None

    # --- The life of a generation ---

    @property
    def busy(self) -> int:
        """The number of open connections."""
        return self._server.busy if self._server is not None else 0

    def named_fd(self) -> NamedFd | None:
        """Return the listener as an OFFER carries it, None where there is none."""
        if self._listener is None:
            return None
        options: dict[str, Any] = {}
        if self._identity is not None:
            options = {PATH: str(self.path), PATH_IDENTITY: list(self._identity)}
        return named_fd(FdName.UAPI, self._listener.fileno(), options)

    def pause(self) -> None:
        """Accept no connection until `resume`, and leave the path alone: a successor may own; idempotent."""
        self._is_paused = True
        if self._server is not None:
            self._server.pause()

    def resume(self) -> None:
        """Accept connections again; idempotent."""
        self._is_paused = False
        if self._server is not None:
            self._server.resume()

    def shut_down(self) -> None:
        """Have connections refused, also where another process holds the listener, and does not know what it is."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self.remove_path()

    def remove_path(self) -> None:
        """Remove the path if it leads here, and no socket unit has made it."""
        if self._identity is not None:
            uapi_path.remove(self.path, self._identity)

    def close(self) -> None:
        """Close the listener and every connection; idempotent."""
        self._is_paused = True
        self._loop.remove_timed(self)
        self._close()


def _stream_listener(descriptor: int) -> socket.socket | None:
    """Return a listening stream socket of this descriptor; None, and it is closed, where it is none."""
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError:  # it is no socket
        os.close(descriptor)
        return None
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if is_listening and (listener.family, listener.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
        return listener
    listener.close()
    return None


def _identity_in(passed: NamedFd) -> Identity | None:
    match passed.options:
        case {"path": str(), "path_identity": [int(device), int(inode)]}:
            return Identity(device, inode)
        case _:
            return None


def _refuse(_request: bytes, _uid: int) -> Iterator[bytes]:
    """Answer that there is no such interface."""
    yield f"errno={errno.ENODEV}\n\n".encode()
