"""One deployment at a time.

The rule: whoever holds the lock may change what is installed. It is a lock of the kernel's on an open file, so it ends
with its holder, and with the last process that the holder gave the descriptor to: a build that outlives a killed
deployment keeps it. `make install` takes the same one. Source: flock(2).
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


def holder(prefix: Path) -> str | None:
    """Return what is known of the holder, "" where that cannot be read; None where nobody holds the lock.

    It is not tried: whoever came meanwhile would be refused. Source: proc(5), /proc/locks.
    """
    path = prefix / NAME
    try:
        inode = path.stat().st_ino
        locks = LOCKS.read_text().splitlines()
    except OSError:
        return None
    # Not by its device, which is another one there for some file systems (btrfs, overlayfs).
    if not any(" FLOCK " in line and f":{inode} " in line for line in locks):
        return None
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def locked(prefix: Path, who: str) -> Iterator[int]:
    """Hold the lock of an installation; yields its descriptor. Raises DeployError, and says who holds it.

    who: what the next one is told, such as "pid 12, alice, since ...".
    """
    path = prefix / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DeployError(
            f"{path}: {error.strerror}; expected an installation (`sudo make install` makes it) and the right to "
            "change it: try sudo"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two `make uninstall` may have removed it: then it excludes nobody.
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
