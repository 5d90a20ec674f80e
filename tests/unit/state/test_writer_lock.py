"""One writer, enforced by the kernel: a second process cannot write the journal, and a dead one holds nothing."""

import os
import subprocess
import sys

import pytest

from oxidize.errors import WriterBusyError
from oxidize.state.records import FORMAT
from oxidize.state.session_state import SessionState

BOOT, KEY = "boot", b"k" * 32

CHILD = """
import sys
from oxidize.errors import WriterBusyError
from oxidize.state.session_state import SessionState
state = SessionState.open(int(sys.argv[1]), int(sys.argv[2]), boot_id="boot", public_key=b"k" * 32, now=1.0)
try:
    state.become_writer()
except WriterBusyError:
    print("busy")
else:
    state.begin_generation("0.2.0", state.generation + 1)
    print("writer", flush=True)
    if len(sys.argv) > 3:
        sys.stdin.read()
"""


@pytest.fixture
def state():
    state = SessionState.create("0.1.0", 1, BOOT, KEY)
    yield state
    state.close()


def start(state: SessionState, *more: str) -> "subprocess.Popen[str]":
    fds = tuple(state.fds.values())
    command = [sys.executable, "-c", CHILD, *map(str, fds), *more]
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said_by(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_a_second_process_cannot_write(state: SessionState) -> None:
    with start(state) as child:
        assert said_by(child) == "busy"


def test_the_lock_survives_compaction(state: SessionState) -> None:
    for number in range(50):
        state.record_takeover({"number": number})
    while state.maintain(purge=True):
        pass
    with start(state) as child:
        assert said_by(child) == "busy"


def test_who_leaves_the_writing_lets_another_process_write(state: SessionState) -> None:
    state.stop_writing()
    with start(state) as child:
        assert said_by(child) == "writer"


def test_a_killed_writer_holds_nothing(state: SessionState) -> None:
    state.stop_writing()
    with start(state, "stay") as child:
        assert said_by(child) == "writer"
        state.sync()
        with pytest.raises(WriterBusyError, match="another process"):
            state.become_writer()
        child.kill()
        child.wait()
        state.become_writer()
    assert state.generation == 2
    assert FORMAT == 1
    assert os.fstat(state.fds["journal"]).st_size > 0
