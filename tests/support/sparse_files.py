"""The contents of sparse files."""

import errno
import os


def content(fd: int) -> bytes:
    """Return the offset and content of every extent that is not a hole."""
    size, parts, stop = os.fstat(fd).st_size, [], 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        stop = os.lseek(fd, start, os.SEEK_HOLE)
        parts.append(b"%d:" % start + os.pread(fd, stop - start, start))
    return b"".join(parts)
