"""What the kernel refuses costs a connection or a while without new ones, never the server."""

import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest

from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.takeover.acceptor import (
    ACCEPT_PAUSE,
    BIND_PAUSE_SECS_LONGEST,
    PATH_CHECK_SECS,
    PIECE_PAUSE,
    Acceptor,
)
from oxidize.takeover.channel import Channel, close_fds, connect
from oxidize.takeover.host import Answer
from oxidize.takeover.listener import Listener
from oxidize.takeover.messages import Message, Query, Refused, Reply
from oxidize.takeover.path_lock import PathLock
from tests.support.open_fds import no_leaked_fds


def admit_none(*_: object) -> NoReturn:
    raise AssertionError("no HELLO is sent here")


class Bench:
    """An acceptor on a clock of its own. refuses: the errno of every registration, 0 for none."""

    def __init__(self, path: Path, *, refuses: int = 0, required: bool = True) -> None:
        self.now = 100.0
        self.refuses = refuses
        self.calls = 0
        self.made = 0  # pieces of answers
        self.fails_at: int | None = None
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.listener = Listener(path, required=required)
        self.lock = PathLock(path)
        assert self.lock.take_if_possible()
        self.acceptor = Acceptor(
            self.listener,
            admit=admit_none,
            answer=lambda query: self.pieces() if query == "pieces" else Answer(b"yes"),
            register=self._register,
            unregister=self._unregister,
            clock=lambda: self.now,
            timeout=5.0,
            held=False,
            lock=self.lock,
        )

    def pieces(self) -> Iterator[bytes]:
        """Answer in three pieces; count them, and fail at `fails_at`."""
        for number in range(3):
            self.made += 1
            if number == self.fails_at:
                raise OxidizeError("no more")
            yield b"%d" % number

    def _register(self, fd: int, callback: Callable[[], None]) -> None:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        assert fd not in self.callbacks
        self.callbacks[fd] = callback

    def _unregister(self, fd: int) -> None:
        del self.callbacks[fd]

    def run(self, *, may_bind: bool = True) -> None:
        for fd, callback in list(self.callbacks.items()):
            if self.callbacks.get(fd) is callback:
                self.calls += 1
                callback()
        self.acceptor.handle_timeout(self.now, may_bind=may_bind)

    def ask(self) -> bool:
        """Return whether a query is answered."""
        try:
            channel = connect(self.listener.path, 0.01)
        except TakeoverError:
            return False
        if channel is None:
            return False
        channel.send(Query("anything"))
        for _ in range(3):
            self.run()
        received = channel.receive_all().received
        for each in received:
            close_fds(each.fds)
        channel.close()
        return any(isinstance(each.message, Reply) for each in received)


@contextmanager
def bench_at(path: Path, *, refuses: int = 0, required: bool = True) -> Iterator[Bench]:
    with no_leaked_fds():
        bench = Bench(path, refuses=refuses, required=required)
        try:
            yield bench
        finally:
            bench.refuses = 0
            bench.acceptor.close(None)
            bench.lock.close()
            assert bench.callbacks == {}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_at(tmp_path / "t.sock") as bench:
        yield bench


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Use up this process's descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 8, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_fds(taken)


# --- The path ---


def test_a_path_that_disappears_comes_back_within_the_interval(bench: Bench) -> None:
    bench.listener.path.unlink()
    assert not bench.ask()
    due = bench.acceptor.next_deadline()
    assert due is not None
    assert due <= bench.now + PATH_CHECK_SECS
    bench.now = due
    bench.run()
    assert bench.ask()


def test_a_path_is_looked_at_for_ever(bench: Bench) -> None:
    for _ in range(5):
        bench.now += PATH_CHECK_SECS
        bench.run()
        bench.listener.path.unlink()
        bench.now += PATH_CHECK_SECS
        bench.run()
        assert bench.ask()


def test_a_process_that_does_not_own_does_not_take_the_path(bench: Bench) -> None:
    other = Listener(bench.listener.path)
    bench.now += PATH_CHECK_SECS
    bench.run(may_bind=False)
    assert other.is_bound()
    other.close()


