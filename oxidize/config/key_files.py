"""Key files: one key in base64, as `wg genkey` and `oxidize genkey` write it.

The rule: a key that others can read or replace is not a secret, so it is refused; and nothing of a key file's contents
is ever part of a message. Owner, mode and contents are read through one descriptor, so that all are of the same file.
Sources: wg(8); sshd(8), StrictModes, for the owner; systemd.exec(5), section "Credentials".
"""

import contextlib
import os
import pwd
import shlex
import stat
from pathlib import Path

from oxidize.config import values
from oxidize.config.paths import SERVICE_USERS, remedy_for
from oxidize.config.source_file import KeyFile, SourceFile
from oxidize.protocol.constants import KEY_SIZE

CREDENTIAL_NAME = "private_key"
KEY_FILE_BYTES_MAX = 4096  # a key has 44 and a newline
NO_PRESHARED_KEY = bytes(KEY_SIZE)  # paper, section 5.2

OTHERS_MASK = 0o077  # group and others
# systemd gives the service's user access to a credential by an ACL, whose mask shows as the group's permissions.
CREDENTIAL_OTHERS_MASK = 0o007


def read_key(file: KeyFile, source: SourceFile) -> bytes:
    """Return the 32 bytes in a key file; b"" if a problem is reported, or if no key file is opened."""
    if not source.reads_keys:
        return b""
    name, given = file.name, file.given
    key = f"{file.table}.{name}"
    path = source.folder / given
    directory = source.environ.get("CREDENTIALS_DIRECTORY", "")
    is_credential = bool(directory) and path.is_relative_to(directory)
    try:
        found, content = _read(path)
    except OSError as error:
        expected = f"a readable file, but: {error.strerror}"
        remedy = remedy_for(error, "correct the path, or who may read the file")
        source.report.wrong(key, given, expected, remedy)
        return b""
    mode = found.st_mode
    if not stat.S_ISREG(mode):
        expected = "a regular file, which a successor can read again"
        source.report.wrong(key, given, expected, "write the key to a file")
        return b""
    if mode & (CREDENTIAL_OTHERS_MASK if is_credential else OTHERS_MASK):
        expected = f"a file that only its owner can read, but its mode is {stat.S_IMODE(mode):04o}"
        source.report.wrong(key, given, expected, f'run "chmod 600 {shlex.quote(str(path))}"')
    if found.st_uid not in {0, os.geteuid()} and not _is_for_others(found, Path(source.report.source)):
        trusted = " or ".join(dict.fromkeys(["root", _user(os.geteuid())]))
        expected = f"a file of {trusted}, but it belongs to {_user(found.st_uid)}, who can replace the key"
        command = f"chown {_user(os.geteuid())} {shlex.quote(str(path))}"
        source.report.wrong(key, given, expected, f'run "{command}" if the key in it is the right one')
    decoded = values.parse_key(content.decode("latin-1").strip(" \t\r\n"))
    if decoded is None:
        command = "genpsk" if name == "preshared_key_file" else "genkey"
        expected = "a file with one key: 44 characters of base64 for 32 bytes"
        source.report.wrong(key, given, expected, f'write the key to it as "oxidize {command}" prints it')
        return b""
    if decoded == bytes(KEY_SIZE):
        expected = "a key, but this one is all zeros, which everybody knows and wg takes for none"
        remedy = "remove the line for none" if name == "preshared_key_file" else 'run "oxidize genkey" for a new one'
        source.report.wrong(key, given, expected, remedy)
        return b""
    source.report.secrets.add(values.format_key(decoded))
    source.key_files.append(file)
    return decoded


def _is_for_others(key: os.stat_result, config_file: Path) -> bool:
    """Return whether root reads a key for others: of a service, or of the owner or the group of the configuration."""
    if os.geteuid() != 0:
        return False
    owners, group = set(), 0
    for name in SERVICE_USERS.values():
        with contextlib.suppress(KeyError):
            owners.add(pwd.getpwnam(name).pw_uid)
    with contextlib.suppress(OSError):
        found = config_file.stat()
        owners.add(found.st_uid)
        group = found.st_gid
    return key.st_uid in owners or (key.st_gid == group and group != 0)


def _user(uid: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read(path: Path) -> tuple[os.stat_result, bytes]:
    """Return what a file is and, if it is a regular one, its contents; raises OSError."""
    # Not blocking: opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        return found, os.read(descriptor, KEY_FILE_BYTES_MAX + 1) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(descriptor)
