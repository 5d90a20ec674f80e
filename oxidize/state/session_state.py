"""The session state: the journal of a device's changes and the arena of its counters, as one object.

Rules:
- A change is recorded before any effect of it can be seen outside, so that a crash restores the state that peers know.
- A takeover, a restart and a crash restore by the same code: `open`, `changes`, then `sync` for later changes.
- State is valid for one boot (its times are CLOCK_BOOTTIME) and for one identity (a session belongs to a static key).
- State holds keys: it is in two memory files and never on a disk.

This module does not know which process owns the sockets: the caller says when this process may write
(`become_writer`), when it no longer may (`stop_writing`), when a successor reads (`hold`), and when processes of older
releases no longer need to read (`raise_min_reader`).
"""

import contextlib
import os
from typing import Any, Self

from oxidize.errors import SnapshotError, StateError, StorageError
from oxidize.protocol.changes import Change, PeerKeypairs, PeerRemoved, PeerSeen
from oxidize.protocol.counters import REPLAY_WORDS, SLOT_WORDS, TOTALS_SLOTS, Total
from oxidize.state.arena import Arena
from oxidize.state.journal import Journal
from oxidize.state.plain_records import plain_change
from oxidize.state.records import FORMAT, MIN_READER, Unknown, decode_change, encode_change
from oxidize.state.stream import (
    ENVELOPE,
    REMEDY,
    RETIRE_OWN,
    Record,
    consumed,
    cut,
    with_first,
    with_last,
)

TAKEOVERS_MAX = 16  # kept in the journal
# A time of the state that lies further ahead than this was taken by another clock (time_namespaces(7)).
CLOCK_AHEAD_SECS_MAX = 60.0

_Typed = tuple[str, Record | Change]  # a record, or the change that it was decoded to, and its type

_TAKEOVER = "takeover"
_OF_SESSIONS = frozenset({"peer", "keypairs", "removed"})  # the records that name slots, or say who has a session
_NUMBER_MAX = (1 << 63) - 1  # of a takeover


