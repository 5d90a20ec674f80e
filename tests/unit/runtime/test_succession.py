"""The successor's side of a takeover: parts that no process test reaches."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from oxidize.errors import OxidizeError, SnapshotError
from oxidize.log_output import STANDARD_ERROR
from oxidize.runtime.node import Node
from oxidize.runtime.offer import FdName, named_fd
from oxidize.runtime.succession import Succession
from oxidize.state.session_state import SessionState
from oxidize.takeover.successor import Commit


def test_a_successor_that_has_not_read_up_to_the_end_that_commit_names_does_not_own() -> None:
    before = SessionState.create("0.2.0", 1, "boot", b"k" * 32)
    fds = before.fds
    state = SessionState.open(
        os.dup(fds["journal"]), os.dup(fds["arena"]), boot_id="boot", public_key=b"k" * 32, now=1.0
    )
    before.stop_writing()
    node = object.__new__(Node)
    node.session_state = state
    node.device = SimpleNamespace(restore=lambda changes, now: None)  # type: ignore[assignment]  # a device that restores nothing
    with pytest.raises(SnapshotError, match=f"read up to {before.end}, expected {before.end + 1} as COMMIT says"):
        Succession._own(object.__new__(Succession), node, Commit({"journal_end": before.end + 1}, 1.0, False))
    assert not state.is_writer
    state.close()
    before.close()


@pytest.mark.parametrize("is_coordinated", [True, False], ids=["by a reload", "by a manager"])
@pytest.mark.parametrize("stream", ["none", "of another process", "its own"])
def test_standard_error_of_a_reload_outside_of_the_unit_is_not_kept(
    stream: str, is_coordinated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.fstat(STANDARD_ERROR)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if stream != "none":
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}" if stream == "its own" else "1:1")
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    log_file = os.fstat(log)
    succession = object.__new__(Succession)
    succession.control = SimpleNamespace(is_coordinated=is_coordinated)  # type: ignore[assignment]  # all that is asked
    succession.fds = {FdName.STDERR: named_fd(FdName.STDERR, log)}
    kept = os.dup(1), os.dup(STANDARD_ERROR)
    try:
        succession._take_log()
        is_log = [os.path.samestat(os.fstat(fd), log_file) for fd in (1, STANDARD_ERROR)]
    finally:
        for number, fd in enumerate(kept, start=1):
            os.dup2(fd, number)
            os.close(fd)
    assert is_log == [is_coordinated and stream != "its own"] * 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log)


@pytest.mark.parametrize("fails", [False, True], ids=["in force", "refused"])
def test_the_mark_changes_together_with_the_filter_that_asks_for_it(fails: bool) -> None:
    done: list[object] = []

    def protect() -> None:
        if fails:
            raise OxidizeError("no nf_tables")
        done.append("filter")

    node = object.__new__(Node)
    node.settings = SimpleNamespace(fwmark=7)  # type: ignore[assignment]  # all that is asked
    node.udp = SimpleNamespace(set_mark=done.append)  # type: ignore[assignment]  # what is told
    node.host_setup = SimpleNamespace(protect=protect)  # type: ignore[assignment]  # what is told
    if fails:
        with pytest.raises(OxidizeError):
            node.protect()
    else:
        node.protect()
    assert done == ([] if fails else ["filter", 7])
