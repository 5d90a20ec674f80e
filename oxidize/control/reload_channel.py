"""The channel between a coordinator (`oxidize reload`) and the successor that it started.

PREPARED says that all slow work is done; the coordinator answers GO when the service manager knows the new main
process; DONE or FAILED ends the exchange. A successor whose coordinator ends before GO gives up, because the operator
would not learn of it.

The rule: the two ends may be of different releases, so a message or a field is never renamed, and unknown ones are
ignored.
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
    """The successor's end of the channel. fd: its socket, or None for a process without a coordinator."""

    def __init__(self, fd: int | None) -> None:
        self._socket: socket.socket | None = None
        if fd is not None:
            os.set_inheritable(fd, False)
            self._socket = socket.socket(fileno=fd)

    @property
    def is_coordinated(self) -> bool:
        """Whether a coordinator started this process."""
        return self._socket is not None

    def prepared(self, report: Report) -> None:
        """Report that all slow work is done and wait for GO; raises TakeoverError if it does not come."""
        if self._socket is None:
            return
        self._socket.settimeout(GO_TIMEOUT_SECS)
        try:
            send(self._socket, {"event": "prepared", "pid": os.getpid(), **report})
            answer = receive(self._socket)
        except OSError:  # TimeoutError is one
            answer = None
        if answer is None or answer.get("event") != "go":
            reason = "the coordinator is gone: expected its GO; run `oxidize reload` again"
            raise TakeoverError(Phase.PREPARING, reason)
        signal.alarm(0)  # set by the coordinator; from here on the predecessor bounds the takeover

    def done(self, report: Report) -> None:
        """Report that this process serves."""
        self._end({"event": "done", "pid": os.getpid(), **report})

    def failed(self, reason: str) -> None:
        """Report why this process does not serve."""
        self._end({"event": "failed", "pid": os.getpid(), "reason": reason[:REASON_CHARACTERS_MAX]})

    def _end(self, message: Report) -> None:
        if self._socket is None:
            return
        # The coordinator may have ended; the message is then in the log alone.
        with contextlib.suppress(OSError):
            send(self._socket, message)
        self._socket.close()


def send(channel: socket.socket, message: Report) -> None:
    """Send one message; raises OSError when the other side is gone."""
    channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> Report | None:
    """Return the next message, or None when the other side is gone; raises TimeoutError."""
    try:
        data = channel.recv(MESSAGE_BYTES_MAX)
    except ConnectionError:
        return None
    message = json.loads(data) if data else None
    return message if isinstance(message, dict) else None
