"""Parse TOML from others in a time that grows with its size, not faster.

The rule: a document that `tomli` would need long for is refused before it is parsed: one beyond FILE_BYTES_MAX
(`source_file`), and one with a key of more than KEY_PARTS_MAX parts, for which the work grows with the square of the
parts. tomli itself limits the depth of lists and tables. Source: TOML 1.0, sections "Keys", "String" and
"Comment".
"""

import re
from typing import Any

import tomli

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


class TooComplexError(ValueError):
    """A document is refused before it is parsed; the text completes "the file has ..."."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return the parsed document; a byte order mark is left out, as TOML 1.1 allows.

    Raises TooComplexError, tomli.TOMLDecodeError, and what tomli passes on: ValueError and RecursionError.
    """
    text = text.removeprefix("\ufeff")
    found = _LONG_KEY.search(_OPAQUE.sub("s", text))
    if found is not None:
        raise TooComplexError(f"a key of more than {KEY_PARTS_MAX} parts")
    return tomli.loads(text)
