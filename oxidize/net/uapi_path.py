"""The path at which `wg` looks for the process of an interface, and the socket that listens there.

The rule: the path is taken only while no process listens there, and removed only while it leads to the caller's own
socket. Processes of this program look and bind one at a time, by a lock of the folder (flock(2)); the name appears with
its mode and already listens, for `wg` removes one that refuses. Only root may write to the folder: a process that binds
a name of another interface there would get the keys that `wg setconf` sends.

Sources: wg(8), ipc-uapi-unix.h of wireguard-tools; unix(7): connecting needs write permission; rename(2).
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oxidize.errors import OxidizeError

FOLDER = Path("/var/run/wireguard")  # as wg(8); /run/wireguard on every system with /run
FOLDER_MODE = 0o700
MODE = 0o600
BACKLOG = 16


class Identity(NamedTuple):
    """The file that a path led to when it was bound (stat(2))."""

    device: int
    inode: int


def path_of(interface: str) -> Path:
    """Return the path at which `wg` looks for the process of an interface."""
    return FOLDER / f"{interface}.sock"


def bind(path: Path) -> tuple[socket.socket, Identity]:
    """Return a listening socket at a path, in a new folder if there is none; raises OxidizeError."""
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(FOLDER_MODE)
        with _locked(path.parent):
            if _is_served(path):
                raise OxidizeError(
                    f"another process listens at {path}: expected an interface's name of its own; end one of the two, "
                    "or set `interface`"
                )
            return _bind_over(path)
    except OSError as error:
        raise OxidizeError(
            f"cannot listen at {path}: {error.strerror}: expected a folder that this user may write to"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in {0, os.geteuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OxidizeError(f"{folder}: others may write to it: expected root's; `chown root:` and `chmod 0700` it")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_served(path: Path) -> bool:
    """Return whether a process listens at a path; raises OxidizeError for what is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OxidizeError(f"{path} is no socket: expected none, or that of a process that has ended; remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.EPROTOTYPE}:  # a full backlog, a socket of another type
            raise
    return True


def _bind_over(path: Path) -> tuple[socket.socket, Identity]:
    temporary = path.with_name(f".{os.urandom(4).hex()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        os.fchmod(listener.fileno(), MODE)  # bind gives the name this mode, less the umask
        listener.bind(os.fspath(temporary))
        undo.callback(temporary.unlink, missing_ok=True)
        found = temporary.lstat()
        listener.listen(BACKLOG)
        temporary.rename(path)
        undo.pop_all()
    return listener, Identity(found.st_dev, found.st_ino)


def leads_to(path: Path, identity: Identity) -> bool:
    """Return whether a path leads to a socket that was bound there; True where that cannot be known now."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return (found.st_dev, found.st_ino) == identity


def remove(path: Path, identity: Identity) -> None:
    """Remove a path if it leads to the socket that the caller has bound there, and still holds."""
    with contextlib.suppress(OSError, OxidizeError), _locked(path.parent):
        if leads_to(path, identity):
            path.unlink()
