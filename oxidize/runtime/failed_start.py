"""The end of a process whose configuration has mistakes, under a service manager that starts it again without a limit.

The rule: the start that an operator asked for fails at once and says why. One by which the manager repeats it waits
until a file beside the configuration has changed: every other start would fail with the same lines. Sockets and state
stay with the manager meanwhile, so a server that crashed while its configuration had a mistake loses no session.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

CORRECTION_WAIT_SECS = 60.0  # for key files elsewhere; less than TimeoutStartSec= of the units
LOOK_INTERVAL_SECS = 0.25


def await_correction(config_path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when a file in the folder of the configuration has changed, or after CORRECTION_WAIT_SECS."""
    before = _files_of(config_path.parent)
    for _ in range(int(CORRECTION_WAIT_SECS / LOOK_INTERVAL_SECS)):
        sleep(LOOK_INTERVAL_SECS)
        if _files_of(config_path.parent) != before:
            return


def _files_of(folder: Path) -> list[tuple[str, int, int]] | None:
    """Return what changes when a file is written, replaced, or given to another user; None for no such folder."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return None
    return sorted((name, one.st_ino, one.st_ctime_ns) for name, one in found)
