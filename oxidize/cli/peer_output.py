"""What a new client gets: its configuration as text, as a QR code, as a picture, in a terminal or in a file.

The rule: what cannot be shown or written is found before the peer is added, and a file is new and only its owner's.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
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
LINES_AFTER = 3  # below a code: that of the waiting, its end, and the shell's
BESIDE_COLUMNS_MIN = 24  # to the right of a code
GAP = "  "


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
    if form == "qr":
        code, why_not = _drawn(conf, [])
        return code.encode() if code else fail(2, f"--format qr: {why_not}")
    if setup.private_key is not None:
        code, why_not = _drawn(conf, _short_form(setup))
        if code:
            return f"\n{code}".encode()
    name = client_files.wg_quick_file_name(setup.name)
    heading = f"For wg-quick, any WireGuard app, and `oxidize import --client`: {name}"
    rest = f"\n(no QR code: {why_not})\n" if setup.private_key is not None else ""
    return f"\n{click.style(heading, bold=True)}\n{conf}{rest}".encode()


def _short_form(setup: ClientSetup) -> list[str]:
    """Return what a person wants to see of a client's configuration, without a key."""
    return [
        click.style(setup.name, bold=True),
        *map(str, setup.addresses),
        f"server {setup.endpoint}",
        f"reaches {', '.join(map(str, setup.allowed_ips))}",
        "",
        "Scan the code in the WireGuard app.",
        "For a file instead:",
        f"oxidize peer renew {setup.name} -o FILE",
    ]


def _drawn(conf: str, beside: Sequence[str]) -> tuple[str, str]:
    """Return a QR code of a client's file, or "" and the reason if this terminal cannot show it.

    beside: lines that stand above it where there is room, else to the right of it.
    """
    from oxidize.provision.qr_code import draw  # noqa: PLC0415  # slow, and rarely needed

    size, encoding = shutil.get_terminal_size(), sys.stdout.encoding or ""
    if "utf" not in encoding.lower():
        return "", f"expected a terminal of UTF-8, not {encoding}: set LC_ALL=C.UTF-8; or use {PICTURE_REMEDY}"
    text = client_files.compact(conf)
    above = [part for line in beside for part in wrapped(line, size.columns)]
    room = size.lines - (LINES_AFTER if beside else 1)  # the last line is the shell's
    if code := draw(text, size.columns, room - len(above) - 1):
        return "".join(f"{line}\n" for line in [*above, *([""] if above else []), *code]), ""
    for lines in (room, size.lines - 1):
        if code := draw(text, size.columns - (BESIDE_COLUMNS_MIN if beside else 0), lines):
            width = click.unstyle(code[0])
            right = [part for line in beside for part in wrapped(line, size.columns - len(width) - len(GAP))]
            return "".join(f"{each}\n" for each in _joined(code, right)), ""
    return "", f"it does not fit a terminal of {size.columns}x{size.lines}: enlarge it; or use {PICTURE_REMEDY}"


def _joined(code: list[str], right: list[str]) -> list[str]:
    """Return the lines of a code with other lines to the right of it; those that it has no line for are left out."""
    return [
        f"{line}{GAP}{text}" if text else line for line, text in zip_longest(code, right[: len(code)], fillvalue="")
    ]


def wrapped(line: str, columns: int) -> list[str]:
    """Return a line in parts of at most so many columns, without a word cut where that can be."""
    if len(click.unstyle(line)) <= columns:
        return [line]
    return textwrap.wrap(click.unstyle(line), columns, subsequent_indent=" ", break_on_hyphens=False)
