"""The number of peers that have a session, without a look at every peer.

The rule: peers are grouped by the second in which their newest keypair ends by its age. So a count adds up the groups,
some hundreds, and looks only at the peers of the second that is passing.
"""

from math import floor

from oxidize.protocol.constants import REKEY_TIMEOUT
from oxidize.protocol.peer import Peer


class SessionCount:
    """Counts the peers for which `Peer.has_session` says yes; `note` is called after each change of a peer's keypairs.

    A keypair that REJECT_AFTER_MESSAGES has ended, which takes years, is counted until its age ends it.
    """

    def __init__(self) -> None:
        self._ending: dict[int, set[Peer]] = {}  # by the second, rounded down; no set is empty

    def note(self, peer: Peer) -> None:
        """Take note of a peer's keypairs."""
        current, following = peer.current, peer.next
        ends_at = current.expires_at if current is not None else 0.0
        if following is not None:
            ends_at = max(ends_at, following.state.created_at + REKEY_TIMEOUT)
        second = floor(ends_at)
        if second == peer.counted_until:
            return
        if (group := self._ending.get(peer.counted_until)) is not None:
            group.discard(peer)
            if not group:
                del self._ending[peer.counted_until]
        if second:
            self._ending.setdefault(second, set()).add(peer)
        peer.counted_until = second

    def count(self, now: float) -> int:
        """Return the number of peers with a session."""
        second = floor(now)
        later = sum(len(group) for each, group in self._ending.items() if each > second)
        return later + sum(peer.has_session(now) for peer in self._ending.get(second, ()))
