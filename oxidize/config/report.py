"""The mistakes found in one configuration file, as lines for its operator.

The rule: one line for each mistake, and no line shows a secret key, even if one is in the wrong place.
"""

import json
import re
from dataclasses import dataclass, field
from typing import NoReturn

from oxidize.errors import ConfigError

VALUE_CHARS_MAX = 60  # more of a value than this is not shown
INT_BITS_SHOWN_MAX = 64  # a longer whole number is described, not shown

# A possible key in base64 or in hexadecimal, complete or without its last characters.
_KEY_LIKE = re.compile(r"(?![/.])[A-Za-z0-9+/]{40,44}={0,2}")
_KEY_WITHIN = re.compile(r"[A-Za-z0-9+/]{43}=|[0-9A-Fa-f]{64}")
_SECRET_NAME = re.compile(r"key|secret|psk|private", re.IGNORECASE)
_PUBLIC_NAMES = {"public_key", "server_public_key"}
HIDDEN = "(not shown)"


@dataclass
class Report:
    """Collects problems and warnings of the file `source`; `secrets` are keys in base64 that no problem shows."""

    source: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set, repr=False)

    def wrong(self, key: str, value: object, expected: str, remedy: str, *, name: str | None = None) -> None:
        """Add a problem with a value; `name` is the last part of `key`, given if that part has dots in it."""
        shown = show(key.rpartition(".")[2] if name is None else name, value)
        self.problems.append(f"{self.source}: {_printable(key)} = {shown}: expected {expected}; {remedy}")

    def missing(self, key: str, expected: str, remedy: str) -> None:
        """Add a problem with a missing value."""
        self.problems.append(f"{self.source}: {key} is missing: expected {expected}; {remedy}")

    def warn(self, key: str, text: str) -> None:
        """Add a warning."""
        self.warnings.append(f"{self.source}: {key}: {text}")

    def fail(self, text: str) -> NoReturn:
        """Raise ConfigError for a file that cannot be parsed at all."""
        raise ConfigError(f"{self.source}: {text}")

    def check(self) -> None:
        """Raise ConfigError with all problems, if there are any."""
        if self.problems:
            raise ConfigError(*(_KEY_WITHIN.sub(self._hide_secret, problem) for problem in self.problems))

    def _hide_secret(self, key: re.Match[str]) -> str:
        # The private key may be in the place of a public key, and public keys are shown.
        return HIDDEN if key[0] in self.secrets else key[0]


def _printable(key: str) -> str:
    """Return a key on one line, escaped if needed."""
    return key if key.isprintable() else json.dumps(key)


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
        return json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > INT_BITS_SHOWN_MAX:
        return f"(a number of {value.bit_length()} bits)"
    if isinstance(value, (list, tuple)):
        # Nested lists are cut off: they may be of any depth.
        items = ("[…]" if isinstance(item, (list, tuple)) else _toml(item, is_public=is_public) for item in value)
        return f"[{', '.join(items)}]"
    return "{…}" if isinstance(value, dict) else str(value)
