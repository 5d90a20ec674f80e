"""The releases of an installation: `PREFIX/releases/NAME`, and `PREFIX/current` that leads to one of them.

The rule: a complete release is never changed, and its `release.json` is written last: a folder without it is an
interrupted build. `current` changes by rename(2), so that it always leads to a release. Source: rename(2).
"""

import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from oxidize.errors import DeployError

DESCRIPTION = "release.json"
INTERPRETER_SECS_MAX = 10.0  # for the interpreter of a release to name its version
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Release:
    """One release. built_unix: seconds since the epoch. revision: of git, as `git describe` names it."""

    folder: Path
    version: str
    built_unix: float
    revision: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def program(self) -> Path:
        """The path of its command line."""
        return self.folder / "bin/oxidize"


class Releases:
    """The releases below a prefix; every method reads the disk."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix.resolve()
        self._folder = self.prefix / "releases"
        self._current = self.prefix / "current"

    def all(self) -> list[Release]:
        """Return the complete releases, newest first."""
        found = [release for folder in self._folders() if (release := _read(folder)) is not None]
        return sorted(found, key=lambda release: (release.built_unix, release.name), reverse=True)

    def incomplete(self) -> list[Path]:
        """Return the folders of interrupted builds."""
        return [folder for folder in self._folders() if not (folder / DESCRIPTION).exists()]

    def find(self, name: str) -> Release:
        """Return the release of that name; raises DeployError if there is none."""
        for release in self.all():
            if release.name == name:
                return release
        names = ", ".join(release.name for release in self.all()) or "none"
        raise DeployError(f"release {name!r}: expected one of {names}; `oxidize releases` lists them")

    def of_process(self, folder: str) -> Release | None:
        """Return the release that a process was started from, by its folder; None if it is not one of these."""
        resolved = Path(folder).resolve()
        return next((release for release in self.all() if release.folder == resolved), None)

    def current(self) -> Release | None:
        """Return the release that `current` leads to; None if it leads to none."""
        try:
            folder = self._current.resolve(strict=True)
        except (OSError, RuntimeError):  # a loop of links is a RuntimeError
            return None
        return next((release for release in self.all() if release.folder == folder), None)

    def point_current_at(self, release: Release) -> None:
        """Make `current` lead to a release, atomically; raises DeployError."""
        beside = self.prefix / "current.new"
        try:
            beside.unlink(missing_ok=True)
            beside.symlink_to(release.folder.relative_to(self.prefix))
            beside.rename(self._current)
            _sync(self.prefix)
        except OSError as error:
            raise DeployError(
                f"{self._current}: {error.strerror}; expected a folder that this user may write to"
            ) from error

    # --- Tidying ---

    def remove(self, release: Release) -> None:
        """Remove a release. If this is interrupted, the rest is an incomplete release."""
        (release.folder / DESCRIPTION).unlink(missing_ok=True)
        remove_tree(release.folder)

    def remove_remains(self) -> list[str]:
        """Remove what interrupted builds and switches have left; return the names of the builds."""
        removed = []
        with contextlib.suppress(OSError):  # point_current_at reports what is wrong
            (self.prefix / "current.new").unlink()
        for folder in self.incomplete():
            if not is_in_use(folder):
                remove_tree(folder)
                removed.append(folder.name)
        return removed

    def _folders(self) -> list[Path]:
        try:
            return [entry for entry in self._folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
        except OSError:
            return []


def interpreter_problem(release: Release) -> str:
    """Return why the interpreter of a release does not run it, with the remedy, "" if it does.

    A release has the packages of the Python that it was built with; its interpreter is the machine's, which an upgrade
    of the distribution replaces.
    """
    built_with = sorted(entry.name for entry in release.folder.glob("lib/python*"))
    program = release.folder / "bin/python"
    code = "import sys; print('python%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [program, "-I", "-S", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INTERPRETER_SECS_MAX,
            check=False,
        )
        found = done.stdout.strip() or f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        found = getattr(error, "strerror", None) or "no answer"
    if not built_with or found in built_with:
        return ""
    expected = ", ".join(built_with)
    return f"{program}: {found}: expected {expected}, as it was built with; install it again with `make install`"


def is_in_use(folder: Path) -> bool:
    """Return whether a visible process was started from this folder: it may still load code from there."""
    return any(is_started_from(int(entry.name), folder) for entry in PROC.iterdir() if entry.name.isdigit())


def is_started_from(pid: int, folder: Path) -> bool:
    """Return whether a process was started from this folder's `bin`; False if it is gone or not visible."""
    return folder_of(pid) == str(folder)


def folder_of(pid: int) -> str:
    """Return the folder whose `bin` a process was started from, with links resolved; "" if it is not visible.

    The interpreter's path counts, because the first line of a script names the release. The script's own path may go
    through `current`, which may have changed since.
    """
    try:
        program = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return ""
    return str(Path(os.fsdecode(program)).parent.parent.resolve()) if program.startswith(b"/") else ""


def remove_tree(folder: Path) -> None:
    """Remove a folder and its contents; the next deployment retries what cannot be removed."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> Release | None:
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        return Release(folder, str(described["version"]), float(described["built_unix"]), str(described["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
