"""The lock that says which process writes a journal; the kernel releases it when that process ends.

The rule: a process that does not hold the lock of a stored journal neither writes it nor serves in its writer's place.

It is a POSIX lock, which belongs to the process: a lock of the open file would be shared by all generations. Closing
any descriptor of the file releases it (fcntl(2), "Advisory record locking"), so a process that keeps the lock closes
none.
"""

import contextlib
import errno
import fcntl
import os
import struct

from oxidize.errors import StorageError, WriterBusyError

_HELD = frozenset({errno.EACCES, errno.EAGAIN})  # fcntl(2): another process holds a conflicting lock
_PASSING = frozenset({errno.ENOLCK, errno.ENOMEM, errno.EINTR})  # of the kernel at this moment, not of the descriptor
# struct flock where an off_t has 64 bits: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")


def take(fd: int) -> None:
    """Take the lock of the journal `fd`; idempotent.

    Raises WriterBusyError where another process holds it, and StorageError where the kernel has none to give:
    `is_passing` tells whether it may have one later.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise WriterBusyError(
                f"another process writes the journal ({error.strerror}): it owns the state"
            ) from error
        raise StorageError(
            f"the lock of the journal cannot be taken: {error.strerror}; expected a descriptor that is open for "
            "writing, and a kernel with memory for the lock"
        ) from error


def release(fd: int) -> None:
    """Release the lock of the journal `fd`; idempotent."""
    fcntl.lockf(fd, fcntl.LOCK_UN)


def is_held_elsewhere(fd: int) -> bool:
    """Return whether another process holds the lock, False where the kernel does not say."""
    with contextlib.suppress(OSError):
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    return False


def is_passing(error: StorageError) -> bool:
    """Return whether the reason of an error of `take` may pass by itself."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _PASSING
