"""The path of wg: taken where no process listens, kept from every other process, and removed by its own alone."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import OxidizeError
from oxidize.net import uapi_path

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wireguard" / "wg0.sock"


@contextlib.contextmanager
def bound(path: Path) -> Iterator[uapi_path.Identity]:
    listener, identity = uapi_path.bind(path)
    with listener:
        yield identity


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_the_folder_and_the_socket_are_for_their_user_alone(path: Path) -> None:
    umask = os.umask(0)
    try:
        with bound(path):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert connects(path)
            assert names(path) == ["wg0.sock"]
    finally:
        os.umask(umask)


def test_a_socket_of_a_process_that_has_ended_is_replaced(path: Path) -> None:
    with bound(path) as before:
        pass
    assert path.exists()
    with bound(path) as after:
        assert after != before
        assert connects(path)


def test_a_socket_at_which_a_process_listens_is_left_alone(path: Path) -> None:
    with bound(path) as identity:
        with pytest.raises(
            OxidizeError, match=r"another process listens at .*: expected an interface's name of its own"
        ):
            uapi_path.bind(path)
        assert uapi_path.leads_to(path, identity)


def test_a_listener_that_accepts_nothing_any_more_counts_as_one(path: Path) -> None:
    path.parent.mkdir(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as full, contextlib.ExitStack() as clients:
        full.bind(os.fspath(path))
        full.listen(0)
        while True:
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            try:
                client.connect(os.fspath(path))
            except BlockingIOError:
                break
        with pytest.raises(OxidizeError, match="another process listens"):
            uapi_path.bind(path)


def test_a_socket_of_another_type_counts_as_one(path: Path) -> None:
    path.parent.mkdir(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(os.fspath(path))
        other.listen()
        with pytest.raises(OxidizeError, match="another process listens"):
            uapi_path.bind(path)


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir(0o700)
    path.write_text("mine")
    with pytest.raises(OxidizeError, match="is no socket: expected none"):
        uapi_path.bind(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(OxidizeError, match="others may write to it: expected root's"):
        uapi_path.bind(path)
    assert names(path) == []


def test_a_link_in_place_of_the_folder_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OxidizeError, match="cannot listen at"):
        uapi_path.bind(path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OxidizeError, match="expected a folder that this user may write to"):
        uapi_path.bind(tmp_path / "file" / "wireguard" / "wg0.sock")


def test_one_process_at_a_time_looks_and_binds(path: Path) -> None:
    path.parent.mkdir(0o700)
    with uapi_path._locked(path.parent), pytest.raises(OxidizeError, match="cannot listen at"):
        uapi_path.bind(path)
    with bound(path):
        assert connects(path)


def test_the_own_path_is_removed(path: Path) -> None:
    with bound(path) as identity:
        uapi_path.remove(path, identity)
        assert names(path) == []
        uapi_path.remove(path, identity)


def test_the_path_of_another_process_is_not_removed(path: Path) -> None:
    with bound(path) as identity:
        path.unlink()
        assert not uapi_path.leads_to(path, identity)
        with bound(path) as another:
            uapi_path.remove(path, identity)
            assert uapi_path.leads_to(path, another)


def test_a_path_of_which_nothing_can_be_known_counts_as_the_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    with bound(path) as identity:
        monkeypatch.setattr(Path, "lstat", fail)
        assert uapi_path.leads_to(path, identity)
        monkeypatch.undo()
