"""The look at files of which netlink does not tell."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oxidize.runtime.file_watch import LOOK_SECS, QUIET_SECS, FileWatch

BEGINS_AT = 100.0
FIRST = BEGINS_AT + QUIET_SECS  # when the first look is told


class Scene:
    """A watch of two files, with a clock that the test moves. changes: the times at which it told of one."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / "resolv.conf", folder / "resolved.conf"]
        self.files[0].write_text("nameserver 10.9.0.1\n")
        self.changes: list[float] = []
        self.owns = True
        self.watch = FileWatch(self.files, self.changes.append, lambda: self.owns, BEGINS_AT)

    def look(self) -> float:
        """Let the next look take place; return its time."""
        due = self.watch.next_deadline()
        assert due is not None
        self.watch.handle_timeout(due)
        return due


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_the_first_look_tells_what_nobody_has_compared_yet(scene: Scene) -> None:
    assert [scene.look(), scene.look()] == [BEGINS_AT, FIRST]
    assert scene.changes == [FIRST]


def test_files_that_stay_the_same_are_looked_at_and_no_more_is_done(scene: Scene) -> None:
    expected = [BEGINS_AT, *(FIRST + number * LOOK_SECS for number in range(4))]
    assert [scene.look() for _ in range(5)] == pytest.approx(expected)
    assert scene.changes == [FIRST]


def test_a_file_that_is_being_written_is_not_told_before_it_stays_the_same(scene: Scene) -> None:
    times = []
    for number in range(5):
        scene.files[0].write_text("nameserver" * number)
        times.append(scene.look())
    assert times == pytest.approx([BEGINS_AT + number * QUIET_SECS for number in range(5)])
    assert scene.changes == []
    at = scene.look()
    assert scene.changes == [at]


def write(scene: Scene) -> None:
    scene.files[0].write_text("nameserver 192.0.2.53\n")


def replace(scene: Scene) -> None:
    new = scene.files[0].with_name("new")
    new.write_bytes(scene.files[0].read_bytes())
    new.rename(scene.files[0])


def remove(scene: Scene) -> None:
    scene.files[0].unlink()


def add(scene: Scene) -> None:
    scene.files[1].write_text("")


def touch(scene: Scene) -> None:
    os.utime(scene.files[0], ns=(0, 0))


def relink(scene: Scene) -> None:
    scene.files[0].unlink()
    scene.files[0].symlink_to("/dev/null")


@pytest.mark.parametrize("change", [write, replace, remove, add, touch, relink])
def test_each_change_of_a_file_is_told_once(scene: Scene, change: Callable[[Scene], None]) -> None:
    for _ in range(2):
        scene.look()
    change(scene)
    times = [scene.look() for _ in range(4)]
    assert scene.changes == [FIRST, times[1]]
    assert times[1] - FIRST <= 1.0


def test_a_process_that_does_not_own_does_not_look(scene: Scene) -> None:
    scene.owns = False
    assert scene.watch.next_deadline() is None
