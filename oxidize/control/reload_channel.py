"""The link between a coordinator (`oxidize reload`) and the successor that it started.

PREPARED says that everything slow is done; the coordinator answers GO when the service manager knows the new main
process; DONE or FAILED ends it. A successor whose coordinator is gone before GO gives up: nobody would tell the
operator.
"""

import contextlib
import json
import os
import signal
import socket
from typing import Any

from oxidize.errors import Phase, TakeoverError

MESSAGE_BYTES_MAX = 65_536
REASON_CHARACTERS_MAX = 16_384  # four bytes each at most: a reason fits into a message
GO_TIMEOUT_SECS = 20.0

Report = dict[str, Any]


class Control:
    """The successor's end of the link; one that was not started by a coordinator has none and uses `NoControl`."""

    is_coordinated = True

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)

    def prepared(self, report: Report) -> None:
        """Say that all slow work is done and wait for GO; raises TakeoverError if it does not come."""
        self._socket.settimeout(GO_TIMEOUT_SECS)
        try:
            send(self._socket, {"event": "prepared", "pid": os.getpid(), **report})
            answer = receive(self._socket)
        except OSError:  # TimeoutError is one
            answer = None
        if answer is None or answer.get("event") != "go":
            raise TakeoverError(Phase.PREPARING, "the coordinator is gone: expected its GO; run `oxidize reload` again")
        signal.alarm(0)  # the coordinator's; from here on the predecessor watches over us

    def done(self, report: Report) -> None:
        """Say that this process serves."""
        self._end({"event": "done", "pid": os.getpid(), **report})

    def failed(self, reason: str) -> None:
        """Say why this process does not serve."""
        self._end({"event": "failed", "pid": os.getpid(), "reason": reason[:REASON_CHARACTERS_MAX]})

    def _end(self, message: Report) -> None:
        # The coordinator may be gone; what it is told then goes to the log alone.
        with contextlib.suppress(OSError):
            send(self._socket, message)
        self._socket.close()


class NoControl(Control):
    """The link of a process that nobody coordinates: every step is allowed."""

    is_coordinated = False

    def __init__(self) -> None:
        pass

    def prepared(self, report: Report) -> None:
        """Go on."""

    def _end(self, message: Report) -> None:
        pass


def send(link: socket.socket, message: Report) -> None:
    """Send one message; raises OSError when the other side is gone."""
    link.send(json.dumps(message).encode())


def receive(link: socket.socket) -> Report | None:
    """Return the next message, or None when the other side is gone; raises TimeoutError."""
    try:
        data = link.recv(MESSAGE_BYTES_MAX)
    except ConnectionError:
        return None
    message = json.loads(data) if data else None
    return message if isinstance(message, dict) else None
