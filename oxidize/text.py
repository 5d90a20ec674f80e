"""Words that more than one part prints: numbers with their nouns, what a release is called, what others say."""

import re
from pathlib import PurePath

# What a terminal obeys, or shows in another order than it stands, or cannot encode: control characters (C0 without the
# newline, DEL, C1), marks and overrides of direction, separators of lines, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CUT = "..."


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 peer" or "2 peers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def release_name(version: str, folder: str) -> str:
    """Return what an installed release is called, by the folder that a process runs from; else its version alone."""
    name = PurePath(folder).name
    return name if name.startswith(f"{version}-") else version


def printable(text: str, characters_max: int = 4096) -> str:
    r"""Return a text of others as one that commands no terminal, of `characters_max` characters at most.

    What is unprintable becomes `\xNN` or `\uNNNN`, a newline stays, and a longer text ends in "...".
    """
    shown = _UNPRINTABLE.sub(_escaped, text[: characters_max + 1])
    return shown if len(shown) <= characters_max else shown[: characters_max - len(_CUT)] + _CUT


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
