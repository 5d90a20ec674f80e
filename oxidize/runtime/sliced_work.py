"""Work of the owner that grows with the number of peers, done in slices between batches.

The rule: no peer waits for the work of all. While this process does not own, the work rests.
"""

from collections.abc import Callable, Iterator

from oxidize.net.event_loop import Loop


class SlicedWork:
    """Does one slice in each iteration of the loop, from its construction until the last one.

    slices: does a slice each time it is advanced. is_owner: whether this process owns at this moment.
    """

    def __init__(self, slices: Iterator[None], loop: Loop, is_owner: Callable[[], bool]) -> None:
        self._slices = slices
        self._loop = loop
        self._is_owner = is_owner
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """Return that the next slice is due, or None while this process does not own."""
        return 0.0 if self._is_owner() else None

    def handle_timeout(self, now: float) -> None:
        """Do a slice."""
        if self._is_owner() and next(self._slices, self) is self:
            self._loop.remove_timed(self)
