"""The successor's side of a takeover: parts that no process test reaches."""

import os
from types import SimpleNamespace

import pytest

from oxidize.errors import SnapshotError
from oxidize.runtime.node import Node
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
