"""A trial restore of a copy of the running server's state: what a takeover by this release would keep.

The rule: nothing changes, neither the server nor its host. The rehearsal runs the restore, with the code of a takeover;
it leaves out sockets, devices and the hand-off. Both sides count the sessions at the same moment, which the server
chooses.
"""

from dataclasses import dataclass
from pathlib import Path

from oxidize.control.decode import decode, printable_reasons
from oxidize.control.key_change import KEY_CHANGED
from oxidize.control.query import IDENTITY, STATE, NothingListensError, bytes_max_of, fetch
from oxidize.errors import DecodeError, OxidizeError, SnapshotError, TakeoverError
from oxidize.protocol.changes import PeerKeypairs
from oxidize.protocol.keypair import Keypair
from oxidize.runtime.offer import FdName
from oxidize.runtime.parts import NOT_CONFIGURED, Restored, restore
from oxidize.service_manager.privileges import forbid_core_dumps
from oxidize.settings import NodeSettings
from oxidize.state.copies import copy_arena, copy_journal
from oxidize.takeover.channel import close_fds, close_unasked
from oxidize.takeover.host import Answer
from oxidize.takeover.queries import query_with_fds
from oxidize.text import own_release

COPIES_MAX = 5  # of one journal: compaction is rare, and a copy is a matter of milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The result of restoring a state with this release.

    release: this one. sessions: the number that it would keep, of `sessions_now` that the server has. refused: the
    numbers that it would not keep, by reason. unknown_fields, unknown_types: the numbers of those that a newer release
    wrote and this one ignores. generation, pid: of the server.
    """

    release: str
    sessions: int
    sessions_now: int
    refused: dict[str, int]
    unknown_fields: int
    unknown_types: int
    generation: int
    pid: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The figures that the server sends with its state, all of one snapshot."""

    at: float
    sessions: int
    generation: int
    pid: int
    journal_activations: int
    journal_end: int

    @classmethod
    def of(cls, content: bytes) -> "_Snapshot":
        try:
            figures = decode(content)
            return cls(
                float(figures["at_boot_secs"]),
                int(figures["sessions"]),
                int(figures["generation"]),
                int(figures["pid"]),
                int(figures["journal_activations"]),
                int(figures["journal_end"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DecodeError(f"the figures that the server sent with its state cannot be read: {error!r}") from error


def rehearse(settings: NodeSettings) -> Rehearsal:
    """Restore a copy of the state of the server that listens at `takeover_socket`, and count what would be kept.

    Raises SnapshotError where this release cannot restore it, other OxidizeErrors where there is nothing to restore.
    """
    forbid_core_dumps()
    for _ in range(COPIES_MAX):
        answer = _ask(settings.takeover_socket)
        try:
            snapshot = _Snapshot.of(answer.content)
            copies = _copy(answer, snapshot)
        finally:
            close_unasked([named.fd for named in answer.fds])  # of any name: the server's answer is not trusted
        if copies is not None:
            return _restore(settings, snapshot, *copies)
    raise SnapshotError(f"journal: compacted {COPIES_MAX} times while it was copied, expected once at most: try again")


def _ask(takeover_socket: Path) -> Answer:
    try:
        with printable_reasons():
            answer = query_with_fds(takeover_socket, STATE, bytes_max=bytes_max_of(STATE))
    except TakeoverError as error:
        if not error.reason.startswith(f"query {STATE!r}: expected"):
            raise
        found = fetch(takeover_socket, IDENTITY)
        raise OxidizeError(
            f"pid {found.get('pid')}, release {found.get('release')}, is too old to hand out its state, expected one "
            "that knows `oxidize rehearse`: take over without a rehearsal this once"
        ) from error
    if answer is None:
        raise NothingListensError(takeover_socket)
    return answer


def _copy(answer: Answer, snapshot: _Snapshot) -> tuple[int, int] | None:
    """Return copies of journal and arena, made in this order; None where the journal was compacted during the copy."""
    arena_source = answer.find(FdName.ARENA.value).fd
    journal = copy_journal(answer.find(FdName.JOURNAL.value).fd, snapshot.journal_activations, snapshot.journal_end)
    if journal is None:
        return None
    try:
        return journal, copy_arena(arena_source)
    except BaseException:  # cleans up, and raises it again
        close_fds([journal])
        raise


def _restore(settings: NodeSettings, snapshot: _Snapshot, journal_fd: int, arena_fd: int) -> Rehearsal:
    restored = restore(settings, journal_fd, arena_fd, snapshot.at, may_change_key=True)
    state = restored.state
    try:
        lost = _sessions_of_unknown_peers(restored, snapshot.at)
        refused = {NOT_CONFIGURED: lost, KEY_CHANGED: restored.ended}
        return Rehearsal(
            release=own_release(),
            sessions=restored.device.live_sessions(snapshot.at),
            sessions_now=snapshot.sessions,
            refused={reason: number for reason, number in refused.items() if number},
            unknown_fields=state.unknown_fields,
            unknown_types=state.unknown_types,
            generation=snapshot.generation,
            pid=snapshot.pid,
        )
    finally:
        state.close()


def _sessions_of_unknown_peers(restored: Restored, now: float) -> int:
    """Return the number of live sessions of peers that are no longer configured."""
    if not restored.unknown_peers:
        return 0
    counters, peers = restored.state.arena.counters, restored.device.peers
    return sum(
        any(
            not Keypair(keypair, None, counters).is_expired(now) for keypair in (change.current, change.next) if keypair
        )
        for change in restored.state.changes()
        if isinstance(change, PeerKeypairs) and change.peer not in peers
    )
