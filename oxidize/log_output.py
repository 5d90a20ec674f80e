"""Writes of log lines that wait for no reader: of a pipe, a terminal, a socket, or the journal.

The rule: the thread that logs carries the packets too, so no write here blocks. A line for which there is no room, or
which is refused, is lost; it is counted, and one line says how many were lost once there is room again. O_NONBLOCK is
not set on what this process was given: the open file is shared with the shell or the program that started it. A pipe or
a terminal is opened a second time instead; where that is refused, a write follows a poll and takes no more than what
the poll promises. (A regular file always has room, or is full.)

Sources: pipe(7) on PIPE_BUF, proc_pid_fd(5), open(2), poll(2), unix(7), termios(3) on IXON; systemd.exec(5);
systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

import contextlib
import io
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

STANDARD_ERROR = 2
IDENTIFIER = "oxidize"  # in the journal
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
JOURNAL_STREAM = Path("/run/systemd/journal/stdout")

_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_JOURNAL_SEND_BUFFER_BYTES = 8 << 20  # as libsystemd asks for: one datagram is one event

Send = Callable[[bytes], int]  # returns how many bytes were taken, and may raise OSError for none


class Losses:
    """The number of lost lines that are not counted yet, and who is told of each: `noted`."""

    def __init__(self) -> None:
        self.noted: Callable[[], None] | None = None
        self._uncounted = 0

    def note(self) -> None:
        """Note one lost line."""
        self._uncounted += 1
        if self.noted is not None:
            self.noted()

    def take(self) -> int:
        """Return how many lines were lost since the last call."""
        taken, self._uncounted = self._uncounted, 0
        return taken


losses = Losses()  # of this process


class Output:
    """Writes events through `send`. report: returns the event that says how many were lost before it."""

    def __init__(self, send: Send, report: Callable[[int], bytes], lost: Losses = losses) -> None:
        self._send = send
        self._report = report
        self._losses = lost
        self._lost = 0  # since the last report
        self._rest = b""  # of an event that was taken in part

    def write(self, event: bytes) -> None:
        """Write an event, or lose it."""
        if not (self.report_losses() and self._put(event)):
            self._lost += 1
            self._losses.note()

    def report_losses(self) -> bool:
        """Write what an earlier write left to be written, and report the losses; return whether there was room."""
        if self._rest:
            rest, self._rest = self._rest, b""
            if not self._put(rest):
                self._rest = rest
            if self._rest:
                return False
        if self._lost and self._put(self._report(self._lost)):
            self._lost = 0
        return not (self._lost or self._rest)

    def _put(self, event: bytes) -> bool:
        """Write an event and return whether it is written or begun."""
        left = event
        with contextlib.suppress(OSError):  # BlockingIOError is one; so is a reader that is gone, and a full disk
            while left and (taken := self._send(left)):
                left = left[taken:]
        if len(left) == len(event):
            return False
        self._rest = left
        return True


# --- Standard error ---


class StandardError(io.RawIOBase):
    """Standard error as a file whose writes do not block, for `sys.stderr`.

    A stream of the journal ends when the journal is stopped; once that runs again, another stream takes its place.
    """

    def __init__(self, report: Callable[[int], bytes], fd: int = STANDARD_ERROR) -> None:
        self._fd = fd
        self._is_journal = is_journal(fd, os.environ)
        self._own: int | None = None  # the second opening of a pipe or a terminal
        self._socket: socket.socket | None = None
        self._send = self._open()
        self.output = Output(self._send_now, report)

    def reopen(self) -> None:
        """Look again at what the descriptor leads to: another file has taken its place."""
        self._close_own()
        self._send = self._open()

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._fd)

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]  # of any Buffer, untyped
        """Write lines or lose them; no error of the file reaches the caller."""
        self.output.write(bytes(data))
        return len(data)

    def close(self) -> None:
        """Close what was opened here, and not the descriptor itself."""
        self._close_own()
        super().close()

    def _close_own(self) -> None:
        if self._own is not None:
            os.close(self._own)
        if self._socket is not None:
            self._socket.close()
        self._own = self._socket = None

    def _open(self) -> Send:
        kind = os.fstat(self._fd).st_mode
        if stat.S_ISSOCK(kind):
            connected = self._socket = socket.socket(fileno=os.dup(self._fd))
            return lambda data: connected.send(data, _DONTWAIT)
        if stat.S_ISREG(kind):
            return self._write_given
        is_pipe = stat.S_ISFIFO(kind)
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            own = self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError:  # the pipe has no reader, the terminal is another user's, /proc is not mounted
            sure = select.PIPE_BUF if is_pipe else 1
            return lambda data: self._write_given(data[:sure]) if _has_room(self._fd) else 0
        return lambda data: os.write(own, data)

    def _send_now(self, data: bytes) -> int:
        try:
            return self._send(data)
        except ConnectionError:
            if not self._is_journal:
                raise
            self._open_stream_again()
            return self._send(data)

    def _open_stream_again(self) -> None:
        """Replace a stream of the journal that has ended; raises OSError while the journal takes none."""
        with _journal_stream() as stream:
            os.dup2(stream.fileno(), self._fd)
        found = os.fstat(self._fd)
        os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
        self.reopen()

    def _write_given(self, data: bytes) -> int:
        return os.write(self._fd, data)


def _has_room(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def open_standard_streams() -> None:
    """Open /dev/null where standard input, output or error is closed.

    Otherwise the next socket or file would get the number, and what is printed would be written to it.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so it is `fd`
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115  # for the life of the process


# --- The journal ---


class JournalSocket:
    """The journal's socket for structured events; its reader may hang, be restarted, or be gone."""

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _JOURNAL_SEND_BUFFER_BYTES)

    def send(self, datagram: bytes) -> int:
        """Send one event without waiting; raises OSError where it is not taken."""
        return self._socket.sendto(datagram, _DONTWAIT, self._path)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether systemd connected a descriptor to the journal; the variable alone may be inherited."""
    found = os.fstat(fd)
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def open_journal_stream() -> int:
    """Return a descriptor whose lines go to the journal, as those of systemd-cat(1); to /dev/null if it takes none."""
    try:
        return _journal_stream().detach()
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


def _journal_stream() -> socket.socket:
    """Return a stream to the journal; raises OSError if it takes none."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.setblocking(False)  # a journal that hangs accepts nothing
        stream.connect(str(JOURNAL_STREAM))
        # Identifier, unit, priority (info); whether lines have prefixes, and go to syslog, kernel log, console, too.
        stream.sendall(f"{IDENTIFIER}\n\n6\n0\n0\n0\n0\n".encode())
    except OSError:
        stream.close()
        raise
    return stream


def journal_datagram(fields: Mapping[str, object]) -> bytes:
    """Return one event for the journal."""
    parts = []
    for name, value in fields.items():
        data = str(value).encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)
