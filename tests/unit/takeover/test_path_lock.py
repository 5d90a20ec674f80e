"""The lock of a takeover path: one holder, whatever happens to the file, and none that outlives its process."""

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from oxidize.errors import TakeoverError
from oxidize.takeover.listener import Listener
from oxidize.takeover.path_lock import PathLock
from oxidize.takeover.successor import Successor

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.sock"


@pytest.fixture
def lock(path: Path) -> Iterator[PathLock]:
    lock = PathLock(path)
    yield lock
    lock.close()


@pytest.fixture
def other(path: Path) -> Iterator[PathLock]:
    """The lock as another process has it: a lock of flock(2) belongs to the open file."""
    other = PathLock(path)
    yield other
    other.close()


def test_one_process_at_a_time_holds_the_lock(lock: PathLock, other: PathLock) -> None:
    assert lock.take()
    assert lock.take()
    assert not other.take()
    assert not other.is_held
    lock.release()
    assert other.take()
    assert not lock.take()
    other.close()
    assert lock.take()


def test_a_lock_that_is_prepared_is_not_held_and_is_taken_without_a_descriptor(
    lock: PathLock, other: PathLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.prepare()
    assert not lock.is_held
    assert other.take()
    assert not lock.take()
    other.release()
    monkeypatch.setattr(PathLock, "_open", lambda _: pytest.fail("the file is open already"))
    lock.prepare()
    assert lock.take()


def test_a_lock_that_cannot_be_prepared_is_left_to_the_attempt_to_take_it(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.touch()
    lock = PathLock(folder / "t.sock")
    lock.prepare()
    with pytest.raises(TakeoverError, match="expected a file that this user may open"):
        lock.take()


def test_the_file_of_the_lock_means_nothing_once_its_holder_was_killed(lock: PathLock, path: Path) -> None:
    program = (
        "import sys, pathlib, signal; from oxidize.takeover.path_lock import PathLock; "
        "print(PathLock(pathlib.Path(sys.argv[1])).take(), flush=True); signal.pause()"
    )
    # An object that is dropped keeps its descriptor: only `close` and the end of the process close it.
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not lock.take()
        assert lock.holder() == f"pid {holder.pid}"
        holder.send_signal(signal.SIGKILL)
    assert lock.path.exists()
    assert lock.take()
    assert lock.path.stat().st_mode & 0o777 == 0o600


def test_a_child_does_not_inherit_the_lock(lock: PathLock, other: PathLock) -> None:
    assert lock.take()
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        lock.close()
        assert other.take()
        child.kill()


@pytest.mark.parametrize("replace", [Path.unlink, Path.touch], ids=["removed", "replaced"])
def test_a_holder_takes_the_file_that_is_at_the_path_now(
    lock: PathLock, other: PathLock, replace: Callable[[Path], None]
) -> None:
    assert lock.take()
    lock.path.unlink()
    if replace is Path.touch:
        lock.path.touch()
    held = [lock.is_held, lock.take(), lock.is_held]
    assert held == [False, True, True]
    assert not other.take()


def test_a_file_that_was_removed_before_it_was_locked_is_not_the_lock(
    lock: PathLock, other: PathLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = __import__("fcntl").flock

    def remove_before(fd: int, operation: int) -> None:
        monkeypatch.undo()
        lock.path.unlink()
        flock(fd, operation)

    monkeypatch.setattr("fcntl.flock", remove_before)
    assert lock.take()
    assert not other.take()


def test_a_link_in_place_of_the_file_is_refused(lock: PathLock, tmp_path: Path) -> None:
    lock.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TakeoverError, match=r"t\.sock\.lock: .*; expected a file that this user may open and lock"):
        lock.take()
    assert not (tmp_path / "elsewhere").exists()


def test_a_process_that_must_serve_serves_where_the_lock_cannot_be_had(lock: PathLock, other: PathLock) -> None:
    lock.path.mkdir()
    assert lock.take_if_possible()
    lock.path.rmdir()
    assert other.take()
    assert not lock.take_if_possible()


def test_the_lock_is_taken_where_nothing_may_be_written(
    lock: PathLock, other: PathLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.path.touch()
    real = os.open

    def open_of_a_read_only_file_system(path: Path, flags: int, *arguments: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *arguments)

    monkeypatch.setattr(os, "open", open_of_a_read_only_file_system)
    assert lock.take()
    assert not other.take()


@pytest.mark.skipif(os.geteuid() != 0, reason="lacks root: only root gives files away")
def test_the_lock_of_root_belongs_to_the_user_of_the_folder(lock: PathLock) -> None:
    os.chown(lock.path.parent, 65_534, -1)
    assert lock.take()
    assert lock.path.stat().st_uid == 65_534


# --- A start ---


class Starts:
    """A start that looks for a predecessor; the clock advances by a second with each reading."""

    def __init__(self, path: Path, lock: PathLock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.pauses = 0
        self.in_pause: Callable[[], None] = lambda: None
        self.successor = Successor(path, release="new", snapshot_versions=[1], clock=self._clock, lock=lock)
        monkeypatch.setattr(select, "select", self._pause)

    def _clock(self) -> float:
        self.now += 1.0
        return self.now

    def _pause(self, *_: object) -> None:
        self.pauses += 1
        self.in_pause()


@pytest.fixture
def starts(path: Path, lock: PathLock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    starts = Starts(path, lock, monkeypatch)
    yield starts
    starts.successor.close()


def test_a_start_without_a_predecessor_holds_the_lock(starts: Starts, lock: PathLock) -> None:
    assert starts.successor.connect() is None
    assert lock.is_held
    assert starts.pauses == 0


def test_a_start_serves_where_there_is_no_room_for_the_lock(
    starts: Starts, lock: PathLock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", refuse)
    assert starts.successor.connect() is None
    assert not lock.is_held
    (told,) = (record.getMessage() for record in caplog.records)
    assert "serving without the lock of the path" in told
    assert "No space left on device" in told


def test_a_start_beside_a_start_ends_with_the_process_that_holds_the_lock(starts: Starts, other: PathLock) -> None:
    assert other.take()
    with pytest.raises(TakeoverError, match=rf"but pid {os.getpid()} holds .*t\.sock\.lock: it starts, ends or hangs"):
        starts.successor.connect()
    assert starts.pauses > 0


def test_a_start_beside_one_that_fails_starts_in_its_place(starts: Starts, lock: PathLock, other: PathLock) -> None:
    assert other.take()
    starts.in_pause = other.close
    assert starts.successor.connect() is None
    assert lock.is_held
    assert starts.pauses == 1


def test_a_start_that_gets_the_lock_looks_again_for_a_listener(
    starts: Starts, lock: PathLock, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older release may listen by then, which knows no lock."""
    listeners: list[Listener] = []
    take = lock.take

    def bind_meanwhile() -> bool:
        listeners.append(Listener(path))
        return take()

    monkeypatch.setattr(lock, "take", bind_meanwhile)
    monkeypatch.setattr(Successor, "_wait", lambda _: None)
    with pytest.raises(TakeoverError, match="waiting for the offer"):  # of a listener that answers nothing
        starts.successor.connect()
    (listener,) = listeners
    listener.close()
