"""What a new client gets: its configuration as text, as a QR code, as a picture, in a terminal or in a file.

The rule: what cannot be shown or written is found before the peer is added, and a file is new and only its owner's.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from oxidize.cli.lines import fail
from oxidize.provision import client_files
from oxidize.provision.client_files import ClientSetup

PICTURES = ("png", "svg")
FORMATS = ("script", "conf", "qr", *PICTURES)
PICTURE_REMEDY = "--format png -o FILE"
TOO_LONG_FOR_QR = "the configuration is too long for a QR code; use --format conf"
OUTPUT_MODE = 0o600  # the file contains a private key


@contextmanager
def written(path: Path | None, content: bytes) -> Iterator[None]:
    """Write the output to a new file, before the peer is added; remove the file if the block fails. None: no file."""
    if path is None:
        yield
        return
    with ExitStack() as undo:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, OUTPUT_MODE), "wb") as file:
                undo.callback(path.unlink, missing_ok=True)
                file.write(content)
        except OSError as error:
            fail(2, f"-o {path}: {error.strerror}: expected the name of a new file, in a folder that can be written to")
        yield
        undo.pop_all()


def render(setup: ClientSetup, form: str | None, *, is_terminal: bool) -> bytes:
    """Return the output; exit if only a QR code is wanted and there can be none."""
    conf = client_files.wg_quick(setup)
    if form == "script":
        return client_files.script(setup).encode()
    if form == "conf" or (form is None and not is_terminal):
        return conf.encode()
    from oxidize.provision import qr_code  # noqa: PLC0415  # slow, and rarely needed

    if form in PICTURES:
        return qr_code.picture(client_files.compact(conf), form) or fail(2, f"--format {form}: {TOO_LONG_FOR_QR}")
    code, why_not = _drawn(conf)
    if form == "qr":
        return code.encode() if code else fail(2, f"--format qr: {why_not}")
    name = client_files.wg_quick_file_name(setup.name)
    parts = [(f"For wg-quick, any WireGuard app, and `oxidize import --client`: {name}", conf)]
    if setup.private_key is not None:  # last: the end of the output is what a small terminal shows
        parts.append(("For a phone: scan this with the WireGuard app", code or f"(no QR code: {why_not})\n"))
    return "".join(f"\n{click.style(heading, bold=True)}\n{text}" for heading, text in parts).encode()


def _drawn(conf: str) -> tuple[str, str]:
    """Return a QR code of a client's file, or "" and the reason if this terminal cannot show it."""
    from oxidize.provision.qr_code import draw  # noqa: PLC0415  # slow, and rarely needed

    size, encoding = shutil.get_terminal_size(), sys.stdout.encoding or ""
    if "utf" not in encoding.lower():
        return "", f"expected a terminal of UTF-8, not {encoding}: set LC_ALL=C.UTF-8; or use {PICTURE_REMEDY}"
    lines = draw(client_files.compact(conf), size.columns, size.lines - 1)  # the last line is the shell's
    if lines is None:
        return "", f"it does not fit a terminal of {size.columns}x{size.lines}: enlarge it; or use {PICTURE_REMEDY}"
    return "".join(f"{line}\n" for line in lines), ""
