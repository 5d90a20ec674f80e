"""What a part of the host's network is to the keeper that compares it with the kernel.

The rule: a part says what should be, and asks the kernel what is. It believes no earlier answer, nor what it has set
itself. It works in slices, of less than a millisecond where the kernel permits, for the process that runs it also
carries the data path.
"""

import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from oxidize.errors import OxidizeError
from oxidize.text import counted

CHANGES_SHOWN = 10  # differences named in one line of the log

_Result = TypeVar("_Result")

Steps = Generator[float, None, _Result]  # yields after each slice the seconds after which the next one is due
Pause = Callable[[float], None]  # called with these seconds; a loop's `run_once` serves meanwhile


class Part(Protocol):
    """One thing that this process sets up outside of itself. name: for the log and the status."""

    name: str

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        """Compare the kernel's state with the wanted one; return the differences, a line each.

        repair: whether to put them right. Raises OxidizeError for what could not be read, or not put right; the rest is
        put right all the same.
        """


def run(steps: Steps[_Result], pause: Pause = time.sleep) -> _Result:
    """Run steps to their end, with a pause after each slice; raises what they raise, and what `pause` raises."""
    while True:
        try:
            secs = next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
        pause(secs)


class IncompleteError(OxidizeError):
    """Some of the differences could not be put right. changes: those that were, a line each."""

    def __init__(self, problems: list[str], changes: list[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.changes = changes


def summary_of(changes: Sequence[str]) -> str:
    """Return differences in one line, the first CHANGES_SHOWN by name."""
    more = len(changes) - CHANGES_SHOWN
    return ", ".join(changes[:CHANGES_SHOWN]) + (f" and {counted(more, 'more change')}" if more > 0 else "")
