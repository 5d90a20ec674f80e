"""The mistakes found in one configuration file, as lines for its operator.

The rule: one printable line for each mistake, PROBLEMS_MAX at most, and no line shows a secret key, even if one is in
the wrong place.
"""

import base64
import json
import re
from collections.abc import Collection, Iterable
from typing import NoReturn

from oxidize.errors import ConfigError
from oxidize.text import counted, one_line

PROBLEMS_MAX = 100  # lines; more mistakes are counted, neither described nor printed
VALUE_CHARS_MAX = 60  # more of a value than this is not shown
INT_BITS_SHOWN_MAX = 64  # a longer whole number is described, not shown
DIFFERENT_CHARS_MIN = 5  # a run of fewer is in keys of tests and zeros; 16 characters of a random key have about 10
SECRET_CHARS_SHOWN_MAX = 15  # of a known secret in a row: 90 bits, and the rest of the key stays unknown

# A possible key in base64 or in hexadecimal, complete or without its last characters.
_KEY_LIKE = re.compile(r"(?![/.])[A-Za-z0-9+/]{40,44}={0,2}")
_KEY_WITHIN = re.compile(r"[A-Za-z0-9+/]{43}=|[0-9A-Fa-f]{64}")
_KEY_PART = re.compile(rf"[A-Za-z0-9+/]{{{SECRET_CHARS_SHOWN_MAX + 1},}}=*")
_SECRET_NAME = re.compile(r"key|secret|psk|private", re.IGNORECASE)
_PUBLIC_NAMES = {"public_key", "server_public_key"}
HIDDEN = "(not shown)"
MISSING = " is missing:"


class Report:
    """Collects problems and warnings of the file `source`; `secrets` are keys in base64 that no problem shows.

    excess: the number of problems beyond PROBLEMS_MAX.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.secrets: set[str] = set()
        self.excess = 0

    def has_room(self) -> bool:
        """Return whether a further problem is described; count it if it is not."""
        is_full = len(self.problems) >= PROBLEMS_MAX
        self.excess += is_full
        return not is_full

    def count(self) -> tuple[int, int]:
        """Return how much was reported, for `forget_from`."""
        return len(self.problems), self.excess

    def forget_from(self, counted: tuple[int, int]) -> None:
        """Forget the problems that were reported since `count` returned this."""
        del self.problems[counted[0] :]
        self.excess = counted[1]

    def add(self, text: str) -> None:
        """Add a problem, a text that names key and value."""
        if self.has_room():
            self.problems.append(one_line(f"{self.source}: {text}"))

    def wrong(self, key: str, value: object, expected: str, remedy: str, *, name: str | None = None) -> None:
        """Add a problem with a value; `name` is the last part of `key`, given if that part has dots in it."""
        if self.has_room():
            shown = show(key.rpartition(".")[2] if name is None else name, value)
            self.add(f"{_shown_key(key)} = {shown}: expected {expected}; {remedy}")

    def missing(self, key: str, expected: str, remedy: str) -> None:
        """Add a problem with a missing value."""
        self.add(f"{key}{MISSING} expected {expected}; {remedy}")

    def warn(self, key: str, text: str) -> None:
        """Add a warning."""
        self.warnings.append(one_line(f"{self.source}: {key}: {text}"))

    def fail(self, text: str) -> NoReturn:
        """Raise ConfigError for a file that cannot be parsed at all."""
        raise ConfigError(one_line(f"{self.source}: {text}"))

    def check(self, *, missing_last: bool = False) -> None:
        """Raise ConfigError with all problems, if there are any.

        missing_last: what is written comes first, for a key that is missing is often one of those, misspelt.
        """
        if not self.problems:
            return
        ordered = sorted(self.problems, key=lambda problem: MISSING in problem) if missing_last else self.problems
        # The private key may be in the place of a public key, and public keys are shown.
        problems = without_secrets(ordered, self.secrets)
        if self.excess:
            problems.append(f"{one_line(self.source)}: {counted(self.excess, 'more mistake')}: correct these first")
        raise ConfigError(*problems)


def without_secrets(lines: Iterable[str], secrets: Iterable[str]) -> list[str]:
    """Return lines without known secret keys, which are given in base64, and without any considerable part of one."""
    forms = {form for secret in secrets for form in _forms(secret)}
    joined = " ".join(forms)
    return [_KEY_PART.sub(lambda found: _without_secret(found[0], forms, joined), line) for line in lines]


def without_keys(text: str) -> str:
    """Return a text without anything that may be a key."""
    return HIDDEN if _KEY_LIKE.fullmatch(text) else _KEY_WITHIN.sub(HIDDEN, text)


def _forms(secret: str) -> tuple[str, str, str]:
    """Return the texts that a key is written as: base64, and hexadecimal in both cases."""
    digits = base64.b64decode(secret).hex()
    return secret.rstrip("="), digits, digits.upper()


def _without_secret(part: str, forms: Collection[str], joined: str) -> str:
    """Return a part of a line, HIDDEN if it is a secret or has more than SECRET_CHARS_SHOWN_MAX characters of one.

    These are counted in a row. A run of few different characters tells nothing of a key, and may be in any two of them.
    """
    length = SECRET_CHARS_SHOWN_MAX + 1
    runs = (part[start : start + length] for start in range(len(part) - length + 1))
    has_secret = any(len(set(run)) >= DIFFERENT_CHARS_MIN and run in joined for run in runs)
    return HIDDEN if has_secret or part.rstrip("=") in forms else part


def _shown_key(key: str) -> str:
    """Return a key in quotes if it needs them, without what may be a secret that was written as a key."""
    shown = without_keys(key)
    return shown if shown.isprintable() else f'"{one_line(shown)}"'


def show(name: str, value: object) -> str:
    """Return the value of a key as TOML would write it, on one line, shortened, and hidden if it may be a secret."""
    is_public = name in _PUBLIC_NAMES
    if not is_public and not name.endswith("_file") and _SECRET_NAME.search(name):
        return HIDDEN
    shown = _toml(value, is_public=is_public)
    return shown if len(shown) <= VALUE_CHARS_MAX else shown[: VALUE_CHARS_MAX - 1] + "…"


def _toml(value: object, *, is_public: bool) -> str:
    if isinstance(value, str):
        if not is_public and (_KEY_LIKE.fullmatch(value.strip()) or _KEY_WITHIN.search(value)):
            return HIDDEN
        return one_line(json.dumps(value, ensure_ascii=not value.isprintable()))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > INT_BITS_SHOWN_MAX:
        return f"(a number of {value.bit_length()} bits)"
    if isinstance(value, (list, tuple)):
        # Nested lists are cut off: they may be of any depth.
        items = ("[…]" if isinstance(item, (list, tuple)) else _toml(item, is_public=is_public) for item in value)
        return f"[{', '.join(items)}]"
    return "{…}" if isinstance(value, dict) else str(value)
