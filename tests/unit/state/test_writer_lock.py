"""One writer, enforced by the kernel: a second process cannot write the journal, and a dead one holds no lock."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from oxidize.errors import StateError, StorageError, WriterBusyError
from oxidize.state import writer_lock
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
def state() -> Iterator[SessionState]:
    state = SessionState.create("0.1.0", 1, BOOT, KEY)
    yield state
    state.close()


def start(state: SessionState, *more: str) -> "subprocess.Popen[str]":
    fds = tuple(state.fds.values())
    command = [sys.executable, "-c", CHILD, *map(str, fds), *more]
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line_of(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_a_second_process_cannot_become_the_writer(state: SessionState) -> None:
    with start(state) as child:
        assert first_line_of(child) == "busy"


def test_the_writers_lock_survives_compaction(state: SessionState) -> None:
    for number in range(50):
        state.record_takeover({"number": number})
    while state.maintain(purge=True):
        pass
    with start(state) as child:
        assert first_line_of(child) == "busy"


def test_a_process_that_stops_writing_lets_another_become_the_writer(state: SessionState) -> None:
    state.stop_writing()
    with start(state) as child:
        assert first_line_of(child) == "writer"


def test_a_killed_writer_holds_no_lock(state: SessionState) -> None:
    state.stop_writing()
    with start(state, "stay") as child:
        assert first_line_of(child) == "writer"
        state.sync()
        with pytest.raises(WriterBusyError, match="another process"):
            state.become_writer()
        child.kill()
        child.wait()
        state.become_writer()
    assert state.generation == 2
    assert FORMAT == 1
    assert os.fstat(state.fds["journal"]).st_size > 0


def test_the_lock_is_asked_for_before_the_end_of_the_journal(state: SessionState) -> None:
    """Another order lets a writer that has already appended look like a journal that was not read."""
    state.stop_writing()
    with start(state, "stay") as child:
        assert first_line_of(child) == "writer"  # it has appended, and this process has not read that
        with pytest.raises(WriterBusyError, match="another process"):
            state.become_writer()
        child.kill()
        child.wait()
    with pytest.raises(StateError, match="not read to"):
        state.become_writer()
    with start(state) as child:
        assert first_line_of(child) == "writer", "a refused process keeps no lock"


def test_an_error_of_the_kernel_is_not_taken_for_another_writer(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, is_passing in ((errno.ENOLCK, True), (errno.ENOMEM, True), (errno.EBADF, False), (errno.EINVAL, False)):

        def refuse(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "lockf", refuse)
            with pytest.raises(StorageError, match=os.strerror(code)) as caught:
                writer_lock.take(state.fds["journal"])
        assert writer_lock.is_passing(caught.value) is is_passing


def test_a_descriptor_that_cannot_be_locked_still_tells_of_a_writer(state: SessionState) -> None:
    reader = state.read_only_fds()["journal"]
    with pytest.raises(StorageError, match="Bad file descriptor"):
        writer_lock.take(reader)
    assert not writer_lock.is_held_elsewhere(reader)
    state.stop_writing()
    with start(state, "stay") as child:
        assert first_line_of(child) == "writer"
        assert writer_lock.is_held_elsewhere(reader)
        child.kill()
