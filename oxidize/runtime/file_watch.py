"""Looks for changes of a few files outside, of which the kernel's netlink does not tell: those of the name servers.

The rule: a change is only a trigger, as with `net.network_watch`: what the files say is read by those who compare it.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

LOOK_SECS = 0.8
QUIET_SECS = 0.1  # without a further change, for a program may be writing


class FileWatch:
    """Calls `changed` with the time once after `begins_at`, and after each change of a file, while this process owns.

    begins_at: seconds. Used as a `Timed` of the loop.
    """

    def __init__(
        self, files: Sequence[Path], changed: Callable[[float], None], is_owner: Callable[[], bool], begins_at: float
    ) -> None:
        self._files = files
        self._changed = changed
        self._is_owner = is_owner
        self._due_at = begins_at
        self._seen: list[tuple[int, ...]] | None = None
        self._is_told = False

    # --- Called by the loop ---

    def next_deadline(self) -> float | None:
        """Return when the next look is due."""
        return self._due_at if self._is_owner() else None

    def handle_timeout(self, now: float) -> None:
        """Compare the files with those of the look before."""
        seen = [_identity(path) for path in self._files]
        if seen != self._seen:
            self._seen, self._is_told = seen, False
            self._due_at = now + QUIET_SECS
            return
        self._due_at = now + LOOK_SECS
        if not self._is_told:
            self._is_told = True
            self._changed(now)


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes with the content of a file, or of that to which a link leads; nothing for none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - without the objects of pathlib: it is done each second
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
