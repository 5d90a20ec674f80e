"""Session indices: the 32-bit numbers by which received messages find their handshake or keypair.

The rule (paper, section 5.4.2): an index is random, so that it tells an observer nothing, and at any time it names at
most one value. 0 is never allocated: in the changes that a device records it means "none".
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from oxidize.errors import StateError

T = TypeVar("T")

INDEX_SIZE = 4
INDEX_MAX = (1 << 32) - 1

# Draws before `new` gives up. With 500,000 indices in use, as many as PEERS_MAX peers need, one draw in 8,600 hits a
# used index: eight in a row mean that the source of randomness is broken.
DRAWS_MAX = 8


class IndexTable(Generic[T]):
    """The session indices in use, each with its value."""

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def new(self, value: T, random_bytes: Callable[[int], bytes]) -> int:
        """Return a random index that was not in use and now names `value`.

        random_bytes: count -> bytes. Raises StateError when it yields only zeros and indices in use.
        """
        for _ in range(DRAWS_MAX):
            index = int.from_bytes(random_bytes(INDEX_SIZE), "little")
            if index and index not in self._values:
                self._values[index] = value
                return index
        raise StateError(
            f"{DRAWS_MAX} random session indices in a row were zero or in use ({len(self._values)} are); "
            "expected a free one: check the source of randomness"
        )

    def claim(self, index: int, value: T) -> None:
        """Make `index` name `value`, in place of any value before; raises StateError outside 1 to INDEX_MAX."""
        if not 0 < index <= INDEX_MAX:
            raise StateError(f"session index {index} cannot be claimed: expected one from 1 to {INDEX_MAX}")
        self._values[index] = value

    def get(self, index: int) -> T | None:
        """Return the value that an index names, or None."""
        return self._values.get(index)

    def release(self, index: int) -> None:
        """Free an index; idempotent."""
        self._values.pop(index, None)
