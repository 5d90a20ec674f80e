"""The schedule: when the device has to look at a peer's timers.

The rule: an entry that is due earlier schedules the next one when it is handled. So a peer's entries are descending in
the order in which they were made, and few: none is ever stale, and none replaces another.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count

from oxidize.protocol import timers
from oxidize.protocol.constants import INITIATIONS_PER_TIMEOUT_MAX, NEVER, PEERS_PER_TIMEOUT_MAX
from oxidize.protocol.counters import Counters, Total
from oxidize.protocol.peer import Peer


class Schedule:
    """The peers by the next end of one of their timers; `counters` hold the notes that these are derived from."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._due: list[tuple[float, int, Peer]] = []
        self._order = count()

    def next_deadline(self) -> float | None:
        """Return when the next timer ends, or None; it may be early, when nothing is due."""
        return self._due[0][0] if self._due else None

    def add(self, peer: Peer) -> None:
        """Look at a peer when its next timer ends."""
        self.add_at(peer, timers.deadline(peer, self._counters))

    def add_at(self, peer: Peer, deadline: float) -> None:
        """Look at a peer at `deadline`, unless it is looked at before."""
        deadlines = peer.deadlines
        if deadline < (deadlines[-1] if deadlines else NEVER):
            deadlines.append(deadline)
            heappush(self._due, (deadline, next(self._order), peer))

    def take_due(self, now: float) -> Iterator[Peer]:
        """Yield peers whose timers have ended, and forget these entries.

        At most PEERS_PER_TIMEOUT_MAX, and no more once INITIATIONS_PER_TIMEOUT_MAX initiations were sent meanwhile.
        """
        before = self._counters[Total.INITIATIONS_SENT]
        for _ in range(PEERS_PER_TIMEOUT_MAX):
            sent = self._counters[Total.INITIATIONS_SENT] - before
            if not self._due or self._due[0][0] > now or sent >= INITIATIONS_PER_TIMEOUT_MAX:
                return
            _, _, peer = heappop(self._due)
            peer.deadlines.pop()
            yield peer
