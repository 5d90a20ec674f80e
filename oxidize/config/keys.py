"""The keys of a configuration that name a key file, as values of its tables: the key in that file.

The rule: without a file the private key is systemd's credential, and a pre-shared key is none. Source: systemd.exec(5),
section "Credentials".
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationInfo

from oxidize.config import values
from oxidize.config.key_files import CREDENTIAL_NAME, NO_PRESHARED_KEY, read_key
from oxidize.config.source_file import KeyFile
from oxidize.config.validation import table_of


def public_key(private: bytes) -> bytes:
    """Return the public key of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def private_key(value: object, info: ValidationInfo) -> bytes:
    """Return the key in the file `value`, or in systemd's credential if that is None; b"" if a problem is reported."""
    checked = table_of(info)
    given = None if value is None else values.file_path(value)
    directory = checked.source.environ.get("CREDENTIALS_DIRECTORY", "")
    if given is None and directory:
        given = str(Path(directory) / CREDENTIAL_NAME)
    if given is not None:
        return read_key(KeyFile(checked.prefix, "private_key_file", given), checked.source)
    if checked.source.reads_keys:
        checked.source.report.missing(
            f"{checked.prefix}.private_key_file",
            f"a file with the private key, or a systemd credential named {CREDENTIAL_NAME}",
            f'run "(umask 077; oxidize genkey > {checked.prefix}.key)" and '
            f'add private_key_file = "{checked.prefix}.key"',
        )
    return b""


def preshared_key(value: object, info: ValidationInfo) -> bytes:
    """Return the key in the file `value`, or zeros if that is None or a problem is reported."""
    if value is None:
        return NO_PRESHARED_KEY
    checked = table_of(info)
    file = KeyFile(checked.prefix, "preshared_key_file", values.file_path(value))
    return read_key(file, checked.source) or NO_PRESHARED_KEY
