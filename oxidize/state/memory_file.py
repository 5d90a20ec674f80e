"""The memory files in which a state lies.

The rule: a file is sealed at its size, so that a mapping of it can never fault, and its mode lets nobody open it for
writing. Whoever has a descriptor that is open for writing goes on with that, a successor too: pread, pwrite and mmap
ask for the descriptor's rights and not for the mode. Whoever was given one for reading, and opens it again by
/proc/self/fd, gets no more than that.

The mode guards against mistakes and against other users. It is no boundary against the owner's own processes, which may
change it, or take over, nor against root. It stays readable for everybody because a service whose user was changed goes
on with the files of the user before, and hands them out by opening them again; to open one at all takes a descriptor of
it, or the rights of its holder (proc(5), /proc/pid/fd).

Sources: memfd_create(2), fcntl(2) "File Sealing", fchmod(2).
"""

import fcntl
import os

MODE = 0o444


def create(name: str, size: int) -> int:
    """Return a descriptor of a new file of `size` zeros that takes no memory yet; raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, MODE)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