class SessionState:
    """A journal and an arena, with the schema of the protocol's changes.

    Made by `create` for a first generation, by `open` for every other. `arena` is the store of the device's counters;
    `record` is the device's recorder. refusal: the latest change that could not be recorded, as an error.
    """

    def __init__(self, journal: Journal, arena: Arena) -> None:
        self.journal = journal
        self.arena = arena
        self._unknown = Unknown()
        self._opened: list[Change] | None = None  # the changes that `open` decoded, until there are newer ones
        # Kept apart from the journal, so that a hand-off need not search it.
        self._peers_with_session: set[bytes] = set()
        self._takeovers: dict[int, dict[str, Any]] = {}  # by a serial number, oldest first
        self._read_only: dict[str, int] = {}
        self.refusal: StateError | None = None

    @classmethod
    def create(cls, release: str, generation: int, boot_id: str, public_key: bytes, now: float = 0.0) -> Self:
        """Return a new, empty state, as its writer.

        boot_id: from /proc/sys/kernel/random/boot_id. public_key: this device's static public key, 32 bytes. now:
        seconds of CLOCK_BOOTTIME. Raises OSError when the kernel refuses the memory files.
        """
        envelope = _envelope(release, generation, boot_id, public_key, MIN_READER)
        arena = Arena.create()
        try:
            journal = Journal.create(envelope, reader=FORMAT, now=now)
        except BaseException:  # cleans up, and raises it again
            arena.close()
            raise
        return cls(journal, arena)

    @classmethod
    def open(cls, journal_fd: int, arena_fd: int, *, boot_id: str, public_key: bytes | None, now: float) -> Self:
        """Read a predecessor's state without writing to it; owns both descriptors, and closes them on failure.

        boot_id, public_key: as in `create`; None for the state of whatever key, to be read alone. now: seconds of
        CLOCK_BOOTTIME. Raises SnapshotError when the state cannot be read, requires a newer release, or belongs to
        another boot, clock or identity.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(_close, journal_fd)
            undo.callback(_close, arena_fd)
            journal = Journal.open(journal_fd, reader=FORMAT)
            arena = Arena.open(arena_fd)
            undo.pop_all()
            undo.callback(journal.close)
            undo.callback(arena.close)
            state = cls(journal, arena)
            # Decoded while it is read: as changes, a large state takes half the memory that it takes as records.
            live = journal.read_live(_usual_change)
            state._check_identity(boot_id, public_key)
            state._opened = state._decode_whole([(each.kind, each.content) for each in consumed(live)])
            _check_clock(state._opened, now)
            undo.pop_all()
        return state

    def close(self) -> None:
        """Release both files; they live while another process holds them. Idempotent."""
        self.journal.close()
        self.arena.close()
        for fd in self._read_only.values():
            os.close(fd)
        self._read_only.clear()

    # --- Read-only state ---

    @property
    def fds(self) -> dict[str, int]:
        """The descriptors that a successor receives, by name."""
        return {"journal": self.journal.fd, "arena": self.arena.fd}

    def read_only_fds(self) -> dict[str, int]:
        """Return read-only descriptors of both files, by name, for a process that must not write them.

        They belong to open files of their own, so they allow neither writing nor mapping for writing, and another user
        cannot open them again for writing (`memory_file`); this user and root can. They are opened at the first call
        and kept until `close`: the caller copies them and closes none, because closing any descriptor of the journal
        would release the writer's lock (`writer_lock`). Raises OSError.
        """
        for name, fd in self.fds.items():
            if name not in self._read_only:
                self._read_only[name] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        return dict(self._read_only)

    @property
    def generation(self) -> int:
        """The generation that wrote the newest envelope."""
        generation: int = self.journal.envelope["generation"]
        return generation

    @property
    def release(self) -> str:
        """The release that wrote the newest envelope."""
        return str(self.journal.envelope.get("release", ""))

    @property
    def public_key(self) -> bytes:
        """The static public key of the device whose sessions these are, 32 bytes; none where the envelope has none."""
        key = self.journal.envelope.get("public_key")
        return key if isinstance(key, bytes) else b""

    @property
    def end(self) -> int:
        """Offset of the journal's end as this process knows it; COMMIT carries it, and the successor must reach it."""
        return self.journal.end

    @property
    def is_writer(self) -> bool:
        """Whether this process is the writer, and so owns the counters."""
        return self.journal.is_writer

    @property
    def sessions(self) -> int:
        """Number of peers that have a keypair."""
        return len(self._peers_with_session)

    @property
    def unknown_fields(self) -> int:
        """Number of fields that were skipped because a newer release wrote them."""
        return self._unknown.fields

    @property
    def unknown_types(self) -> int:
        """Number of records that were skipped because a newer release wrote them."""
        return self._unknown.types

    # --- Reading ---

    def changes(self) -> list[Change]:
        """Return the whole state as changes, one for each key (`change_key`), a peer's PeerSeen first.

        Raises SnapshotError when the journal cannot be read.
        """
        # Returned once, not kept: freeing so many objects at the hand-off would be a part of the blackout.
        opened, self._opened = self._opened, None
        return opened if opened is not None else self._decode_whole(_with_types(self.journal.live_records()))

    def sync(self) -> list[Change]:
        """Return the changes that another process recorded since this one last read or wrote, in order.

        Raises SnapshotError when they cannot be read; after that only `close` may be called.
        """
        records = self.journal.sync()
        if records:
            self._opened = None
        return self._decode(_with_types(records))

    def _decode_whole(self, records: list[_Typed]) -> list[Change]:
        self._unknown = Unknown()
        return self._decode(list(with_first("peer", records)))

    def _decode(self, records: list[_Typed]) -> list[Change]:
        """Decode records, which are taken out of the list; those of changes already are left as they are."""
        changes = []
        # A compaction copies an older record behind a newer one of the same peer. Order matters for this kind alone.
        for kind, record in with_last("staged_more", records):
            change = None
            if not isinstance(record, dict):
                change = record
            elif kind == _TAKEOVER:
                self._note_takeover(record)
            elif kind != ENVELOPE:
                change = decode_change(record, self._unknown)
            if change is not None:
                if kind in _OF_SESSIONS:
                    self._check_slots(kind, change)
                    self._note(change)
                changes.append(change)
        return changes

    def _check_slots(self, kind: str, change: Change) -> None:
        for slot in slots_of(change):
            if not self.arena.holds(slot):
                raise SnapshotError(f"journal: record {kind!r} names slot {slot}, not in the arena; {REMEDY}")

    def _note(self, change: Change) -> None:
        match change:
            case PeerKeypairs(peer=peer):
                has_session = change.previous or change.current or change.next
                (self._peers_with_session.add if has_session else self._peers_with_session.discard)(peer)
            case PeerRemoved(peer=peer):
                self._peers_with_session.discard(peer)

    def _note_takeover(self, record: Record) -> None:
        """Take a record of the history; one that cannot be understood costs no session, and is skipped."""
        number = int.from_bytes(record["key"], "big")
        entry = record.get("entry")
        if record.get("retire") is not None:
            self._takeovers.pop(number, None)
        elif type(entry) is dict and number <= _NUMBER_MAX:
            self._takeovers[number] = entry

    def _check_identity(self, boot_id: str, public_key: bytes | None) -> None:
        envelope = self.journal.envelope
        if type(envelope.get("generation")) is not int:
            raise SnapshotError(f"journal: its envelope names no generation; {REMEDY}")
        if envelope.get("boot_id") != boot_id:
            raise SnapshotError(
                f"journal: written in boot {envelope.get('boot_id')!r}, expected this boot, {boot_id!r}: its times "
                "are not valid here; start without it"
            )
        if public_key is not None and envelope.get("public_key") != public_key:
            raise SnapshotError(
                "journal: its sessions belong to another private key than the configured one; expected the same key: "
                "configure the key it was made with, start without it, or take the new key up by `oxidize reload`"
            )

    # --- Writing ---

    def record(self, change: Change) -> None:
        """Append a change to the journal; the recorder of a device.

        Raises StorageError, with the state unchanged, when the journal cannot take it; that is counted. Raises
        StateError when this process is not the writer.
        """
        try:
            self.journal.append(encode_change(change))
        except StorageError as error:
            self._refuse(error)
            raise
        self._opened = None
        self._note(change)

    def _refuse(self, error: StateError) -> None:
        self.arena.counters[Total.CHANGES_NOT_RECORDED] += 1
        self.refusal = error

    def become_writer(self) -> None:
        """Become the writer. Idempotent.

        Raises StateError unless `changes` and `sync` have returned everything, and as `writer_lock.take` does.
        """
        self.journal.become_writer()

    def stop_writing(self) -> None:
        """Stop being the writer, for another process to become it. Idempotent."""
        self.journal.stop_writing()

    def begin_generation(self, release: str, generation: int) -> None:
        """Append the envelope of the generation that owns this state from now on.

        It requires no newer reader than the one before: the predecessor may still have to read it, in a thaw. Where the
        journal cannot take it, the generation serves all the same. Raises StateError when the generation is not later
        than the last one, or when this process is not the writer.
        """
        if generation <= self.generation:
            raise StateError(f"generation {generation} after {self.generation}; expected a later one: a bug")
        self._append_envelope(release=release, generation=generation)

    def raise_min_reader(self) -> None:
        """Require a reader of MIN_READER from now on; no process of an older release may still need the state."""
        # Never lowered: records of a newer release that wrote earlier may still be live.
        if self.journal.envelope["min_reader"] < MIN_READER:
            self._append_envelope(min_reader=MIN_READER)

    def _append_envelope(self, **changed: Any) -> None:
        before = self.journal.envelope
        fields = {"release": before.get("release", ""), **{name: before[name] for name in _KEPT}, **changed}
        try:
            self.journal.append_envelope(_envelope(**fields))
        except StorageError as error:
            self._refuse(error)

    # --- The history of takeovers ---

    def record_takeover(self, entry: dict[str, Any]) -> None:
        """Record a takeover, successful or not; entry: string keys, plain values, of which long texts are cut.

        It is history: where it cannot be recorded, that is counted, and nothing is raised.
        """
        self._append_takeover(max(self._takeovers, default=0) + 1, entry)

    def amend_takeover(self, **fields: Any) -> None:
        """Record the latest takeover with these fields changed. Like `record_takeover`."""
        if self._takeovers:
            number = max(self._takeovers)
            self._append_takeover(number, self._takeovers[number] | fields)

    def _append_takeover(self, number: int, entry: dict[str, Any]) -> None:
        oldest = sorted(self._takeovers.keys() | {number})[:-TAKEOVERS_MAX]
        retired = [{"type": _TAKEOVER, "key": _number_key(old), "retire": RETIRE_OWN} for old in oldest]
        kept = {name: cut(value) if isinstance(value, str) else value for name, value in entry.items()}
        try:
            self.journal.append({"type": _TAKEOVER, "key": _number_key(number), "entry": kept}, *retired)
        except StateError as error:
            self._refuse(error)
            return
        self._takeovers[number] = kept
        for old in oldest:
            del self._takeovers[old]

    def takeovers(self) -> list[dict[str, Any]]:
        """Return the last takeovers, at most TAKEOVERS_MAX, oldest first."""
        return [self._takeovers[number] for number in sorted(self._takeovers)]

    # --- Compaction ---

    def hold(self) -> None:
        """Let a successor read the journal undisturbed (`Journal.hold`)."""
        self.journal.hold()

    def unhold(self) -> None:
        """Let compaction finish again."""
        self.journal.unhold()

    def maintain(self, keys_max: int = 16, *, purge: bool = False, now: float = 0.0) -> bool:
        """Do one bounded step of compaction if any is due, between two batches; return whether work is left.

        keys_max: keys copied in the step. purge: compaction is due as soon as any record is dead, because dead keys
        must be forgotten. now: the time, for `Journal.purged_at`. Raises StorageError when the memory file cannot be
        written; no record is lost by that.
        """
        journal = self.journal
        is_due = journal.needs_compaction or (purge and journal.size > journal.live_bytes)
        if journal.is_compacting or is_due:
            return self.journal.compact_step(keys_max, now)
        return False


