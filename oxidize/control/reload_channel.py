"""The channel between a coordinator (`oxidize reload`) and the successor that it started.

The coordinator may send the settings that it has validated. PREPARED says that all slow work is done; the coordinator
answers GO when the service manager knows the new main process; DONE or FAILED ends the exchange. A successor whose
coordinator ends before GO gives up, because the operator would not learn of it; one whose predecessor has died needs no
GO, for no other process can serve.

The rule: the two ends may be of different releases, so a message or a field is never renamed, and unknown ones are
ignored. What cannot be read counts as no message: neither end fails at the other's bytes.

Source: RFC 8259; a character outside of ASCII takes 6 bytes for each 2 or 3 of UTF-8, and 12 for 4.
"""

import array
import contextlib
import json
import os
import select
import signal
import socket
from typing import Any

from oxidize.clock import boot_time
from oxidize.cpu_priority import CpuPriority
from oxidize.errors import Phase, TakeoverError

MESSAGE_BYTES_MAX = 262_144  # of one that is read: more than a send buffer (212,992) lets any release send
REASON_BYTES_MAX = 10_000  # in UTF-8, each of which takes 6 bytes of JSON at most: 65,536 are what older ones read
GO_TIMEOUT_SECS = 20.0
WORKING_SECS = 20.0  # after GO, and between two words of work: most reloads are done long before the first

Report = dict[str, Any]


class Control:
    """The successor's end of the channel. fd: its socket, or None for a process without a coordinator.

    priority: that of this process, which is lowered at most until it is prepared.
    """

    def __init__(self, fd: int | None, priority: CpuPriority | None = None) -> None:
        self._socket: socket.socket | None = None
        self._priority = priority
        self._said_at = 0.0
        self.has_told_failure = False  # to a coordinator, which prints it
        if fd is not None:
            os.set_inheritable(fd, False)
            self._socket = socket.socket(fileno=fd)

    @property
    def is_coordinated(self) -> bool:
        """Whether a coordinator started this process."""
        return self._socket is not None

    def take_settings(self) -> list[int]:
        """Return the file with the settings that the coordinator has validated, if it has sent one before all else."""
        if self._socket is None:
            return []
        room = socket.CMSG_LEN(array.array("i").itemsize)
        try:
            # Not `socket.recv_fds`, which ignores the flags.
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            _, ancillary, _, _ = self._socket.recvmsg(MESSAGE_BYTES_MAX, room, flags)
        except OSError:  # there is none: BlockingIOError is one
            return []
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload)
        return list(fds)

    def prepared(self, report: Report, predecessor_fd: int | None = None) -> None:
        """Report that all slow work is done and wait for GO; raises TakeoverError if it does not come.

        predecessor_fd: the predecessor's pidfd. Its death ends the wait, and the caller inherits.
        """
        if self._priority is not None:
            self._priority.restore()  # packets wait for what follows
        if self._socket is None:
            return
        self._socket.settimeout(GO_TIMEOUT_SECS)
        answer = None
        try:
            send(self._socket, {"event": "prepared", "pid": os.getpid(), **report})
            if not _wait_for_go(self._socket, predecessor_fd):
                self.go_alone()
                return
            answer = receive(self._socket)
        except OSError:  # TimeoutError is one
            pass
        if answer is None or answer.get("event") != "go":
            reason = "the coordinator is gone: expected its GO; run `oxidize reload` again"
            raise TakeoverError(Phase.PREPARING, reason)
        self.go_alone()

    def go_alone(self) -> None:
        """Outlive the coordinator from now on: the predecessor bounds the takeover, or has died."""
        self._said_at = boot_time()
        if self._socket is not None:
            signal.alarm(0)  # set by the coordinator

    def working(self) -> None:
        """Tell the coordinator, every WORKING_SECS, that this process serves and still has work to report on."""
        if self._socket is not None and (now := boot_time()) >= self._said_at + WORKING_SECS:
            self._said_at = now
            with contextlib.suppress(OSError):  # the coordinator may have ended
                send(self._socket, {"event": "working"})

    def done(self, report: Report) -> None:
        """Report that this process serves."""
        self._end({"event": "done", "pid": os.getpid(), **report})

    def failed(self, reason: str) -> None:
        """Report why this process does not serve."""
        cut = reason.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")
        self.has_told_failure = self._end({"event": "failed", "pid": os.getpid(), "reason": cut})

    def _end(self, message: Report) -> bool:
        """Send the last message; return whether a coordinator gets it: it may have ended."""
        if self._socket is None:
            return False
        with self._socket as channel, contextlib.suppress(OSError):
            send(channel, message)
            return True
        return False


def _wait_for_go(channel: socket.socket, predecessor_fd: int | None) -> bool:
    """Return whether there is something to receive, False if the predecessor has died before; raises TimeoutError."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if predecessor_fd is not None:
        poll.register(predecessor_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(GO_TIMEOUT_SECS * 1000)}
    if not ready:
        raise TimeoutError
    return ready != {predecessor_fd}


def send_settings(channel: socket.socket, fd: int) -> None:
    """Send a file with settings to a successor, before all else; raises OSError."""
    socket.send_fds(channel, [json.dumps({"event": "settings"}).encode()], [fd])


def send(channel: socket.socket, message: Report) -> None:
    """Send one message; raises OSError when the other side is gone."""
    channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> Report | None:
    """Return the next message, or None when the other side is gone or sent what is none; raises TimeoutError."""
    try:
        try:
            data = channel.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            # The other side closed with a GO unread, as an heir does. That is reported once, before its last message.
            data = channel.recv(MESSAGE_BYTES_MAX)
        message = json.loads(data)
    except (ConnectionError, ValueError, RecursionError):  # ValueError also for the empty bytes at the end
        return None
    return message if isinstance(message, dict) else None
