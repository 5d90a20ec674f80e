"""The files of a state: a process without a writable descriptor cannot open them for writing."""

import os
import stat
import subprocess
from contextlib import closing

import pytest

from oxidize.errors import OxidizeError
from oxidize.state import memory_file
from oxidize.state.memory_file import MODE
from oxidize.state.session_state import SessionState

NOBODY = 65_534
# Opens a descriptor that was handed over for reading again, for reading and for writing.
REOPEN = (
    'head -c 8 "/proc/self/fd/$0" >/dev/null && echo read; (exec 9<>"/proc/self/fd/$0") 2>/dev/null && echo written'
)


def make() -> SessionState:
    return SessionState.create("0.1.0", 1, "boot", bytes(32))


def test_the_mode_of_state_files_allows_no_writing_under_any_umask() -> None:
    before = os.umask(0)
    try:
        state = make()
    finally:
        os.umask(before)
    with closing(state):
        modes = [stat.S_IMODE(os.fstat(fd).st_mode) for fd in (*state.fds.values(), *state.read_only_fds().values())]
    assert modes == [MODE] * 4
    assert MODE & 0o222 == 0


@pytest.mark.root
def test_another_user_with_descriptors_of_state_files_cannot_reopen_them_for_writing() -> None:
    with closing(make()) as state:
        for fd in state.read_only_fds().values():
            command = ["sh", "-c", REOPEN, str(fd)]
            done = subprocess.run(command, user=NOBODY, group=NOBODY, pass_fds=[fd], capture_output=True, check=False)
            assert done.stdout == b"read\n"


def test_a_machine_with_words_of_32_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_file.check_machine()
    monkeypatch.setattr("struct.calcsize", lambda _: 4)
    with pytest.raises(OxidizeError, match=r"words of 32 bits; expected 64.*use a 64-bit Python"):
        memory_file.check_machine()
