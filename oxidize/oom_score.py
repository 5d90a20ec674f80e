"""Which process the kernel ends first where memory runs out: one that does not serve yet, before the one that does.

The rule: a process that is about to replace another one, the command that started it, a rehearsal and a build raise
their score to the highest; it is lowered to the value before as soon as the process serves, or the work is done.
Neither needs a right. A successor begins with the raised score of the command, or of what its holder forked, and finds
the value before in its environment. Whatever the kernel refuses is no reason to do without the process.

Source: proc(5), /proc/PID/oom_score_adj: a value may be lowered to the one that a privileged process set last. The file
is opened by `raise_`, for it belongs to root where a process may not be dumped.
"""

import contextlib
import os

PATH = "/proc/self/oom_score_adj"
HIGHEST = b"1000"  # OOM_SCORE_ADJ_MAX: such a process is ended before any other
VALUE_BYTES = 16
BEFORE = "OXIDIZE_OOM_SCORE_ADJ"  # in the environment of children that are started while the score is raised


class OomScore:
    """The score of this process."""

    def __init__(self) -> None:
        self._fd = -1
        self._before = b""

    def __enter__(self) -> "OomScore":
        self.raise_()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def raise_(self) -> None:
        """Let this process, and the children that it starts from now on, be ended first; idempotent."""
        if self._fd >= 0:
            return
        with contextlib.suppress(OSError):
            self._fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
            inherited = os.environ.get(BEFORE)
            self._before = inherited.encode() if inherited is not None else os.read(self._fd, VALUE_BYTES).strip()
            os.environ[BEFORE] = self._before.decode()
            self._write(HIGHEST)

    def restore(self) -> None:
        """Return this process to its score before; idempotent."""
        if self._fd < 0:
            return
        os.environ.pop(BEFORE, None)
        with contextlib.suppress(OSError):
            self._write(self._before)
        os.close(self._fd)
        self._fd = -1

    def _write(self, value: bytes) -> None:
        os.pwrite(self._fd, value, 0)
