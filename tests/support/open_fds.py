"""The open file descriptors of this process, for tests of code that must not leak any."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def open_fds() -> list[str]:
    """Return the numbers of the open file descriptors."""
    gc.collect()
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


@contextmanager
def no_leaked_fds() -> Iterator[None]:
    """Check at exit that exactly the same descriptors are open as at entry."""
    before = open_fds()
    yield
    assert open_fds() == before
