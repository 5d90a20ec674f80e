"""The bytes of a fuzzer as a script of decisions: numbers, choices, texts.

The rule: every input is a script, and the same bytes are the same script in every release of the fuzzer, so that a
stored input keeps its meaning. An exhausted script answers 0.
"""

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Script:
    """Decisions, taken from the front of `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, high: int, low: int = 0) -> int:
        """Return a number from low to high, both included."""
        span = high - low + 1
        size = max(1, ((span - 1).bit_length() + 7) // 8)
        return low + int.from_bytes(self.take(size), "little") % span

    def flag(self) -> bool:
        """Return a decision."""
        return bool(self.number(1))

    def pick(self, items: Sequence[_T]) -> _T:
        """Return one of at least one item."""
        return items[self.number(len(items) - 1)]

    def take(self, size: int) -> bytes:
        """Return the next bytes, at most `size`."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def some(self, size_max: int) -> bytes:
        """Return at most `size_max` bytes; how many is part of the script."""
        return self.take(self.number(size_max))

    def text(self, size_max: int) -> str:
        """Return a text of at most `size_max` bytes, with what is not UTF-8 as characters of Latin-1."""
        taken = self.some(size_max)
        try:
            return taken.decode()
        except UnicodeDecodeError:
            return taken.decode("latin-1")

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))

    def broken(self, data: bytes, times_max: int = 4) -> bytes:
        """Return bytes of which some are replaced, and which may be cut short."""
        changed = bytearray(data)
        for _ in range(self.number(times_max)):
            if changed:
                changed[self.number(len(changed) - 1)] = self.number(255)
        return bytes(changed[: self.number(len(changed))] if self.flag() else changed)


def parts(script: Script, fragments: Sequence[str], count_max: int = 14) -> str:
    """Return fragments one after the other, some of them changed."""
    chosen = []
    for _ in range(script.number(count_max)):
        fragment = script.pick(fragments)
        if script.number(3) == 1:
            at = script.number(len(fragment))
            fragment = fragment[:at] + script.text(12) + fragment[at + script.number(3) :]
        chosen.append(fragment)
    return "".join(chosen)
