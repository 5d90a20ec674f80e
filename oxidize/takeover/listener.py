"""The socket on which a predecessor listens for its successor.

The rule: the path always leads to a listening socket, from the first bind until the last owner leaves. A new owner
binds beside the path and renames over it (rename(2) is atomic). An owner that leaves unlinks the path only while it is
still its own, and before it stops listening, so that a process that finds no path may bind it. Only its own user can
connect (unix(7): connecting needs write permission): the mode is set before the name exists.
"""

import contextlib
import os
import socket
from pathlib import Path

from oxidize.errors import Phase, StateError, TakeoverError
from oxidize.takeover.channel import Channel

BACKLOG = 16
MODE = 0o600
PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, with its final zero


class Listener:
    """A listening SOCK_SEQPACKET socket with a name, non-blocking."""

    def __init__(self, path: Path) -> None:
        """Bind to the path and replace what is there; raises TakeoverError if that is impossible."""
        self.path = path
        self._pid = os.getpid()
        self._socket, self._identity = _bind(path)

    def fileno(self) -> int:
        """Return the descriptor to watch, -1 once closed."""
        return self._socket.fileno()

    def accept(self) -> Channel | None:
        """Return the next connection, or None if there is none.

        Raises OSError if there is no descriptor left for it, TakeoverError if its process cannot be watched, and
        StateError in a fork of the process that bound: successors would watch that one, and own once it has ended.
        """
        if os.getpid() != self._pid:
            raise StateError(f"accept in process {os.getpid()}; expected {self._pid}: bind after the last fork")
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        return Channel(connection)

    def is_bound(self) -> bool:
        """Return whether the path still leads here."""
        try:
            found = self.path.stat(follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def close(self) -> None:
        """Stop listening, and unlink the path if it still leads here; idempotent."""
        if self._socket.fileno() < 0:
            return
        # The inode number cannot have been used again: this socket still holds it.
        if self.is_bound():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._socket.close()


def _bind(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    temporary = path.with_name(f".{os.getpid()}.new")
    longest = max(len(os.fsencode(path)), len(os.fsencode(temporary)))
    if longest > PATH_BYTES_MAX:
        raise TakeoverError(
            Phase.LISTENING, f"{path} needs {longest} bytes; expected at most {PATH_BYTES_MAX}: shorten it"
        )
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listening.setblocking(False)
        os.fchmod(listening.fileno(), MODE)  # bind gives the name this mode, less the umask
        temporary.unlink(missing_ok=True)  # left by a process with this pid that was killed between bind and rename
        listening.bind(os.fspath(temporary))
        found = temporary.stat(follow_symlinks=False)
        listening.listen(BACKLOG)
        temporary.rename(path)
    except OSError as error:
        listening.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = f"cannot listen at {path}: {error}; expected a directory that this user may write to"
        raise TakeoverError(Phase.LISTENING, reason) from error
    except BaseException:
        listening.close()
        raise
    return listening, (found.st_dev, found.st_ino)
