"""Texts that several parts print: numbers with their nouns, names of releases, text from outside made printable."""

import re
from pathlib import PurePath

# Characters that a terminal executes, reorders or cannot encode: control characters (C0 without the newline, DEL, C1),
# direction marks and overrides, line separators, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CUT = "..."


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 peer" or "2 peers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def release_name(version: str, folder: str) -> str:
    """Return the name of the release in the folder that a process runs from; its version if it is not installed."""
    name = PurePath(folder).name
    return name if name.startswith(f"{version}-") else version


def printable(text: str, characters_max: int = 4096) -> str:
    r"""Return a text from outside without anything that a terminal executes, `characters_max` characters at most.

    Unprintable characters become `\xNN` or `\uNNNN`, newlines are kept, and a longer text ends in "...".
    """
    shown = _UNPRINTABLE.sub(_escaped, text[: characters_max + 1])
    return shown if len(shown) <= characters_max else shown[: characters_max - len(_CUT)] + _CUT


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
