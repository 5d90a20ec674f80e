"""The lock of a takeover path: the process that serves there holds it.

The rule: a process that finds no listener at the path serves only if no other process holds the lock, and so does a
predecessor that serves again. So exactly one of several simultaneous starts serves, also while the path is missing, and
while a process that was stopped in a takeover still thinks that it may serve again. A lock that cannot be had, for
there is no room for its file, is no reason to serve no tunnel: then the port, the interface and the journal's writer
lock keep a second process out.

The lock is one of an open file beside the path, so the kernel releases it when its process has ended, however that was.
The file stays, for its existence means nothing; where it was removed or replaced the holder takes the new one. No child
inherits the lock: the descriptor is close-on-exec. Sources: flock(2); proc(5), fdinfo.
"""

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from oxidize.errors import Phase, TakeoverError

MODE = 0o600
OPEN_ATTEMPTS = 3  # of a file that is replaced between opening and locking it

log = logging.getLogger(__name__)


def make_folder(path: Path) -> None:
    """Make the folder of a takeover path if it is missing; raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


class PathLock:
    """The lock of a takeover path, which this process does not hold yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.lock")
        self._fd = -1
        self._is_locked = False

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock of the file that is at the path now; True where that cannot be known."""
        return self._is_locked and self._is_current()

    def take(self) -> bool:
        """Take the lock without waiting, idempotent; return False where another process holds it.

        Raises TakeoverError where the file cannot be opened or locked.
        """
        try:
            for _ in range(OPEN_ATTEMPTS):
                if self._fd < 0 or not self._is_current():
                    make_folder(self.path)
                    with contextlib.suppress(FileExistsError):  # another process has made it since the look
                        self._open()
                if self._fd >= 0 and not self._is_locked:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._is_locked = True
                if self._is_locked and self._is_current():
                    return True
        except BlockingIOError:
            return False
        except OSError as error:
            raise TakeoverError(
                Phase.LISTENING,
                f"{self.path}: {error.strerror}; expected a file that this user may open and lock, in a folder with "
                "room that it may write to: make room there, or correct who may write; remove the file if no server "
                "runs here",
            ) from error
        raise TakeoverError(Phase.LISTENING, f"{self.path} is replaced all the time; expected one file that stays")

    def prepare(self) -> None:
        """Open the file, so that little is left for `take` to do; what fails here is left to it, too."""
        with contextlib.suppress(OSError):
            if self._fd < 0 or not self._is_current():
                make_folder(self.path)
                self._open()

    def take_if_possible(self) -> bool:
        """Take the lock for a process that must serve: return False only where another process holds it."""
        try:
            return self.take()
        except TakeoverError as error:
            log.error("takeover: serving without the lock of the path: %s", error.reason)
            return True

    def release(self) -> None:
        """Let another process take the lock; idempotent. The file stays open, so that `take` needs no descriptor."""
        if self._is_locked:
            self._is_locked = False
            with contextlib.suppress(OSError):  # a file that is open can always be unlocked
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock and close the file; idempotent."""
        self._is_locked = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def holder(self) -> str:
        """Return the process that holds the lock, as words for an error: "another process" if it is not to be seen."""
        with contextlib.suppress(OSError):
            inode = self.path.stat(follow_symlinks=False).st_ino
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it ended, or is another user's
                    if any(_names_lock(entry, inode) for entry in (process / "fdinfo").iterdir()):
                        return f"pid {process.name}"
        return "another process"

    def _open(self) -> None:
        """Open the file at the path, new if there is none; an older one is closed before, for its descriptor."""
        self.close()
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = _open_existing(self.path, flags)
        except FileNotFoundError:
            self._fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, MODE)
            if os.geteuid() == 0:
                # The user of the folder must be able to serve there once root no longer does.
                with contextlib.suppress(OSError):
                    os.fchown(self._fd, self.path.parent.stat().st_uid, -1)

    def _is_current(self) -> bool:
        """Return whether the path leads to the file that is open; True where that cannot be known now."""
        try:
            own, found = os.fstat(self._fd), self.path.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


def _open_existing(path: Path, flags: int) -> int:
    """Open a file for writing, as some file systems want for flock(2), or for reading where nothing may be written."""
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, flags & ~os.O_ACCMODE | os.O_RDONLY)


def _names_lock(fdinfo: Path, inode: int) -> bool:
    """Return whether the descriptor of this entry of /proc has a lock of flock(2) on a file."""
    return any(" FLOCK " in line and f":{inode} " in line for line in fdinfo.read_text().splitlines())
