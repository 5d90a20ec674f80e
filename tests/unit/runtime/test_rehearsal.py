"""A rehearsal restores a copy, counts at the time that the server names, and reports what it could not keep."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidize import __version__, config
from oxidize.cli.rehearse import lines_of
from oxidize.errors import DecodeError, OxidizeError, Phase, SnapshotError, TakeoverError
from oxidize.protocol.changes import KeypairState, PeerKeypairs, PeerSeen
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.runtime import rehearsal
from oxidize.runtime.parts import boot_id
from oxidize.runtime.rehearsal import COPIES_MAX, Rehearsal, rehearse
from oxidize.settings import NodeSettings
from oxidize.state.records import FORMAT
from oxidize.state.session_state import SessionState
from oxidize.takeover.host import Answer, NamedFd
from tests.support.traffic.server import Lab, PeerTable, Server

NOW = 1000.0
ALICE, BOB, CAROL = (bytes([letter]) * 32 for letter in b"ABC")


class Running:
    """A server in this process: a state with a session for each peer. says: changes to the figures of its answers."""

    def __init__(self, folder: Path) -> None:
        self.peers = [
            PeerTable(name, key, (f"10.9.0.{number}/32",))
            for number, (name, key) in enumerate({"alice": ALICE, "bob": BOB, "carol": CAROL}.items(), 2)
        ]
        self.server = Server(Lab(folder), self.peers)
        self.state = SessionState.create("0.1.0", 4, boot_id(), self.server.identity.public)
        for number, peer in enumerate(self.peers, 1):
            self.begin_session(peer.public_key, number)
        self.asked = 0
        self.between: Callable[[], None] = lambda: None
        self.says: dict[str, Any] = {}

    def begin_session(self, peer: bytes, index: int, created_at: float = NOW - 1) -> None:
        self.state.record(PeerSeen(peer, self.state.arena.allocate()))
        keys = (os.urandom(32), os.urandom(32))
        keypair = KeypairState(index, index, *keys, created_at, False, self.state.arena.allocate())
        self.state.record(PeerKeypairs(peer, None, keypair, None, 1.0))

    def answer(self, path: Path, query: str, **_: object) -> Answer:
        assert (path, query) == (self.server.takeover_socket, "state")
        self.asked += 1
        activations, end = self.state.journal.position
        said = {"at_boot_secs": NOW, "sessions": 3, "generation": 4, "pid": 123}
        said |= {"journal_activations": activations, "journal_end": end, **self.says}
        self.between()
        fds = self.state.read_only_fds().items()
        return Answer(json.dumps(said).encode(), tuple(NamedFd(name, os.dup(fd), "memfd") for name, fd in fds))

    def settings(self, *without: str) -> NodeSettings:
        self.server.peers = [peer for peer in self.peers if peer.name not in without]
        self.server.write_config()
        return NodeSettings.of_server(config.load_server(self.server.config_path))

    def append(self, record: dict[str, Any]) -> None:
        self.state.journal.append(record)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    running = Running(tmp_path)
    running.state.read_only_fds()
    monkeypatch.setattr(rehearsal, "query_with_fds", running.answer)
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield running
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    running.state.close()


def outcome(**changes: Any) -> Rehearsal:
    values: dict[str, Any] = {"release": __version__, "sessions": 3, "sessions_now": 3, "refused": {}}
    values |= {"unknown_fields": 0, "unknown_types": 0, "generation": 4, "pid": 123}
    return Rehearsal(**{**values, **changes})


def test_a_rehearsal_with_the_same_configuration_keeps_all_sessions(running: Running) -> None:
    assert rehearse(running.settings()) == outcome()
    assert running.asked == 1


def test_sessions_of_peers_that_are_not_configured_are_counted_and_not_their_records(running: Running) -> None:
    assert rehearse(running.settings("bob")) == outcome(sessions=2, refused={"not configured any more": 1})
    running.begin_session(CAROL, 9, NOW - REJECT_AFTER_TIME)  # it has ended, and its record is still there
    running.says["sessions"] = 2
    found = rehearse(running.settings("bob", "carol"))
    assert found == outcome(sessions=1, sessions_now=2, refused={"not configured any more": 1})
    assert rehearse(running.settings("carol")) == outcome(sessions=2, sessions_now=2)


def test_an_unconfirmed_session_counts_as_it_does_for_the_server(running: Running) -> None:
    slot = running.state.arena.allocate()
    waiting = KeypairState(7, 7, os.urandom(32), os.urandom(32), NOW - 1, False, slot)
    running.state.record(PeerKeypairs(BOB, None, None, waiting, 1.0))
    assert rehearse(running.settings()) == outcome()
    assert rehearse(running.settings("bob")) == outcome(sessions=2, refused={"not configured any more": 1})


def test_sessions_are_counted_at_the_time_that_the_server_names(running: Running) -> None:
    running.says = {"at_boot_secs": NOW + REJECT_AFTER_TIME - 1.5}
    assert rehearse(running.settings()).sessions == 3
    running.says = {"at_boot_secs": NOW + REJECT_AFTER_TIME}
    assert rehearse(running.settings()).sessions == 0


def test_records_after_the_servers_position_are_not_counted(running: Running) -> None:
    running.between = lambda: running.state.record(PeerKeypairs(ALICE, None, None, None, 1.0))
    assert rehearse(running.settings()) == outcome()
    running.between = lambda: None
    assert rehearse(running.settings()).sessions == 2


def test_unknown_fields_and_types_of_a_newer_release_are_counted(running: Running) -> None:
    (record,) = (each for each in running.state.journal.live_records() if each["key"] == BOB and each["type"] == "peer")
    running.append({**record, "quota": {"bytes": 1}, "colour": "red"})
    running.append({"type": "route", "key": ALICE, "via": "10.0.0.0/8"})
    assert rehearse(running.settings()) == outcome(unknown_fields=2, unknown_types=1)


def test_a_state_that_must_be_understood_is_refused(running: Running) -> None:
    known = {name: value for name, value in running.state.journal.envelope.items() if name not in ("type", "key")}
    running.state.journal.append_envelope({**known, "release": "9.0.0", "min_reader": FORMAT + 1})
    with pytest.raises(SnapshotError, match=rf"release '9.0.0', wants a reader of {FORMAT + 1}.*use a newer release"):
        rehearse(running.settings())
    assert running.asked == 1


def test_another_private_key_ends_every_live_session(running: Running, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = Server(Lab(folder), running.peers)
    other.write_config(takeover_socket=str(running.server.takeover_socket))
    running.begin_session(CAROL, 9, NOW - REJECT_AFTER_TIME)  # it has ended
    found = rehearse(NodeSettings.of_server(config.load_server(other.config_path)))
    assert found == outcome(sessions=0, refused={"the private key has changed": 2})


def compact(state: SessionState) -> None:
    state.record_takeover({"number": 1})
    activations, _ = state.journal.position
    while state.journal.position[0] == activations:
        state.journal.compact_step(100)


def test_a_journal_that_is_compacted_during_the_copy_is_requested_again(running: Running) -> None:
    def between() -> None:
        if running.asked < COPIES_MAX:
            compact(running.state)

    running.between = between
    assert rehearse(running.settings()) == outcome()
    assert running.asked == COPIES_MAX


def test_a_journal_that_is_compacted_at_every_attempt_is_given_up(running: Running) -> None:
    running.between = lambda: compact(running.state)
    with pytest.raises(SnapshotError, match=f"compacted {COPIES_MAX} times"):
        rehearse(running.settings())
    assert running.asked == COPIES_MAX


@pytest.mark.parametrize("says", [{"journal_end": None}, {"sessions": "many"}, {"at_boot_secs": [1]}])
def test_an_unreadable_answer_is_refused(running: Running, says: dict[str, Any]) -> None:
    running.says = says
    with pytest.raises(DecodeError, match="cannot be read"):
        rehearse(running.settings())


@pytest.mark.parametrize("end", [-1, 1 << 62, (1 << 64) - 1])
def test_a_journal_end_beyond_the_file_is_refused(running: Running, end: int) -> None:
    running.says = {"journal_end": end}
    with pytest.raises(SnapshotError, match="journal"):
        rehearse(running.settings())


def test_the_reason_of_a_refusal_is_made_printable(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "no\x1b[2J")
    with pytest.raises(TakeoverError) as caught:
        rehearse(running.settings())
    assert caught.value.reason == r"no\x1b[2J"


def test_a_process_with_the_state_leaves_no_core_dump(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []

    def answer(path: Path, query: str, **_: object) -> Answer:
        limits.append(resource.getrlimit(resource.RLIMIT_CORE))
        return running.answer(path, query)

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    monkeypatch.setattr(rehearsal, "query_with_fds", answer)
    rehearse(running.settings())
    assert limits == [(0, hard)]


def test_an_answer_without_an_arena_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: Path, query: str, **_: object) -> Answer:
        whole = running.answer(path, query)
        os.close(whole.find("arena").fd)
        return Answer(whole.content, (whole.find("journal"),))

    monkeypatch.setattr(rehearsal, "query_with_fds", answer)
    with pytest.raises(TakeoverError, match="no 'arena'"):
        rehearse(running.settings())


# --- No process to ask ---


def refusing(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def query(*_: object, **__: object) -> Answer:
        raise TakeoverError(Phase.QUERYING, reason)

    monkeypatch.setattr(rehearsal, "query_with_fds", query)


def test_a_server_that_is_too_old_is_told_from_one_that_refuses(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, "query 'state': expected one of status, identity, drain, accept")
    monkeypatch.setattr(rehearsal, "fetch", lambda _, what: {"pid": 5, "release": "0.0.9"})
    with pytest.raises(OxidizeError, match=r"pid 5, release 0\.0\.9, is too old to hand out its state"):
        rehearse(running.settings())
    refusing(monkeypatch, "a takeover is under way: ask again")
    with pytest.raises(TakeoverError, match="failed while querying: a takeover is under way: ask again"):
        rehearse(running.settings())


# --- For people ---


def test_a_rehearsal_is_printed_as_one_line() -> None:
    assert lines_of(outcome()) == [f"release {__version__} would keep 3 of 3 sessions (generation 4, pid 123)"]


def test_refused_sessions_and_unknown_records_have_lines_of_their_own() -> None:
    found = outcome(sessions=0, sessions_now=1, refused={"not configured any more": 1}, unknown_fields=2)
    assert lines_of(found) == [
        f"release {__version__} would keep 0 of 1 session (generation 4, pid 123)",
        "1 session: not configured any more",
        "a newer release has written 2 fields and 0 records that this one ignores",
    ]
