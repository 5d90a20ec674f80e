"""Counters in the memory of one process."""

from oxidize.errors import StateError
from oxidize.protocol.counters import SLOT_WORDS, TOTALS_SLOTS, Counters

_ZERO_SLOT = memoryview(bytes(8 * SLOT_WORDS)).cast("Q")


class ArraySlots:
    """Slots in a plain array (`protocol.counters.Slots`): for devices that no successor takes over."""

    def __init__(self, slot_count: int = 64) -> None:
        self.counters: Counters = memoryview(bytearray(8 * SLOT_WORDS * (TOTALS_SLOTS + slot_count))).cast("Q")
        self._free = [SLOT_WORDS * (TOTALS_SLOTS + i) for i in reversed(range(slot_count))]

    @property
    def slot_count(self) -> int:
        return len(self.counters) // SLOT_WORDS - TOTALS_SLOTS

    @property
    def used(self) -> set[int]:
        """The slots that are not free."""
        return set(range(SLOT_WORDS * TOTALS_SLOTS, len(self.counters), SLOT_WORDS)) - set(self._free)

    def allocate(self) -> int:
        """Return a free slot, zeroed by this call; raises StateError when none is left."""
        if not self._free:
            raise StateError(f"all slots are in use; expected at most {self.slot_count}")
        slot = self._free.pop()
        self.counters[slot : slot + SLOT_WORDS] = _ZERO_SLOT
        return slot

    def claim(self, slot: int) -> None:
        """Mark a slot as used; idempotent."""
        if slot in self._free:
            self._free.remove(slot)

    def release(self, slot: int) -> None:
        """Make a slot free; idempotent."""
        if slot not in self._free:
            self._free.append(slot)
