"""The socket on which a predecessor listens for its successor.

The rule: the path always leads to a listening socket, from the first bind until the last owner leaves. A new owner
binds beside the path and renames over it (rename(2) is atomic); who may is said by `path_lock`. An owner that leaves
removes the path only while it is still its own, and before it stops listening, so that a process that finds no path may
bind it. No system call removes a name on a condition, so it first moves the name aside and then looks what it has
moved: the name of another process goes back. Only its own user can connect (unix(7): connecting needs write
permission): the mode is set before the name exists.
"""

import contextlib
import os
import socket
from pathlib import Path

from oxidize.errors import Phase, StateError, TakeoverError
from oxidize.takeover.channel import Channel
from oxidize.takeover.path_lock import make_folder

BACKLOG = 16
MODE = 0o600
PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, with its final zero


class Listener:
    """A listening SOCK_SEQPACKET socket with a name, non-blocking.

    required: False where the process serves in any case, and `bind` repeats an attempt that failed. error: of the first
    attempt.
    """

    def __init__(self, path: Path, *, required: bool = True) -> None:
        """Bind to the path and replace what is there; raises TakeoverError if that is required and impossible."""
        self.path = path
        self._pid = os.getpid()
        self._socket: socket.socket | None = None
        self._identity = (0, 0)
        self.error: TakeoverError | None = None
        try:
            self.bind()
        except TakeoverError as error:
            self.error = error
            if required:
                raise

    def bind(self) -> None:
        """Bind to the path, in a new folder if there is none, and replace what is there.

        Raises TakeoverError, and then listens no more. The old socket is closed first:
        a process at its limit of open files needs its descriptor, and no process can find that socket any longer.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._socket, self._identity = _bind(self.path)

    def fileno(self) -> int:
        """Return the descriptor to watch, -1 while there is none."""
        return self._socket.fileno() if self._socket is not None else -1

    def accept(self) -> Channel | None:
        """Return the next connection, or None if there is none.

        Raises OSError if there is no descriptor left for it, TakeoverError if its process cannot be watched, and
        StateError in a fork of the process that bound: successors would watch that one, and own once it has ended.
        """
        if os.getpid() != self._pid:
            raise StateError(f"accept in process {os.getpid()}; expected {self._pid}: bind after the last fork")
        if self._socket is None:
            return None
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        return Channel(connection)

    def is_bound(self) -> bool:
        """Return whether the path still leads here; True where that cannot be known now."""
        if self._socket is None:
            return False
        try:
            # The inode number cannot have been used again: this socket still holds it.
            return _identity_of(self.path) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Stop listening, and remove the path if it still leads here; idempotent."""
        if self._socket is None:
            return
        if self.is_bound():
            with contextlib.suppress(OSError):
                self._remove()
        self._socket.close()
        self._socket = None

    def _remove(self) -> None:
        aside = _beside(self.path)
        self.path.rename(aside)
        if _identity_of(aside) != self._identity:  # another process has bound the path since `is_bound`
            try:
                os.link(aside, self.path)
            except FileExistsError:
                pass  # a third one has bound it by now
            except OSError:  # no hard links there, or not to another user's file
                aside.rename(self.path)
                return
        aside.unlink()


def _identity_of(path: Path) -> tuple[int, int]:
    found = path.stat(follow_symlinks=False)
    return found.st_dev, found.st_ino


def _beside(path: Path) -> Path:
    """Return a name that no other process uses, whatever pid namespace it is in."""
    return path.with_name(f".{os.urandom(4).hex()}")


def _bind(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    temporary = _beside(path)
    longest = max(len(os.fsencode(path)), len(os.fsencode(temporary)))
    if longest > PATH_BYTES_MAX:
        raise TakeoverError(
            Phase.LISTENING, f"{path} needs {longest} bytes; expected at most {PATH_BYTES_MAX}: shorten it"
        )
    try:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        reason = f"cannot listen at {path}: {error}; expected a free descriptor: raise the limit of open files"
        raise TakeoverError(Phase.LISTENING, reason) from error
    try:
        listening.setblocking(False)
        make_folder(path)
        os.fchmod(listening.fileno(), MODE)  # bind gives the name this mode, less the umask
        listening.bind(os.fspath(temporary))
        identity = _identity_of(temporary)
        listening.listen(BACKLOG)
        temporary.rename(path)
    except OSError as error:
        listening.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = (
            f"cannot listen at {path}: {error}; expected a folder with room that this user may write to: make room, "
            "correct who may write, or set takeover_socket"
        )
        raise TakeoverError(Phase.LISTENING, reason) from error
    except BaseException:  # cleans up, and raises it again
        listening.close()
        raise
    return listening, identity
