"""Key files: one key in base64, as `wg genkey` and `oxidize genkey` write it.

The rule: a key that others can read is no secret, so it is refused; and nothing of a key file's contents is ever part
of a message. Mode and contents are read through one descriptor, so that both are of the same file. Sources: wg(8);
systemd.exec(5), section "Credentials".
"""

import base64
import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from oxidize.config.report import Report
from oxidize.config.values import parse_key

CREDENTIAL_NAME = "private_key"
KEY_FILE_BYTES_MAX = 4096  # a key has 44 and a line's end

OTHERS_MASK = 0o077  # group and others
# systemd gives the service's user access to a credential by an ACL, whose mask shows as the group's permissions.
CREDENTIAL_OTHERS_MASK = 0o007


def private_key_path(table: str, given: str | None, report: Report, environ: Mapping[str, str]) -> Path | None:
    """Return where the private key of [table] is: the file that was given, or systemd's credential; reports."""
    if given is not None:
        return Path(given)
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if directory:
        return Path(directory) / CREDENTIAL_NAME
    report.missing(
        f"{table}.private_key_file",
        f"a file with the private key, or a systemd credential named {CREDENTIAL_NAME}",
        f'run "(umask 077; oxidize genkey > {table}.key)" and add private_key_file = "{table}.key"',
    )
    return None


def read_key(key: str, given: str, folder: Path, report: Report, environ: Mapping[str, str]) -> bytes | None:
    """Return the 32 bytes in the key file `given`, or report why there are none under the name `key`."""
    path = folder / given
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    is_credential = bool(directory) and path.is_relative_to(directory)
    try:
        # Not blocking: to open a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        report.wrong(
            key, given, f"a readable file, but: {error.strerror}", "correct the path, or who may read the file"
        )
        return None
    try:
        mode = os.fstat(descriptor).st_mode
        content = os.read(descriptor, KEY_FILE_BYTES_MAX + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        report.wrong(
            key, given, f"a readable file, but: {error.strerror}", "correct the path, or who may read the file"
        )
        return None
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(mode):
        report.wrong(key, given, "a regular file, which a successor can read again", "write the key to a file")
        return None
    if mode & (CREDENTIAL_OTHERS_MASK if is_credential else OTHERS_MASK):
        report.wrong(
            key,
            given,
            f"a file that only its owner can read, but its mode is {stat.S_IMODE(mode):04o}",
            f'run "chmod 600 {shlex.quote(str(path))}"',
        )
    decoded = parse_key(content.decode("latin-1").strip(" \t\r\n"))
    if decoded is not None:
        report.secrets.add(base64.b64encode(decoded).decode())
    else:
        command = "genpsk" if "preshared" in key else "genkey"
        report.wrong(
            key,
            given,
            "a file with one key: 44 characters of base64 for 32 bytes",
            f'write the key to it as "oxidize {command}" prints it',
        )
    return decoded
