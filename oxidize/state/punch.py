"""Giving a part of a memory file back to the kernel: FALLOC_FL_PUNCH_HOLE of fallocate(2), which Python lacks.

Not by mapping the part: a mapping has a descriptor of its own, and closing that would drop the journal's lock.
"""

import ctypes
import os

_FALLOC_FL_KEEP_SIZE = 0x01  # linux/falloc.h
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free `length` bytes of memory from `offset` on, which read as zeros then; raises OSError where that fails."""
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
