"""The path of a listener: whoever leaves, in whatever order, the newest owner keeps it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from oxidize.errors import TakeoverError
from oxidize.takeover.channel import connect
from oxidize.takeover.listener import Listener

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "takeover.sock"


def answers(listener: Listener) -> bool:
    """Return whether a connection to the path arrives at this listener."""
    channel = connect(listener.path, 1.0)
    if channel is None:
        return False
    accepted = listener.accept()
    channel.close()
    if accepted is None:
        return False
    accepted.close()
    return True


# --- close() and another process that binds, between any two of its steps ---


def between(monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], None]) -> None:
    """Call `act` once, right after a step of `close`."""
    done: list[bool] = []

    def acting(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            result = original(*arguments, **options)
            if not done:
                done.append(True)
                act()
            return result

        return call

    owner, name = {"is_bound": (Listener, "is_bound"), "rename": (Path, "rename"), "link": (os, "link")}[step]
    monkeypatch.setattr(owner, name, acting(getattr(owner, name)))


def moved(listener: Listener, path: Path) -> Callable[[], None]:
    """Return what moves a listener's name over another path, as `Listener` itself does when it binds."""

    def move() -> None:
        listener.path = listener.path.replace(path)

    return move


def test_a_path_that_was_bound_after_the_question_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Listener(path), Listener(path.with_name("new"))
    between(monkeypatch, "is_bound", moved(new, path))
    old.close()
    assert new.is_bound()
    assert answers(new)
    new.close()
    assert list(path.parent.iterdir()) == []


def test_a_path_that_is_bound_while_the_old_name_is_aside_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Listener(path), Listener(path.with_name("new"))
    between(monkeypatch, "rename", moved(new, path))
    old.close()
    assert answers(new)
    new.close()
    assert list(path.parent.iterdir()) == []


def test_of_two_that_bind_while_another_leaves_the_last_one_keeps_the_path(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, second, third = Listener(path), Listener(path.with_name("2")), Listener(path.with_name("3"))
    with monkeypatch.context() as patch:
        between(patch, "is_bound", moved(second, path))
        between(patch, "rename", moved(third, path))
        old.close()
    assert answers(third)
    second.close()
    assert answers(third)
    third.close()
    assert list(path.parent.iterdir()) == []


def test_a_path_returns_where_there_are_no_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, os.strerror(1))

    old, new = Listener(path), Listener(path.with_name("new"))
    between(monkeypatch, "is_bound", moved(new, path))
    monkeypatch.setattr(os, "link", refuse)
    old.close()
    assert answers(new)
    new.close()


# --- A path that was lost ---


def remove(path: Path) -> None:
    path.unlink()


def replace_by_a_file(path: Path) -> None:
    path.unlink()
    path.write_text("")


def replace_by_a_dead_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(os.fspath(path))


def replace_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("lose", [remove, replace_by_a_file, replace_by_a_dead_socket, replace_by_a_link])
def test_a_lost_path_is_seen_and_bound_again(path: Path, lose: Callable[[Path], None]) -> None:
    listener = Listener(path)
    assert listener.is_bound()
    lose(path)
    assert not listener.is_bound()
    listener.bind()
    assert answers(listener)
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_a_lost_folder_is_seen_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    listener = Listener(folder / "takeover.sock")
    listener.path.unlink()
    folder.rmdir()
    folder.touch()
    assert not listener.is_bound()
    with pytest.raises(TakeoverError, match="expected a folder with room"):
        listener.bind()
    assert (listener.fileno(), listener.is_bound(), listener.accept()) == (-1, False, None)
    folder.unlink()
    listener.bind()
    assert answers(listener)
    listener.close()
    listener.close()


def test_a_path_that_cannot_be_looked_at_is_not_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, os.strerror(5))

    listener = Listener(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", fail)
        assert listener.is_bound()
    listener.close()


def test_a_listener_that_is_not_required_may_begin_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.touch()
    with pytest.raises(TakeoverError):
        Listener(folder / "takeover.sock")
    listener = Listener(folder / "takeover.sock", required=False)
    assert listener.fileno() == -1
    assert listener.error is not None
    folder.unlink()
    listener.bind()
    assert answers(listener)
    listener.close()