def test_a_folder_that_disappears_comes_back_with_the_path_and_the_lock(bench: Bench) -> None:
    shutil.rmtree(bench.listener.path.parent)
    assert not bench.ask()
    bench.now += PATH_CHECK_SECS
    bench.run()
    assert bench.ask()
    assert bench.lock.is_held
    assert bench.listener.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_lasting_loss_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    folder = bench.listener.path.parent
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    folder.touch()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            bench.now += PATH_CHECK_SECS
            bench.run()
    (told,) = (record.getMessage() for record in caplog.records)
    assert "serving, but no process can take over" in told
    folder.unlink()
    elsewhere.rename(folder)
    bench.now += PATH_CHECK_SECS
    bench.run()
    assert bench.ask()


def test_a_path_that_cannot_be_bound_is_tried_with_growing_pauses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    def refuse(listener: Listener) -> NoReturn:
        attempts.append(bench.now)
        raise TakeoverError(Phase.LISTENING, f"no room for {listener.path}")

    bench.listener.path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "bind", refuse)
        for _ in range(60):
            bench.now += PATH_CHECK_SECS
            bench.run()
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert set(pauses[4:]) == {BIND_PAUSE_SECS_LONGEST}
    bench.now += BIND_PAUSE_SECS_LONGEST
    bench.run()
    assert bench.ask()


def test_a_listener_that_began_without_its_path_says_so_and_binds_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "t.sock"
    path.parent.touch()  # where a folder should be
    with bench_at(path, required=False) as bench:
        (told,) = (record.getMessage() for record in caplog.records if "no process can take over" in record.msg)
        assert f"cannot listen at {path}: " in told
        path.parent.unlink()
        bench.now += PATH_CHECK_SECS
        bench.run()
        assert bench.ask()
        assert bench.lock.is_held


def test_two_servers_at_one_path_tell_it_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            other = Listener(bench.listener.path)
            bench.now += PATH_CHECK_SECS
            bench.run()
            other.close()
    assert len(caplog.records) == 1
    assert bench.ask()


