"""Read a file and parse TOML from others in a time that grows with its size, not faster.

The rule: a document that `tomllib` would need long for is refused before it is parsed: one beyond FILE_BYTES_MAX, and
one with a key of more than KEY_PARTS_MAX parts, for which the work grows with the square of the parts. Depth of lists
and tables is limited by the interpreter's stack. Source: TOML 1.0, sections "Keys", "String" and "Comment".
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from oxidize.config.paths import remedy_for
from oxidize.config.plain_tables import PlainTables
from oxidize.config.report import Report

FILE_BYTES_MAX = 64 << 20  # PEERS_MAX peers of 300 bytes are 30 MB
KEY_PARTS_MAX = 8  # of a dotted key or a table's name; this project's have two
UNREADABLE = "a readable configuration file"
NO_FILE = (
    "a configuration file; name another one with -c FILE, or make it: `make install` puts a server's there, `oxidize "
    "import` converts a wg-quick file, `oxidize peer add` on the server prints a client's, and examples/ has both"
)

# A string or a comment, of which an unfinished one extends to the end of its line or of the text: one pass finds all.
_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?:\.[^.=,\[\]{{}}\n]*+){{{KEY_PARTS_MAX}}}")
_PEERS = PlainTables("peer")


class TooComplexError(ValueError):
    """A document is refused before it is parsed; the text completes "the file has ..."."""


def read_file(path: Path, expected: str | None = None) -> bytes:
    """Return the contents of a file, cut off after FILE_BYTES_MAX + 1; raises ConfigError if it is unreadable.

    expected: completes "expected ..."; None for a configuration.
    """
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        if expected is None:
            remedy = remedy_for(error, "correct the path, or who may read it (sudo)")
            expected = NO_FILE if isinstance(error, FileNotFoundError) else f"{UNREADABLE}; {remedy}"
        Report(str(path)).fail(f"{reason}: expected {expected}")


def parse_toml(text: str) -> dict[str, Any]:
    """Return the parsed document.

    Raises TooComplexError, tomllib.TOMLDecodeError, and what tomllib passes on: ValueError and RecursionError.
    """
    return _PEERS.loads(text, _parse)


def _parse(text: str) -> dict[str, Any]:
    found = _LONG_KEY.search(_OPAQUE.sub("s", text))
    if found is not None:
        raise TooComplexError(f"a key of more than {KEY_PARTS_MAX} parts")
    return tomllib.loads(text)
