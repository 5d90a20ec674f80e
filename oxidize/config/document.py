"""Parse TOML from others in a time that grows with its size, not faster.

The rule: a document that `tomllib` would need long for is refused before it is parsed: one beyond FILE_BYTES_MAX
(`source_file`), and one with a key of more than KEY_PARTS_MAX parts, for which the work grows with the square of the
parts. Depth of lists and tables is limited by the interpreter's stack. Source: TOML 1.0, sections "Keys", "String" and
"Comment".
"""

import re
import tomllib
from typing import Any

from oxidize.config.plain_tables import PlainTables

KEY_PARTS_MAX = 8  # of a dotted key or a table's name; this project's have two

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