def test_the_path_of_a_process_that_holds_the_lock_is_left_to_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder was removed, and another process has started since."""
    bench.lock.path.unlink()
    theirs, other = PathLock(bench.listener.path), Listener(bench.listener.path)
    assert theirs.take()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            bench.now += PATH_CHECK_SECS
            bench.run()
    assert other.is_bound()
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.endswith(f"pid {os.getpid()} serves at {bench.listener.path}: end one of the two")
    other.close()
    theirs.close()
    bench.now += PATH_CHECK_SECS
    bench.run()
    assert bench.ask()


def test_a_lock_whose_file_was_removed_is_taken_again(bench: Bench) -> None:
    bench.lock.path.unlink()
    bench.now += PATH_CHECK_SECS
    bench.run()
    assert bench.lock.is_held


def test_a_closed_acceptor_leaves_the_path_alone(bench: Bench) -> None:
    bench.acceptor.close(None)
    bench.now += PATH_CHECK_SECS
    bench.acceptor.handle_timeout(bench.now, may_bind=True)
    bench.acceptor.ensure_bound()
    assert not bench.listener.path.exists()
    assert bench.acceptor.next_deadline() is None


# --- No descriptor left ---


def test_the_path_is_bound_again_without_a_free_descriptor(bench: Bench) -> None:
    other = Listener(bench.listener.path)
    with no_free_descriptor():
        bench.acceptor.ensure_bound()
    assert not other.is_bound()
    assert bench.ask()
    other.close()


def test_a_path_that_could_not_be_bound_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    bench.listener.path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("socket.socket", refuse)
        bench.acceptor.ensure_bound()
    assert bench.listener.fileno() == -1
    bench.now += PATH_CHECK_SECS
    bench.run()
    assert bench.ask()


def test_accepting_without_a_free_descriptor_does_not_spin(bench: Bench) -> None:
    waiting = connect(bench.listener.path, 1.0)
    assert waiting is not None
    with no_free_descriptor():
        for _ in range(50):
            bench.run()
        assert bench.calls == 1
        assert bench.acceptor.next_deadline() is not None
        bench.now += ACCEPT_PAUSE
        bench.run()
        bench.run()
        assert bench.calls == 2
    bench.now += ACCEPT_PAUSE
    assert bench.ask()
    waiting.close()


def test_a_connection_whose_process_cannot_be_watched_is_dropped_and_does_not_spin(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    waiting = connect(bench.listener.path, 1.0)
    assert waiting is not None
    with monkeypatch.context() as patch:
        patch.setattr("oxidize.takeover.channel.PeerProcess.of", refuse)
        for _ in range(5):
            bench.run()
    waiting.close()
    bench.now += 2 * ACCEPT_PAUSE
    bench.run()
    assert bench.ask()


# --- No room in the epoll set ---


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_a_connection_that_cannot_be_watched_is_dropped(bench: Bench, error: int) -> None:
    bench.refuses = error
    assert not bench.ask()
    bench.refuses = 0
    assert bench.ask()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_a_listener_that_cannot_be_watched_is_tried_again(tmp_path: Path, error: int) -> None:
    with bench_at(tmp_path / "t.sock", refuses=error) as bench:
        for _ in range(3):
            bench.run()
            bench.now += ACCEPT_PAUSE
        assert not bench.ask()
        bench.refuses = 0
        bench.now += ACCEPT_PAUSE
        bench.run()
        assert bench.ask()


# --- Answers in pieces ---


@contextmanager
def asked(bench: Bench) -> Iterator[Channel]:
    """Yield a connection in which an answer in pieces has begun."""
    channel = connect(bench.listener.path, 1.0)
    assert channel is not None
    channel.send(Query("pieces"))
    while not any(pending.reply for pending in bench.acceptor._pending.values()):
        bench.run(may_bind=False)
    try:
        yield channel
    finally:
        channel.close()


def received(channel: Channel) -> list[Message | bytes]:
    """Return the messages that have come, a reply as its content."""
    found: list[Message | bytes] = []
    for each in channel.receive_all().received:
        found.append(os.pread(each.fds[0], 100, 0) if isinstance(each.message, Reply) else each.message)
        close_fds(each.fds)
    return found


def test_a_long_answer_is_made_one_piece_in_a_turn_and_sent_whole(bench: Bench) -> None:
    with asked(bench) as channel:
        bench.now += PIECE_PAUSE
        for made in (1, 2, 3):
            due = bench.acceptor.next_deadline()
            assert due is not None
            assert due <= bench.now, "the loop does not sleep meanwhile"
            bench.run()
            assert bench.made == made
            assert received(channel) == []
        bench.run()
        assert received(channel) == [b"012"]


def test_in_a_hand_off_the_answer_pauses_first_and_the_loop_sleeps(bench: Bench) -> None:
    with asked(bench) as channel:
        bench.run(may_bind=False)
        due = bench.acceptor.next_deadline()
        assert bench.made == 0
        assert due is not None
        assert due > bench.now
        bench.now += 10.0
        for _ in range(4):
            bench.run(may_bind=False)
        assert received(channel) == [b"012"], "an answer that is being made has no deadline"


def test_of_two_long_answers_only_one_piece_is_made_in_a_turn(bench: Bench) -> None:
    with asked(bench) as first, asked(bench) as second:
        bench.now += PIECE_PAUSE
        for turn in range(1, 7):
            bench.run()
            assert bench.made <= turn
        for _ in range(3):
            bench.run()
        assert received(first) == received(second) == [b"012"]


def test_a_long_answer_that_fails_is_refused_with_the_reason(bench: Bench) -> None:
    bench.fails_at = 1
    with asked(bench) as channel:
        bench.now += PIECE_PAUSE
        for _ in range(2):
            bench.run()
        assert received(channel) == [Refused("no more")]


def test_a_process_that_asks_again_or_goes_away_meanwhile_gets_no_more(bench: Bench) -> None:
    with asked(bench) as channel:
        channel.send(Query("anything"))
        bench.run(may_bind=False)
        assert received(channel) == [Refused("expected one query in a connection")]
    with asked(bench):
        pass
    bench.run(may_bind=False)
    assert not bench.acceptor._pending
