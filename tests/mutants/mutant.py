"""What a mutant is, and how it is applied.

The rule: a mutant is one bug of behaviour that a reviewer would look for, written by hand. Its old text occurs exactly
once in its file; the tests that are named with it fail while it is applied, and pass otherwise.
"""

from dataclasses import dataclass
from pathlib import Path

PLANTED = "OXIDIZE_PLANTED_BUG"  # the environment's name that tells tests that they are to fail


class MutantError(Exception):
    """A mutant that no longer fits the source."""


@dataclass(frozen=True)
class Mutant:
    """One bug: in `file`, `old` is replaced by `new`.

    file: below `oxidize`. caught_by: pytest's names of the tests that fail, below `tests`. why: what the bug would
    break.
    """

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    why: str

    def path(self, root: Path) -> Path:
        """Return the file's path in a tree."""
        return root / "oxidize" / self.file

    def mutated(self, source: str) -> str:
        """Return the source with the bug; raises MutantError unless the old text occurs exactly once in it."""
        found = source.count(self.old)
        if found != 1:
            raise MutantError(
                f"{self.name}: {self.old!r} occurs {found} times in oxidize/{self.file}; expected once: adapt the "
                "mutant to the new source"
            )
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Equivalent:
    """A change that looks like a bug and is none: no test can find it, so it is not run. `reason`: why."""

    name: str
    reason: str
