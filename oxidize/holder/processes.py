"""What the parent of other processes needs: their orphans, and the words for their end.

Sources: prctl(2), PR_SET_CHILD_SUBREAPER; waitid(2); sd_listen_fds(3).
"""

import ctypes
import os
from dataclasses import dataclass

from oxidize.signals import name_of

LISTEN_FDS_START = 3  # sd_listen_fds(3)

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a process: its exit status, or the negative number of the signal; None if unknown."""

    status: int | None

    def __str__(self) -> str:
        """Return the end as words: "exit status 1", "killed by SIGKILL"."""
        if self.status is None:
            return "ended"
        if self.status < 0:
            return f"killed by {name_of(-self.status)}"
        return f"exit status {self.status}"


class Subreaper:
    """While entered, orphaned descendants become children of this process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._before = 0

    def enter(self) -> None:
        """Become the subreaper; raises OSError if the kernel refuses."""
        before = ctypes.c_int()
        self._prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
        self._before = before.value
        self._prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))

    def leave(self) -> None:
        """Restore the setting from before `enter`."""
        self._prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(self._before))

    def _prctl(self, option: int, argument: object) -> None:
        zero = ctypes.c_ulong(0)
        if self._libc.prctl(option, argument, zero, zero, zero) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({option}): {os.strerror(number)}")
