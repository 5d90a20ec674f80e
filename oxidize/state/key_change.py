"""The state of a device whose private key has changed: the arena of the one before, and a journal of its own.

The rule: no session outlives the private key that it was made with, and all else does: the counters, where the peers
are, their newest timestamps, the packets that wait for a session, the history. The journal before is only read, so that
its process serves on, with its sessions, if this one fails. It is erased once that process has ended.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from oxidize.protocol.changes import Change, PeerHandshake, PeerKeypairs, PeerRemoved
from oxidize.protocol.keypair import Keypair
from oxidize.state.journal import Journal
from oxidize.state.records import FORMAT
from oxidize.state.session_state import SessionState, slots_of

SLOTS_PER_SLICE = 256  # released at a time: less than a millisecond


class KeyChangedState(SessionState):
    """The state of a successor with another private key, made by `of`; it is the writer of its journal from there on.

    ended: the number of sessions that the change of the key ends.
    """

    def __init__(self, before: SessionState, journal: Journal) -> None:
        super().__init__(journal, before.arena)
        self._before: SessionState | None = before
        # Of the keypairs before, by peer: until its process has ended, that may seal and open with them again.
        self._slots_before: dict[bytes, set[int]] = {}
        self.ended = 0

    @classmethod
    def of(cls, before: SessionState, public_key: bytes, now: float) -> "KeyChangedState":
        """Return the state that follows `before`, which it owns and closes, also on failure.

        public_key: the new one, 32 bytes. now: seconds of CLOCK_BOOTTIME. Raises OSError when the kernel refuses the
        memory file, and StorageError when it has no memory for it.
        """
        with ExitStack() as undo:
            undo.callback(before.close)
            envelope = {name: value for name, value in before.journal.envelope.items() if name not in {"type", "key"}}
            journal = Journal.create({**envelope, "public_key": public_key}, reader=FORMAT, now=now)
            state = cls(before, journal)
            undo.callback(state.close)
            changes = before.changes()
            state.ended = sum(state._is_live(change, now) for change in changes if isinstance(change, PeerKeypairs))
            for entry in before.takeovers():
                state.record_takeover(entry)
            state._opened = state._keep(changes)
            undo.pop_all()
        return state

    def _is_live(self, change: PeerKeypairs, now: float) -> bool:
        return any(
            keypair is not None and not Keypair(keypair, None, self.arena.counters).is_expired(now)
            for keypair in (change.current, change.next)
        )

    def close(self) -> None:
        """Release all files; they live while another process holds them. Idempotent."""
        super().close()
        if self._before is not None:
            self._before.close()

    # --- While the process of the journal before lives ---

    @property
    def end(self) -> int:
        """Offset of the end of the journal that the predecessor writes, until it has ended; then of this one's."""
        return super().end if self._before is None else self._before.end

    def sync(self) -> list[Change]:
        """Return the changes that the predecessor recorded since the last call, in order, but those of sessions.

        Raises as `SessionState.sync` and `record` do.
        """
        return super().sync() if self._before is None else self._keep(self._before.sync())

    def become_writer(self) -> None:
        """Become the owner: the journal before gets no other writer. Raises as `SessionState.become_writer` does."""
        if self._before is not None:
            self._before.become_writer()
        super().become_writer()

    def _keep(self, changes: list[Change]) -> list[Change]:
        """Record the changes that do not depend on the key, and return them."""
        kept: list[Change] = []
        for change in changes:
            if isinstance(change, PeerKeypairs | PeerRemoved):
                self._claim(change.peer, set(slots_of(change)))
            if not isinstance(change, PeerKeypairs | PeerHandshake):
                self.record(change)
                kept.append(change)
        return kept

    def _claim(self, peer: bytes, slots: set[int]) -> None:
        """Keep a peer's slots from being used, in place of those of its keypairs before."""
        for slot in self._slots_before.get(peer, set()) - slots:
            self.arena.release(slot)
        for slot in slots:
            self.arena.claim(slot)
        self._slots_before[peer] = slots

    def forget_before(self) -> Iterator[None]:
        """Need the journal before no more, at once; erase it and release the slots of its keypairs, in slices.

        Its process must have ended, and no store may still hold the journal.
        """
        before, self._before = self._before, None
        return self._erase(before.journal) if before is not None else iter(())

    def _erase(self, journal: Journal) -> Iterator[None]:
        try:
            yield from journal.erase()
        finally:
            journal.close()
        slots = [slot for of_peer in self._slots_before.values() for slot in of_peer]
        self._slots_before.clear()
        for number, slot in enumerate(slots, start=1):
            self.arena.release(slot)
            if number % SLOTS_PER_SLICE == 0:
                yield
