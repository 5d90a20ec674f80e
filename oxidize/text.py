"""Texts that several parts print: numbers with their nouns, names of releases, text from outside made printable.

Rule: a character that a terminal may execute, reorder or hide reaches it only as its escaped form. `str.isprintable`
tells which: it is false for control characters (C0, DEL, C1), format characters such as direction marks and zero-width
ones, separators of lines and paragraphs, spaces other than " ", surrogates, and code points without a meaning (Unicode
categories Cc, Cf, Zl, Zp, Zs, Cs, Co, Cn). Commands print by `printable`, logs and errors of one line by `one_line`.
"""

import re
import sys
from pathlib import PurePath

import oxidize

_CUT = "..."
_WORD = re.compile(r"(\s*)((?:`[^`]*`|[^\s`]|`)+)")  # what lies between backquotes, a command, is one word
_JSON_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 peer" or "2 peers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def own_release() -> str:
    """Return the name of the release that this process runs, as `release_name` gives it."""
    return release_name(oxidize.__version__, sys.prefix)


def release_name(version: str, folder: str) -> str:
    """Return the name of the release in the folder that a process runs from; its version if it is not installed."""
    name = PurePath(folder).name
    return name if name.startswith(f"{version}-") else version


def printable(text: str, characters_max: int | None = 4096) -> str:
    r"""Return a text without anything that a terminal executes, `characters_max` characters at most (None: any number).

    Unprintable characters become `\xNN`, `\uNNNN` or `\UNNNNNNNN`, newlines are kept, and a longer text ends in "...".
    """
    shown = text if characters_max is None else text[: characters_max + 1]
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() or each == "\n" else _escaped(each) for each in shown)
    if characters_max is None or len(shown) <= characters_max:
        return shown
    return shown[: characters_max - len(_CUT)] + _CUT


def one_line(text: str) -> str:
    r"""Return a text on one line, its unprintable characters escaped as JSON and TOML write them: `\n`, `\u001b`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _JSON_ESCAPES.get(each) or _escaped(each, "u") for each in text)


def _escaped(character: str, shortest: str = "x") -> str:
    code = ord(character)
    if code < 0x100 and shortest == "x":
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def wrapped(text: str, width: int) -> str:
    """Return a text whose lines break between words where they are wider than `width`; a wider word is kept whole."""
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    done = ""
    column = 0
    for space, word in _WORD.findall(line):
        if column and column + len(space) + len(word) > width:
            done += f"\n{word}"
            column = len(word)
        else:
            done += space + word
            column += len(space) + len(word)
    return done
