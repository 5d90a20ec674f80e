"""The release in a Debian package, unpacked among the releases of an installation, on a machine of any distribution.

The rule: nothing outside the release's own folder is written, whatever the package names, and nothing in it is run; the
folder is a release only once all of it is on the disk. Sources: deb(5), ar(5), tar(5).
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from oxidize.deploy.releases import DESCRIPTION, Release, Releases, remove_tree
from oxidize.errors import DeployError

BYTES_MAX = 1 << 30  # a release is 50 MB
MEMBERS_MAX = 100_000  # a release has 3,000 files
RECORD_BYTES_MAX = 1 << 16
SHIPPED = ("usr", "lib", "oxidize")  # where debian/build.sh puts the release
EXPECTED = "expected a package that `make deb` has built"

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_DATA = re.compile(rb"data\.tar(\.[a-z0-9]+)?/?")
_NAME = re.compile(r"[0-9][A-Za-z0-9.+_-]*")
# The links of an environment (venv): its interpreter is the machine's, other names are beside the link.
_LINKED = re.compile(r"/usr/(local/)?bin/python3(\.[0-9]+)?|[A-Za-z0-9][A-Za-z0-9.+_-]*")


def unpack(file: Path, releases: Releases) -> Release:
    """Unpack the release of a package, unless it is there already; raises DeployError. The caller holds the lock."""
    try:
        with file.open("rb") as opened:
            return _Unpacking(file, releases).run(_data_of(opened, file))
    except (OSError, EOFError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DeployError(f"{getattr(error, 'filename', None) or file}: {reason}: {EXPECTED}") from error


class _Unpacking:
    """One run. Members come in the order of their paths, so what begins a folder's comes before its contents."""

    def __init__(self, file: Path, releases: Releases) -> None:
        self._file = file
        self._releases = releases
        self._name = ""
        self._record = b""
        self._bytes = 0

    def run(self, data: "_Part") -> Release:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], data), mode="r|*") as archive:
                for member, place in self._members(archive):
                    if not self._name:
                        self._begin(place.parts[0])
                    elif place.parts[0] != self._name:
                        raise DeployError(f"{self._file}: two releases, {self._name} and {place.parts[0]}: {EXPECTED}")
                    if self._is_there():
                        break
                    self._put(archive, member, place)
            return self._end()
        except BaseException:  # cleans up, and raises it again
            if self._name and not self._is_there():
                remove_tree(self._folder)
            raise

    def _members(self, archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
        """Yield the members of the release, with their paths below the folder of releases."""
        for number, member in enumerate(archive):
            self._bytes += member.size
            if number >= MEMBERS_MAX or self._bytes > BYTES_MAX:
                raise DeployError(f"{self._file}: more than {MEMBERS_MAX} files or {BYTES_MAX} bytes: {EXPECTED}")
            parts = PurePosixPath(member.name).parts
            if parts[: len(SHIPPED)] == SHIPPED and len(parts) > len(SHIPPED):
                yield member, PurePosixPath(*parts[len(SHIPPED) :])

    def _begin(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise DeployError(f"{self._file}: {name!r}: expected the name of a release; {EXPECTED}")
        self._name = name
        if not self._is_there():
            remove_tree(self._folder)  # what an interrupted run has left
            self._folder.mkdir(parents=True, mode=0o755)

    @property
    def _folder(self) -> Path:
        return self._releases.prefix / "releases" / self._name

    def _is_there(self) -> bool:
        return (self._folder / DESCRIPTION).exists()

    def _put(self, archive: tarfile.TarFile, member: tarfile.TarInfo, place: PurePosixPath) -> None:
        if ".." in place.parts or (self._folder.parent / place.parent).resolve() != self._folder.parent / place.parent:
            raise DeployError(f"{self._file}: {member.name}: expected a path below the release; {EXPECTED}")
        path = self._folder.parent / place
        if member.isdir():
            path.mkdir(exist_ok=True, mode=0o755)
        elif member.issym() and _LINKED.fullmatch(member.linkname):
            path.symlink_to(member.linkname)
        elif member.isreg() and (source := archive.extractfile(member)) is not None:
            if place == PurePosixPath(self._name, DESCRIPTION):
                self._record = source.read(RECORD_BYTES_MAX)
            else:
                self._copy(source, path, 0o755 if member.mode & 0o100 else 0o644)
        else:
            raise DeployError(f"{self._file}: {member.name}: expected a file, a folder or a link within; {EXPECTED}")

    def _copy(self, source: IO[bytes], path: Path, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, mode), "wb") as target:
            while part := source.read(1 << 20):
                target.write(part)
            os.fchmod(target.fileno(), mode)  # whatever the umask is

    def _end(self) -> Release:
        if not self._name:
            raise DeployError(f"{self._file}: no release in it: {EXPECTED}")
        if not self._is_there():
            program = self._folder / "bin/oxidize"
            if str(self._folder) not in program.read_text(errors="replace"):
                raise DeployError(f"{self._file}: made for another prefix than {self._releases.prefix}: {EXPECTED}")
            os.sync()  # the whole release, before its record exists
            beside = self._folder / f"{DESCRIPTION}.new"
            beside.write_bytes(self._record)
            beside.rename(self._folder / DESCRIPTION)
        found = self._releases.of_process(str(self._folder))
        if found is None:
            (self._folder / DESCRIPTION).unlink()
            raise DeployError(f"{self._file}: {DESCRIPTION} of {self._name} cannot be read: {EXPECTED}")
        return found


class _Part:
    """A part of a file, which can be read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        """Return the next bytes, `size` at most; none at the end of the part."""
        found = self._file.read(min(size, self._left))
        self._left -= len(found)
        return found


def _data_of(file: IO[bytes], path: Path) -> _Part:
    """Return the archive of a package's files."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise DeployError(f"{path}: no Debian package: {EXPECTED}")
    while len(header := file.read(_HEADER_BYTES)) == _HEADER_BYTES:
        name, size = header[:16].strip(), header[48:58].strip()
        if not size.isdigit():
            break
        if _DATA.fullmatch(name):
            return _Part(file, int(size))
        file.seek(int(size) + int(size) % 2, os.SEEK_CUR)  # members begin at even positions
    raise DeployError(f"{path}: a damaged package: {EXPECTED}")
