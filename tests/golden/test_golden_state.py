"""The state as every release wrote it, and as a later release may write it: how this release reads it.

The files are made once, when a release is cut (`python tests/golden/test_golden_state.py`), and never again: a test
that fails here found that this release no longer reads the state of one that is in service.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidize import config
from oxidize.errors import SnapshotError
from oxidize.protocol.changes import (
    Change,
    CookieSecret,
    KeypairState,
    PeerCookie,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerTimestamp,
)
from oxidize.protocol.counters import RECEIVE_NEXT, REPLAY_BITMAP, SEND_COUNTER, TOTALS_WORDS, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.runtime import parts, rehearsal
from oxidize.runtime.rehearsal import Rehearsal, rehearse
from oxidize.settings import NodeSettings
from oxidize.state.arena import Arena
from oxidize.state.journal import Journal
from oxidize.state.records import FORMAT
from oxidize.state.session_state import SessionState
from oxidize.takeover.host import Answer, NamedFd
from tests.support.traffic.server import Lab, PeerTable, Server

HERE = Path(__file__).parent
BOOT_ID = "6f1f2c1e-0000-4000-8000-0123456789ab"
PUBLIC_KEY = bytes(range(200, 232))
ALICE, BOB, CAROL = b"A" * 32, b"B" * 32, b"C" * 32
SLOT = [TOTALS_WORDS + 64 * i for i in range(8)]
KEYPAIR_OLD = KeypairState(0x01020304, 0xFFFFFFFF, b"\x01" * 32, b"\x02" * 32, 1000.5, False, SLOT[2])
KEYPAIR = KeypairState(0xA0B0C0D0, 5, b"\x03" * 32, b"\x04" * 32, 1100.25, True, SLOT[3])

HISTORY_0_1_0: list[Change] = [
    CookieSecret(b"old secret" + bytes(22), 900.0),
    PeerSeen(ALICE, SLOT[0]),
    PeerSeen(CAROL, SLOT[4]),
    PeerKeypairs(ALICE, None, KEYPAIR_OLD, None, 1_700_000_000.0),
    PeerEndpoint(CAROL, Endpoint(b"\x7f\0\0\1", 1)),
    PeerSeen(BOB, SLOT[1]),
    PeerHandshake(ALICE, 77, b"e" * 32, b"c" * 32, b"h" * 32, b"m" * 16, 1090.0, 1095.0, 1100.2),
    PeerHandshake(BOB, 78, b"E" * 32, b"C" * 32, b"H" * 32, b"M" * 16, 1091.0, 1096.0, 1101.2),
    PeerTimestamp(ALICE, b"@\0\0\0\x65\x53\xf1\0\0\0\0\0", 1100.0),
    PeerHandshake(ALICE, 0, b"", b"", b"", b"", 0.0, 0.0, 0.0),
    PeerKeypairs(ALICE, KEYPAIR_OLD, KEYPAIR, None, 1_700_000_100.0),
    PeerEndpoint(ALICE, Endpoint(b"\xc0\0\2\x05", 40000, 0, b"\xc0\0\2\x01", 2)),
    PeerEndpoint(BOB, Endpoint(b"\xfe\x80" + bytes(13) + b"\x09", 51820, 3, b"\xfe\x80" + bytes(13) + b"\x01", 3)),
    PeerCookie(BOB, b"cookie-of-16-byt", 1096.5),
    PeerKeypairs(BOB, None, None, None, 1_600_000_000.0),
    PeerRemoved(CAROL),
    CookieSecret(b"new secret" + bytes(22), 1020.0),
    PeerStaged(BOB, (b"E" + bytes(19), b"`" + bytes(39))),
]
STATE_0_1_0: dict[str, Change] = {
    "secret": HISTORY_0_1_0[16],
    "alice": HISTORY_0_1_0[1],
    "alice keypairs": HISTORY_0_1_0[10],
    "alice endpoint": HISTORY_0_1_0[11],
    "alice timestamp": HISTORY_0_1_0[8],
    "bob": HISTORY_0_1_0[5],
    "bob keypairs": HISTORY_0_1_0[14],
    "bob endpoint": HISTORY_0_1_0[12],
    "bob handshake": HISTORY_0_1_0[7],
    "bob cookie": HISTORY_0_1_0[13],
    "bob staged": HISTORY_0_1_0[17],
}
TAKEOVER_0_1_0 = {"generation": 2, "result": "succeeded", "blackout_ns": 812_345, "at_unix": 1_700_000_050.5}


def write_golden(release: str) -> None:
    """Write the files of a release from the history above; raises FileExistsError when it has them."""
    arena = Arena.create(slot_count=8)
    journal = Journal.create(
        {"format": 1, "min_reader": 1, "release": release, "generation": 1, "boot_id": BOOT_ID}
        | {"public_key": PUBLIC_KEY, "slot_words": 64, "totals_slots": 4, "replay_words": 62},
        reader=FORMAT,
    )
    state = SessionState(journal, arena)
    for change in HISTORY_0_1_0[:6]:
        state.record(change)
    state.begin_generation(release, 2)
    state.record_takeover(TAKEOVER_0_1_0)
    for change in HISTORY_0_1_0[6:]:
        state.record(change)
    arena.counters[Total.SENT_DATAGRAMS] = 123_456_789
    arena.counters[KEYPAIR.slot + SEND_COUNTER] = 4242
    arena.counters[KEYPAIR.slot + RECEIVE_NEXT] = 4000
    arena.counters[KEYPAIR.slot + REPLAY_BITMAP] = 2**64 - 2
    for name, fd, size in (("journal", journal.fd, journal.end), ("arena", arena.fd, os.fstat(arena.fd).st_size)):
        with (HERE / f"{name}-{release}.bin").open("xb") as file:
            file.write(os.pread(fd, size, 0))
    state.close()


def loaded(name: str) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.pwrite(fd, (HERE / name).read_bytes(), 0)
    return fd


def opened(journal_fd: int, arena_fd: int) -> SessionState:
    return SessionState.open(journal_fd, arena_fd, boot_id=BOOT_ID, public_key=PUBLIC_KEY, now=1200.0)


@pytest.fixture
def later() -> Iterator[Journal]:
    """Yield the journal of 0.1.0 as a later release writes it, with fields and types that this one does not know."""
    journal = Journal.open(loaded("journal-0.1.0.bin"), reader=9)
    journal.sync()
    journal.become_writer()
    yield journal
    journal.close()


def after(journal: Journal) -> SessionState:
    return opened(os.dup(journal.fd), loaded("arena-0.1.0.bin"))


def by_value(changes: list[Change]) -> set[str]:
    return {repr((change, getattr(change, "packets", None))) for change in changes}


def test_the_state_of_0_1_0_is_read_in_full() -> None:
    state = opened(loaded("journal-0.1.0.bin"), loaded("arena-0.1.0.bin"))
    changes = state.changes()
    assert len(changes) == len(STATE_0_1_0)
    for what, change in STATE_0_1_0.items():
        assert change in changes, what
    assert (state.release, state.generation, state.sessions) == ("0.1.0", 2, 1)
    assert (state.unknown_fields, state.unknown_types) == (0, 0)
    assert state.takeovers() == [TAKEOVER_0_1_0]
    counters = state.arena.counters
    assert counters[Total.SENT_DATAGRAMS] == 123_456_789
    assert [counters[KEYPAIR.slot + i] for i in (SEND_COUNTER, RECEIVE_NEXT, REPLAY_BITMAP)] == [4242, 4000, 2**64 - 2]
    state.close()


def test_the_state_of_0_1_0_survives_a_compaction_by_this_release() -> None:
    state = opened(loaded("journal-0.1.0.bin"), loaded("arena-0.1.0.bin"))
    state.become_writer()
    state.begin_generation("0.2.0", 3)
    while state.journal.compact_step(100):
        pass
    again = opened(os.dup(state.fds["journal"]), os.dup(state.fds["arena"]))
    carried = list(STATE_0_1_0.values())
    assert by_value(again.changes()) == by_value(carried)
    assert (again.release, again.generation) == ("0.2.0", 3)
    again.close()
    state.close()


def envelope_of(later: Journal, **fields: Any) -> dict[str, Any]:
    known = {name: value for name, value in later.envelope.items() if name not in ("type", "key", "magic")}
    return {**known, "release": "2.0.0", "generation": 3, **fields}


def test_fields_and_types_of_a_later_release_are_ignored_and_counted(later: Journal) -> None:
    later.append_envelope(envelope_of(later, format=2, min_reader=1, cluster="eu-1"))
    live = {(r["type"], r["key"]): r for r in later.live_records()}
    keypairs = live["keypairs", ALICE]
    keypairs["current"]["post_quantum_key"] = b"q" * 1000
    later.append({**keypairs, "resumption": [1, {"deep": None}]})
    later.append({**live["peer", BOB], "quota": {"bytes": 2**40}})
    later.append({"type": "route", "key": ALICE, "via": "10.0.0.0/8"})
    later.append({"type": "statistics", "key": b"", "values": [1.5]})
    state = after(later)
    assert by_value(state.changes()) == by_value(list(STATE_0_1_0.values()))
    assert (state.release, state.generation, state.sessions) == ("2.0.0", 3, 1)
    assert (state.unknown_fields, state.unknown_types) == (3, 2)
    state.close()


def test_the_unknown_records_of_a_removed_peer_are_removed_too(later: Journal) -> None:
    later.append({"type": "route", "key": ALICE, "via": "10.0.0.0/8"})
    state = after(later)
    state.become_writer()
    state.record(PeerRemoved(ALICE))
    assert state.sessions == 0
    later.stop_writing()
    later.sync()
    assert {key for _, key in later.live_keys()} == {b"", BOB, (1).to_bytes(8, "big")}
    state.close()


def test_unknown_records_survive_a_rollback_and_its_compaction(later: Journal) -> None:
    unknown = {"type": "route", "key": ALICE, "via": "10.0.0.0/8"}
    later.append(unknown)
    later.stop_writing()
    state = after(later)
    state.become_writer()
    state.begin_generation("0.1.0", 3)
    while state.journal.compact_step(1):
        pass
    later.sync()
    assert unknown in later.live_records()
    state.close()


@pytest.mark.parametrize("tail", [[], [{"type": "keypairs", "key": ALICE, "current": "now a string"}]])
def test_a_state_that_needs_a_newer_reader_is_refused_with_reason_and_remedy(
    later: Journal, tail: list[dict[str, Any]]
) -> None:
    later.append_envelope(envelope_of(later, format=3, min_reader=FORMAT + 1))
    for record in tail:
        later.append(record)
    with pytest.raises(
        SnapshotError, match=r"format 3, written by release '2.0.0', wants a reader of 2.*reads 1.*newer"
    ):
        after(later)


# --- A deployment to this release, and a rollback to it: what it would keep of such a state ---


def rehearsed(journal_fd: int, folder: Path, patch: pytest.MonkeyPatch) -> Rehearsal:
    """Let this release rehearse with a server that has this journal and the arena of 0.1.0."""
    journal = Journal.open(os.dup(journal_fd), reader=9)
    journal.sync()
    activations, end = journal.position
    journal.close()
    said = {"at_boot_secs": 1200.0, "sessions": 1, "generation": 2, "pid": 7}
    said |= {"journal_activations": activations, "journal_end": end}
    fds = (NamedFd("journal", os.dup(journal_fd), "memfd"), NamedFd("arena", loaded("arena-0.1.0.bin"), "memfd"))
    patch.setattr(rehearsal, "query_with_fds", lambda *_, **__: Answer(json.dumps(said).encode(), fds))
    patch.setattr(parts, "boot_id", lambda: BOOT_ID)
    server = Server(Lab(folder), [PeerTable("alice", ALICE, ("10.9.0.2/32",)), PeerTable("bob", BOB, ("10.9.0.3/32",))])
    server.write_config()
    settings = NodeSettings.of_server(config.load_server(server.config_path))
    return rehearse(settings._replace(public_key=PUBLIC_KEY))


def test_a_deployment_keeps_the_sessions_of_0_1_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = rehearsed(loaded("journal-0.1.0.bin"), tmp_path, monkeypatch)
    assert (outcome.sessions, outcome.sessions_now, outcome.refused) == (1, 1, {})
    assert (outcome.unknown_fields, outcome.unknown_types) == (0, 0)


def test_a_rollback_keeps_the_sessions_of_a_later_release(
    later: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.append_envelope(envelope_of(later, format=2, min_reader=1, cluster="eu-1"))
    for record in list(later.live_records()):
        if record["type"] == "keypairs":
            later.append({**record, "resumption": [1, {"deep": None}]})
    later.append({"type": "route", "key": ALICE, "via": "10.0.0.0/8"})
    outcome = rehearsed(later.fd, tmp_path, monkeypatch)
    assert (outcome.sessions, outcome.sessions_now, outcome.refused) == (1, 1, {})
    assert (outcome.unknown_fields, outcome.unknown_types) == (2, 1)


def test_a_rollback_that_cannot_read_the_state_is_refused(
    later: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.append_envelope(envelope_of(later, format=3, min_reader=FORMAT + 1))
    with pytest.raises(SnapshotError, match="wants a reader of 2"):
        rehearsed(later.fd, tmp_path, monkeypatch)


if __name__ == "__main__":
    from oxidize import __version__

    write_golden(__version__)
