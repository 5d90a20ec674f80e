"""The kernel identifies the listener at a socket, independent of the listener's answers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import TakeoverError
from oxidize.takeover import who_listens
from tests.support.open_fds import no_leaked_fds
from tests.support.takeover_peer import WAIT_SECS

NOBODY = 65_534
# Listens, reports that it does, and answers no connection.
MUTE = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1])
os.setuid(int(sys.argv[2]))
s.listen()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening(path: Path, uid: int) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", MUTE, str(path), str(uid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "takeover.sock"


@pytest.fixture
def mute(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with listening(path, os.getuid()) as process:
        yield process


def test_a_listener_that_answers_nothing_is_identified(path: Path, mute: "subprocess.Popen[bytes]") -> None:
    with no_leaked_fds():
        assert who_listens(path) == (mute.pid, os.getuid())
    mute.kill()
    mute.wait()
    assert who_listens(path) is None


def test_a_missing_listener_is_none(path: Path) -> None:
    assert who_listens(path) is None


def test_the_messages_of_a_listener_are_not_read(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(WAIT_SECS)
        assert who_listens(path) == (os.getpid(), os.getuid())
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(4096) == b""


@pytest.mark.root
def test_the_reported_user_is_the_one_of_the_process(path: Path) -> None:
    with listening(path, NOBODY) as process:
        assert who_listens(path) == (process.pid, NOBODY)


def test_a_full_backlog_is_an_error(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(str(path))
            with pytest.raises(TakeoverError, match="accepts no connection"):
                who_listens(path, timeout=0.01)


def test_a_signal_during_the_wait_invents_no_listener(path: Path) -> None:
    """After an interrupted connect(2), Python continues with an unconnected socket."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    main = threading.get_ident()
    over = threading.Event()

    def disturb() -> None:
        while not over.wait(0.005):
            signal.pthread_kill(main, signal.SIGUSR1)

    disturbing = threading.Thread(target=disturb)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(0)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
                first.connect(str(path))
                disturbing.start()
                with pytest.raises(TakeoverError, match="accepts no connection"):
                    who_listens(path, timeout=0.1)
    finally:
        over.set()
        disturbing.join()
        signal.signal(signal.SIGUSR1, before)
