"""Copies of a journal and an arena while another process keeps writing them.

The rule: a copy is the journal of one moment, and an arena that is no older, so that every slot that the journal names
is in use in the arena. The source is only read, by descriptors that may be read-only, and its writer takes no part. The
copy is in memory files, as the state itself: it holds keys.

Sources: lseek(2) SEEK_DATA and SEEK_HOLE, memfd_create(2).
"""

import errno
import os

from oxidize.errors import SnapshotError
from oxidize.state.journal import ACTIVATIONS, END, HEADER_BYTES, HEADER_WORDS, REGION_BYTES, WORD_BYTES

COPY_BYTES = 1 << 20  # read and written at once


def copy_journal(source: int, activations: int, end: int) -> int | None:
    """Return the descriptor of a copy of the journal as it was at a `Journal.position`, or None if that is gone.

    activations, end: the position. It is gone when the regions have changed sides since: the region that was active may
    have been overwritten. Raises SnapshotError when the source cannot be read.
    """
    try:
        header = _header(source)
        if header[ACTIVATIONS] != activations:
            return None
        number = activations & 1
        base = HEADER_BYTES + number * header[REGION_BYTES]
        limit = base + header[REGION_BYTES]
        if not base <= end <= limit:
            raise SnapshotError(f"journal: the position ends at {end}, expected {base} to {limit}")
        header[END + number] = end
        copy = _new_file("oxidize-journal-copy", source)
        try:
            os.pwrite(copy, header, 0)
            _copy_range(source, copy, base, end)
            # Checked last: while the sides are the same, no byte before the end has changed.
            is_good = _header(source)[ACTIVATIONS] == activations
        except BaseException:  # cleans up, and raises it again
            os.close(copy)
            raise
    except (OSError, OverflowError) as error:  # the latter for header values that exceed any file's size
        raise SnapshotError(f"journal: it cannot be copied: {error}") from error
    if not is_good:
        os.close(copy)
        return None
    return copy


def copy_arena(source: int) -> int:
    """Return the descriptor of a copy of an arena, as sparse as the source; raises SnapshotError."""
    try:
        copy = _new_file("oxidize-arena-copy", source)
        try:
            _copy_data(source, copy)
        except BaseException:  # cleans up, and raises it again
            os.close(copy)
            raise
    except OSError as error:
        raise SnapshotError(f"arena: it cannot be copied: {error}") from error
    return copy


def _header(source: int) -> memoryview:
    header = bytearray(os.pread(source, HEADER_WORDS * WORD_BYTES, 0))
    if len(header) < HEADER_WORDS * WORD_BYTES:
        raise SnapshotError(f"journal: the file has {len(header)} bytes, expected a header of {HEADER_BYTES}")
    return memoryview(header).cast("Q")


def _new_file(name: str, like: int) -> int:
    copy = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.truncate(copy, os.fstat(like).st_size)
    except BaseException:  # cleans up, and raises it again
        os.close(copy)
        raise
    return copy


def _copy_data(source: int, copy: int) -> None:
    size = os.fstat(source).st_size
    stop = 0
    while stop < size:
        try:
            start = os.lseek(source, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return
            raise
        stop = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, copy, start, stop)


def _copy_range(source: int, copy: int, start: int, stop: int) -> None:
    while start < stop:
        chunk = os.pread(source, min(COPY_BYTES, stop - start), start)
        if not chunk:
            raise SnapshotError(f"the file ends at {start}, expected {stop} bytes of it")
        written = 0
        while written < len(chunk):
            written += os.pwrite(copy, chunk[written:], start + written)
        start += len(chunk)
