"""Session indices: the 32-bit names under which messages to us find their handshake or keypair.

The rule (paper, section 5.4.2): an index is random, so that it tells an observer nothing, and at any time it names one
thing at most. 0 is never given out: it stands for "none" in what a device records.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from oxidize.errors import StateError

T = TypeVar("T")

INDEX_SIZE = 4
INDEX_MAX = (1 << 32) - 1

# Draws before we give up. With 80,000 indices in use, more than PEERS_MAX peers need, one draw in 50,000 meets a used
# one: eight in a row mean that the source of randomness is broken.
DRAWS_MAX = 8


class IndexTable(Generic[T]):
    """The session indices in use, with what each of them names."""

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def new(self, value: T, random_bytes: Callable[[int], bytes]) -> int:
        """Name `value` by a random index that is not in use, and return it.

        Raises StateError when `random_bytes` yields nothing but zeros and indices in use.
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
        """Name `value` by this index, whatever it named before; raises StateError when it is no index."""
        if not 0 < index <= INDEX_MAX:
            raise StateError(f"session index {index} cannot be claimed: expected one from 1 to {INDEX_MAX}")
        self._values[index] = value

    def get(self, index: int) -> T | None:
        """Return what an index names, or None."""
        return self._values.get(index)

    def release(self, index: int) -> None:
        """Make an index name nothing; idempotent."""
        self._values.pop(index, None)
