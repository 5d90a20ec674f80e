"""The file that a configuration is in: its contents, and what the values in it refer to.

The rule: no more of a file is read than FILE_BYTES_MAX, and a file of wg-quick is told from one with mistakes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from oxidize.config.paths import remedy_for
from oxidize.config.report import Report

FILE_BYTES_MAX = 64 << 20  # PEERS_MAX peers of 300 bytes are 30 MB
_HEAD_BYTES = 65_536  # the first section of a wg-quick file begins in them
_WG_QUICK = re.compile(rb"(?im)^(?:\xef\xbb\xbf)?[ \t]*\[[ \t]*interface[ \t]*\][ \t]*(?:#.*)?\r?$")
UNREADABLE = "a readable configuration file"
NO_FILE = (
    "a configuration file; name another one with -c FILE, or make it: `oxidize init` makes a server's, `oxidize "
    "import` converts a wg-quick file, `oxidize peer add` on the server prints a client's, and examples/ has both"
)


class KeyFile(NamedTuple):
    """A key file that a configuration names: the table, the key in it, and the path as it is written there."""

    table: str
    name: str
    given: str


class SourceFile:
    """The file that tables are read from, and what its values refer to.

    folder: what relative paths start from. environ: the process's environment. reads_keys: whether key files are
    opened; without it keys are empty. key_files: those that a key was read from, in this order.
    """

    def __init__(self, report: Report, folder: Path, environ: Mapping[str, str], reads_keys: bool = True) -> None:
        self.report = report
        self.folder = folder
        self.environ = environ
        self.reads_keys = reads_keys
        self.key_files: list[KeyFile] = []


def read_file(path: Path, expected: str | None = None) -> bytes:
    """Return the contents of a file, cut off after FILE_BYTES_MAX + 1; raises ConfigError if it is unreadable.

    expected: completes "expected ..."; None for a configuration, which a wg-quick file is not.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        if expected is None:
            remedy = remedy_for(error, "correct the path, or who may read it (sudo)")
            expected = NO_FILE if isinstance(error, FileNotFoundError) else f"{UNREADABLE}; {remedy}"
        Report(str(path)).fail(f"{reason}: expected {expected}")
    if expected is None and _WG_QUICK.search(content, 0, _HEAD_BYTES):
        what = "this is a wg-quick file: expected a configuration"
        Report(str(path)).fail(f"{what}; `oxidize import {path}` converts it, with --client for a client's")
    return content