_KEPT = ("generation", "boot_id", "public_key", "min_reader")  # of an envelope, in the next one


def _envelope(release: str, generation: int, boot_id: str, public_key: bytes, min_reader: int) -> Record:
    return {
        "format": FORMAT,
        "min_reader": min_reader,
        "release": release,
        "generation": generation,
        "boot_id": boot_id,
        "public_key": public_key,
        # The arena's layout, for a reader of the journal alone; readers of both check the arena's own header.
        "slot_words": SLOT_WORDS,
        "totals_slots": TOTALS_SLOTS,
        "replay_words": REPLAY_WORDS,
    }


def _usual_change(record: Record) -> Record | Change:
    """Return the change of a record of the usual form, any other record as it is."""
    change = plain_change(record)
    return record if change is None else change


def _with_types(records: list[Record]) -> list[_Typed]:
    return [(record["type"], record) for record in consumed(records)]


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # the caller may have passed a number that is not open
        os.close(fd)


def _number_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _check_clock(changes: list[Change], now: float) -> None:
    """Refuse times in this clock's future: time namespaces share one boot_id but not one clock."""
    for change in changes:
        if isinstance(change, PeerKeypairs):
            for keypair in change.states:
                if keypair.created_at > now + CLOCK_AHEAD_SECS_MAX:
                    raise SnapshotError(
                        f"journal: a keypair was made at {keypair.created_at:.0f} s, expected no later than now, "
                        f"{now:.0f} s of CLOCK_BOOTTIME: another time namespace wrote it; start without it"
                    )


def slots_of(change: Change) -> list[int]:
    """Return the slots of the arena that a change names."""
    match change:
        case PeerSeen(slot=slot):
            return [slot]
        case PeerKeypairs():
            return [keypair.slot for keypair in change.states]
        case _:
            return []
