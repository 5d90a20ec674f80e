"""The memory files that hold the state.

The rule: a file is sealed at its size, so that a mapping of it can never fault, and its mode lets no process open it
for writing. A process that has a descriptor open for writing keeps its right to write, and so does a successor that
receives it: pread, pwrite and mmap ask for the descriptor's rights and not for the mode. A process that was given a
descriptor for reading, and opens the file again by /proc/self/fd, gets no more than that.

The mode guards against mistakes and against other users. It is no boundary against the owner's own processes, which may
change it, or take over, nor against root. It stays readable for all users because a service whose user was changed
keeps the files of the user before, and hands them out by opening them again; to open one at all takes a descriptor of
it, or the rights of its holder (proc(5), /proc/pid/fd).

Sources: memfd_create(2), fcntl(2) "File Sealing", fchmod(2), fallocate(2).
"""

import ctypes
import fcntl
import os
import struct

from oxidize.errors import OxidizeError

MODE = 0o444

# Python lacks fallocate(2) with its flags.
_FALLOC_FL_KEEP_SIZE = 0x01  # linux/falloc.h
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def check_machine() -> None:
    """Raise OxidizeError on a machine that stores 64 bits in two steps: a kill in between would divide a counter."""
    bits = 8 * struct.calcsize("P")
    if bits < 64:
        raise OxidizeError(
            f"this Python has words of {bits} bits; expected 64: a counter must be stored in one step, which no crash "
            "divides; use a 64-bit Python on a 64-bit machine"
        )


def create(name: str, size: int) -> int:
    """Return a descriptor of a new file of `size` zeros that takes no memory yet; raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, MODE)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:  # cleans up, and raises it again
        os.close(fd)
        raise
    return fd


def create_filled(name: str, content: bytes) -> int:
    """Return a descriptor of a new file with this content, sealed against every change; raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, MODE)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:  # cleans up, and raises it again
        os.close(fd)
        raise
    return fd


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give `length` bytes from `offset` on back to the kernel; they then read as zeros. Raises OSError on failure.

    Not by mapping the range (madvise(2) MADV_REMOVE): a mapping has a descriptor of its own, and closing that would
    drop the journal's lock.
    """
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
