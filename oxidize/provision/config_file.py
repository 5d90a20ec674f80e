"""Atomic changes of a configuration file, and new files beside it.

The rule: a change is made completely or not at all, by one command at a time, and it never overwrites a concurrent
change by an editor. The file keeps its owner and its mode; a link to it stays a link. Sources:
rename(2), fsync(2), flock(2).
"""

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oxidize.config.paths import SERVICE_USERS, Role, remedy_for
from oxidize.config.source_file import read_file
from oxidize.errors import ConfigError

SECRET_MODE = 0o600
FOLDER_MODE = 0o751  # as tmpfiles.conf has it: a service opens its files there, and may not change them
_MAKE_ROOM = "make room in that file system, and run the command again"
# Where the usual remedy, another user or another path, would not help.
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EROFS: "make that file system writable, and run the command again",
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a file, as numbers."""

    uid: int
    gid: int


@dataclass(slots=True)
class ConfigFile:
    """A configuration that is locked against other commands of this program.

    path: as given. target: the file itself if path is a link. content: of the file.
    """

    path: Path
    target: Path
    content: bytes

    def replace(self, content: bytes) -> None:
        """Replace the content; raises ConfigError, and changes nothing, if that fails or the file has changed."""
        with _as_config_errors(self.path, "a folder that can be written to", "run the command as its owner or as root"):
            if self.target.read_bytes() != self.content:
                raise ConfigError(
                    f"{self.path} was changed by another program since: nothing is changed; run the command again"
                )
            _replace(self.target, content)
        self.content = content


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[ConfigFile]:
    """Lock a configuration against other commands and yield it; raises ConfigError if it cannot be read.

    on_wait: called before waiting for another command to end.
    """
    read_file(path)  # which says of a missing one how to get one
    with contextlib.ExitStack() as stack:
        with _as_config_errors(path, "a readable configuration file", "correct the path, or who may read it (sudo)"):
            target = path.resolve(strict=True)
            # The folder is locked, not the file, since each change replaces the file.
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(folder, fcntl.LOCK_EX)
            content = target.read_bytes()
        yield ConfigFile(path, target, content)


def write_secret(path: Path, key: str, owner: Owner | None) -> None:
    """Write a key to a new file that only its owner can read; raises ConfigError if the file exists."""
    with _as_config_errors(path, "to write a new file", "remove it if it is unused, or correct who may write there"):
        _write_new(path, f"{key}\n", SECRET_MODE, owner)


def _write_new(path: Path, content: str, mode: int, owner: Owner | None) -> None:
    """Write a new file; remove it if that fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, SECRET_MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            if owner is not None:
                os.fchown(file.fileno(), owner.uid, owner.gid)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # cleans up, and raises it again
        path.unlink()
        raise


def owner_of_keys(private_key_file: Path | None) -> Owner | None:
    """Return the owner that a key needs so that the server can read it, None unless this process is root.

    That is the owner of the server's private key or, without such a file, the service's user if it exists.
    """
    if os.geteuid() != 0:
        return None
    if private_key_file is not None:
        with contextlib.suppress(OSError):
            found = private_key_file.stat()
            return Owner(found.st_uid, found.st_gid)
    return service_owner("server")


def service_owner(role: Role) -> Owner | None:
    """Return the user of the service of a role; None if it does not exist or this process is not root."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(SERVICE_USERS[role])
    except KeyError:
        return None
    return Owner(found.pw_uid, found.pw_gid)


def _replace(target: Path, content: bytes) -> None:
    before = target.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            made = os.fstat(file.fileno())
            if (before.st_uid, before.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            shutil.copystat(target, name)  # the mode, and the attributes of security modules
            os.utime(name)
            os.fsync(file.fileno())
        os.rename(name, target)  # noqa: PTH104  # the name of a temporary file is text
    except BaseException:  # cleans up, and raises it again
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108  # the name of a temporary file is text
        raise
    sync_folder(target.parent)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to write. is_key: its content is a key, which is overwritten by nothing."""

    name: str
    content: str = field(repr=False)
    mode: int
    owner: Owner | None
    is_key: bool = False


def install(folder: Path, files: Sequence[NewFile], load: Callable[[Path], object], *, force: bool) -> list[Path]:
    """Write files, the last of which is a configuration that `load` accepts; return the paths of those written.

    They are written to a temporary folder and moved once `load` succeeds, the configuration last. `folder` is made if
    it is missing. force: whether an existing configuration is overwritten; a key never is, and one that is there
    already stays as it is. Raises ConfigError, and writes nothing, if a file exists or cannot be written.
    """
    problems = list(_conflicts(folder, files, force=force))
    if problems:
        raise ConfigError(*problems)
    with (
        _made(folder),
        _as_config_errors(folder, "a folder that can be written to", "run the command as its owner or as root"),
        tempfile.TemporaryDirectory(prefix=".import.", dir=folder) as name,
    ):
        for file in files:
            _write_new(Path(name, file.name), file.content, file.mode, file.owner)
        try:
            load(Path(name, files[-1].name))
        except ConfigError as error:
            raise ConfigError(*(problem.replace(f"{name}/", f"{folder}/") for problem in error.problems)) from error
        written = [file for file in files if not (file.is_key and os.path.lexists(folder / file.name))]
        for file in written:
            Path(name, file.name).replace(folder / file.name)
        sync_folder(folder)
    return [folder / file.name for file in written]


def _conflicts(folder: Path, files: Sequence[NewFile], *, force: bool) -> Iterator[str]:
    """Yield a line for each file that exists and is not to be overwritten."""
    for file in files:
        path = folder / file.name
        if not os.path.lexists(path):
            continue
        if not force:
            yield f"{path} exists: expected to write a new file; name another one (-o), or --force"
        elif file.is_key and read_file(path, "a file with a key") != file.content.encode():
            yield f"{path} has another key, which --force does not overwrite; move it away, or name another output (-o)"


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a missing folder, in which the services find their files; remove it again if the body fails.

    Raises ConfigError if it cannot be made. Its parent is not made, since the path may be mistyped.
    """
    with contextlib.ExitStack() as undo:
        if not os.path.lexists(folder):
            owner = service_owner("server")
            remedy = "run the command as root" if folder.parent.is_dir() else f"make {folder.parent} first"
            with _as_config_errors(folder, "a folder to write to", f"{remedy}, or name another one (-o)"):
                folder.mkdir(mode=0o700)
                undo.callback(_remove_empty, folder)
                if owner is not None:
                    os.chown(folder, 0, owner.gid)
                folder.chmod(FOLDER_MODE)
                sync_folder(folder.parent)
        yield
        undo.pop_all()


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_config_errors(path: Path, expected: str, remedy: str) -> Iterator[None]:
    """Raise errors of the operating system as ConfigError with the path."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        if isinstance(error, OSError):
            remedy = remedy_for(error, _REMEDIES.get(error.errno or 0, remedy))
        raise ConfigError(f"{path}: {reason}: expected {expected}; {remedy}") from error
