"""The text of a named tuple that has keys in it.

The rule: a value may be printed, in a log or a traceback, and no key with it.
"""

from typing import Any


def text_without(value: Any, *secret: str) -> str:
    """Return a named tuple as text, without the fields of these names."""
    shown = (f"{name}={field!r}" for name, field in value._asdict().items() if name not in secret)
    return f"{type(value).__name__}({', '.join(shown)})"
