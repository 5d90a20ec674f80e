"""The lock of an installation: one deployment at a time.

The rule: only the process that holds the lock changes the installation. The kernel releases the lock when its holder
has ended, and every process that inherited the descriptor: a build that outlives a killed deployment keeps it. `make
install` takes the same lock. Source: flock(2).
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from oxidize.errors import DeployError

NAME = ".lock"
LOCKS = Path("/proc/locks")
LINE_BYTES_MAX = 256


def lock_holder(prefix: Path) -> str | None:
    """Return what the holder wrote about itself, "" if that cannot be read; None if the lock is free.

    The lock is not tried, because that would make a concurrent attempt fail. Source: proc(5), /proc/locks.
    """
    path = prefix / NAME
    try:
        inode = path.stat().st_ino
        locks = LOCKS.read_text().splitlines()
    except OSError:
        return None
    # The device is not compared: /proc/locks shows another one for some file systems (btrfs, overlayfs).
    if not any(" FLOCK " in line and f":{inode} " in line for line in locks):
        return None
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def locked(prefix: Path, who: str) -> Iterator[int]:
    """Hold the lock of an installation; yields its descriptor. Raises DeployError with the holder if it is taken.

    who: the holder as shown to others, such as "pid 12, alice, since ...".
    """
    path = prefix / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DeployError(
            f"{path}: {error.strerror}; expected an installation (`sudo make install` makes one) that this user may "
            "change: try sudo"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # If `make uninstall` has removed the file since it was opened, the lock excludes no other process.
            if not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            holder = os.pread(descriptor, LINE_BYTES_MAX, 0).decode(errors="replace").strip() or "unknown"
            raise DeployError(
                f"another build or deployment is under way ({holder}); try again when it has ended"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who}\n".encode()[:LINE_BYTES_MAX], 0)
        yield descriptor
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
