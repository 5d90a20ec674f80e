"""The operator's configuration as a file that is changed while others may change it too.

The rule: a change is whole or it is not there, it is made by one command at a time, and it never takes the place of
what somebody else has written meanwhile. The file keeps its owner and its mode; a link to it stays a link. Sources:
rename(2), fsync(2), flock(2).
"""

import contextlib
import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oxidize.errors import ConfigError

SERVICE_USER = "oxidize"  # of oxidize-daemon.service
SECRET_MODE = 0o600
FOLDER_MODE = 0o750  # as tmpfiles.conf has it: the service finds its files there and may not change them


@dataclass(frozen=True, slots=True)
class Owner:
    """Who is to own a file, by number."""

    uid: int
    gid: int

    def as_group_of_root(self) -> "Owner":
        """Return root with this one's group."""
        return Owner(0, self.gid)


@dataclass(slots=True)
class ConfigFile:
    """A configuration while nobody else may change it by these commands; `content` is what it holds.

    path: as it was given. target: the file itself, where path is a link.
    """

    path: Path
    target: Path
    content: bytes

    def replace(self, content: bytes) -> None:
        """Put other content in its place; raises ConfigError, and changes nothing, where that cannot be done."""
        with _as_config_errors(self.path, "a folder that can be written to", "run the command as its owner or as root"):
            if self.target.read_bytes() != self.content:
                raise ConfigError(
                    [f"{self.path} was changed by somebody else meanwhile: nothing is changed; run the command again"]
                )
            _replace(self.target, content)
        self.content = content


@contextlib.contextmanager
def locked(path: Path, say_waiting: Callable[[], None]) -> Iterator[ConfigFile]:
    """Yield a configuration that no other such command changes meanwhile; raises ConfigError if it cannot be read.

    say_waiting: called where another command has to be waited for.
    """
    with contextlib.ExitStack() as stack:
        with _as_config_errors(path, "a readable configuration file", "correct the path, or who may read it (sudo)"):
            target = path.resolve(strict=True)
            # The folder, not the file: that is another one after each change.
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say_waiting()
                fcntl.flock(folder, fcntl.LOCK_EX)
            content = target.read_bytes()
        yield ConfigFile(path, target, content)


def write_secret(path: Path, key: str, owner: Owner | None) -> None:
    """Write a key to a new file that only its owner can read; raises ConfigError where that file exists already."""
    with _as_config_errors(path, "to write a new file", "remove it if nobody uses it, or correct who may write there"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, SECRET_MODE)
        try:
            with os.fdopen(descriptor, "w") as file:
                if owner is not None:
                    os.fchown(file.fileno(), owner.uid, owner.gid)
                file.write(f"{key}\n")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise


def owner_of_keys(private_key_file: Path | None) -> Owner | None:
    """Return who must own a key for the server to read it; None for whoever runs this, who cannot give files away.

    It is the owner of the server's private key, or without such a file the user of the service, where that exists.
    """
    if os.geteuid() != 0:
        return None
    if private_key_file is not None:
        with contextlib.suppress(OSError):
            found = private_key_file.stat()
            return Owner(found.st_uid, found.st_gid)
    return service_owner()


def service_owner() -> Owner | None:
    """Return the user of the service; None where it does not exist or where we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(SERVICE_USER)
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
            shutil.copystat(target, name)  # the mode, and what security modules keep beside it
            os.utime(name)
            os.fsync(file.fileno())
        os.rename(name, target)  # noqa: PTH104  # the name of a temporary file is text
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108
        raise
    sync_folder(target.parent)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is to be written; its content may be a key."""

    name: str
    content: str = field(repr=False)
    mode: int
    owner: Owner | None


def install(folder: Path, files: Sequence[NewFile], load: Callable[[Path], object], *, force: bool) -> list[Path]:
    """Write files, the last of which is a configuration that `load` accepts; return where they are.

    They are made in a folder of their own and moved when all is well, the configuration last. `folder` is made where it
    is missing. force: whether what exists may be overwritten. Raises ConfigError, and writes nothing, where that is not
    so or a file cannot be written.
    """
    paths = [folder / file.name for file in files]
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not force:
        raise ConfigError(
            [f"{path} exists: expected to write a new file; name another one (-o), or --force" for path in existing]
        )
    with (
        _made(folder),
        _as_config_errors(folder, "a folder that can be written to", "run the command as its owner or as root"),
        tempfile.TemporaryDirectory(prefix=".import.", dir=folder) as name,
    ):
        for file in files:
            staged = Path(name, file.name)
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(file.content)
                if file.owner is not None:
                    os.fchown(opened.fileno(), file.owner.uid, file.owner.gid)
                os.fchmod(opened.fileno(), file.mode)
                opened.flush()
                os.fsync(opened.fileno())
        try:
            load(Path(name, files[-1].name))
        except ConfigError as error:
            raise ConfigError([problem.replace(f"{name}/", f"{folder}/") for problem in error.problems]) from error
        for file, path in zip(files, paths, strict=True):
            Path(name, file.name).replace(path)
        sync_folder(folder)
    return paths


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Have a folder, which is the service's to read where that exists; it goes again if what is done meanwhile fails.

    Raises ConfigError where it cannot be made. The folder above it is not made: a mistyped path would look like one.
    """
    with contextlib.ExitStack() as undo:
        if not os.path.lexists(folder):
            owner = service_owner()
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
    """Make the names in a folder last beyond a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_config_errors(path: Path, expected: str, remedy: str) -> Iterator[None]:
    """Raise what the system says of a file as the operator's error."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise ConfigError([f"{path}: {reason}: expected {expected}; {remedy}"]) from error
