"""A configuration on disk is replaced atomically, by one command at a time, and keeps its owner and mode."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from oxidize.errors import ConfigError
from oxidize.provision import config_file
from oxidize.provision.config_file import NewFile, Owner, install, locked, write_secret


def never() -> None:
    raise AssertionError("expected no other command to hold the lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text("old")
    path.chmod(0o640)
    return path


def test_a_replaced_configuration_keeps_its_mode(path: Path) -> None:
    before = path.stat()
    (path.parent / "other").hardlink_to(path)
    with locked(path, never) as file:
        assert file.content == b"old"
        file.replace(b"new")
        file.replace(b"newer")
    after = path.stat()
    assert path.read_text() == "newer"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert (path.parent / "other").read_text() == "old"  # the old file was not written to
    assert sorted(path.parent.iterdir()) == [path.parent / "other", path]


@pytest.mark.parametrize(
    ("number", "uid", "remedy"),
    [
        (errno.ENOSPC, 0, "make room in that file system"),
        (errno.EDQUOT, 0, "make room in that file system"),
        (errno.EROFS, 0, "make that file system writable"),
        (errno.EACCES, 1000, "run the command as its owner or as root"),
        (errno.EACCES, 0, "give the folder and its files to root"),
    ],
)
def test_a_file_that_cannot_be_replaced_stays_and_the_remedy_fits(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, uid: int, remedy: str
) -> None:
    def mkstemp(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with locked(path, never) as file, pytest.raises(ConfigError, match=remedy):
        file.replace(b"new")
    assert path.read_text() == "old"


@pytest.mark.skipif(os.geteuid() != 0, reason="lacks root: only root gives files away")
def test_a_replaced_configuration_keeps_its_owner(path: Path) -> None:
    os.chown(path, 12345, 54321)
    with locked(path, never) as file:
        file.replace(b"new")
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12345, 54321, 0o640)


def test_a_symbolic_link_stays_and_its_target_is_replaced(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.toml"
    link.parent.mkdir()
    link.symlink_to(path)
    with locked(link, never) as file:
        assert (file.path, file.target) == (link, path)
        file.replace(b"new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_a_concurrent_change_of_the_configuration_is_not_overwritten(path: Path) -> None:
    with locked(path, never) as file:
        path.write_text("theirs")
        with pytest.raises(ConfigError, match="changed by another program"):
            file.replace(b"new")
    assert path.read_text() == "theirs"
    assert list(path.parent.iterdir()) == [path]


def test_a_second_command_waits_for_the_lock(path: Path) -> None:
    waited = []
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)

        def on_wait() -> None:
            waited.append(True)
            fcntl.flock(folder, fcntl.LOCK_UN)  # the other command ends

        with locked(path, on_wait), pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(folder)
    assert waited == [True]


@pytest.mark.parametrize("name", ["none.toml", "a\0b", "loop"])
def test_a_configuration_that_cannot_be_read_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError) as caught, locked(tmp_path / name, never):
        pass
    assert len(caught.value.problems) == 1


def test_only_the_owner_can_read_a_written_key(tmp_path: Path) -> None:
    path = tmp_path / "a.psk"
    write_secret(path, "KEY", None)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("KEY\n", 0o600)
    with pytest.raises(ConfigError, match="File exists"):
        write_secret(path, "OTHER", None)
    assert path.read_text() == "KEY\n"


# --- What `oxidize import` writes ---

FILES = [NewFile("server.key", "KEY\n", 0o600, None), NewFile("server.toml", "text", 0o640, None)]


def test_files_are_installed_together(tmp_path: Path) -> None:
    seen = []

    def load(path: Path) -> None:
        seen.append((path.read_text(), (path.parent / "server.key").read_text()))

    assert install(tmp_path, FILES, load, force=False) == [tmp_path / "server.key", tmp_path / "server.toml"]
    assert seen == [("text", "KEY\n")]
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"server.key": 0o600, "server.toml": 0o640}


def test_existing_files_are_overwritten_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("precious")
    with pytest.raises(ConfigError, match=r"server\.key exists: .*--force"):
        install(tmp_path, FILES, lambda path: None, force=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    install(tmp_path, FILES, lambda path: None, force=True)
    assert (tmp_path / "server.key").read_text() == "KEY\n"


def test_files_are_not_installed_if_the_configuration_does_not_load(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        raise ConfigError(f"{path}: bad", "also")

    with pytest.raises(ConfigError) as caught:
        install(tmp_path, FILES, load, force=False)
    assert caught.value.problems == (f"{tmp_path}/server.toml: bad", "also")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_missing_folder_is_made(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        install(tmp_path / "new", FILES, lambda path: None, force=False)
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o751
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"server.key", "server.toml"}


@pytest.mark.skipif(os.geteuid() != 0, reason="lacks root: only root gives files away")
def test_a_made_folder_belongs_to_the_group_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "service_owner", lambda _role: Owner(12345, 54321))
    install(tmp_path / "new", FILES, lambda path: None, force=False)
    found = (tmp_path / "new").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 54321, 0o751)


def test_a_made_folder_is_removed_if_nothing_is_installed(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        raise ConfigError(f"{path}: bad")

    with pytest.raises(ConfigError, match=f"{tmp_path}/new/server.toml: bad"):
        install(tmp_path / "new", FILES, load, force=False)
    assert list(tmp_path.iterdir()) == []


def test_only_the_last_folder_of_a_path_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        install(tmp_path / "mistyped" / "new", FILES, lambda path: None, force=False)
    (problem,) = caught.value.problems
    assert problem == (
        f"{tmp_path}/mistyped/new: No such file or directory: expected a folder to write to; "
        f"make {tmp_path}/mistyped first, or name another one (-o)"
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder that can be written to"):
        install(tmp_path / "file", FILES, lambda path: None, force=False)
