"""Tables of a TOML document that are written plainly, read at a tenth of the cost.

The rule: what is read here is what `tomllib` reads, or nothing is: any line of another form - an escape, a dotted key,
a value on several lines - leaves the whole document to `tomllib`, mistakes included. That takes 30 us for a table, most
of the time that a configuration with a hundred thousand peers needs. Source: TOML 1.0.
"""

import re
import tomllib
from collections.abc import Callable
from typing import Any

_STRING = r'"[^"\\\x00-\x08\x0a-\x1f\x7f]*+"'
_COMMENT = r"#[^\x00-\x08\x0a-\x1f\x7f]*+"
_ITEMS = rf"(?:{_STRING}(?:, ?{_STRING})*+)?"
_VALUE = rf"{_STRING}|\[{_ITEMS}\]|0|[1-9][0-9]{{0,17}}+"
_SPACE = r"[ \t]*+"
_LINE = rf"(?:(?:{_COMMENT}|[A-Za-z0-9_-]++{_SPACE}={_SPACE}(?:{_VALUE}){_SPACE}(?:{_COMMENT})?)?\n)"


class PlainTables:
    """Reads the tables [[name]] at the end of a document."""

    def __init__(self, name: str) -> None:
        self._name = name
        header = re.escape(f"[[{name}]]")
        self._first = re.compile(rf"^{header}$", re.MULTILINE)
        self._all = re.compile(rf"(?:{header}\n{_LINE}*+)*+")
        self._parts = re.compile(
            rf"^(?:({header})|([A-Za-z0-9_-]++){_SPACE}={_SPACE}(?:({_STRING})|\[({_ITEMS})\]|([0-9]++)))", re.MULTILINE
        )

    def loads(self, text: str, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Return the same as `parse`, and raise what it raises: it reads a document by `tomllib`."""
        first = self._first.search(text)
        tail = text[first.start() :] if first is not None else ""
        if first is None or self._all.fullmatch(tail if tail.endswith("\n") else f"{tail}\n") is None:
            return parse(text)
        tables = self._read(tail)
        try:
            document = parse(text[: first.start()])
        except tomllib.TOMLDecodeError:  # where the tables begin, something else may not have ended
            return parse(text)
        if tables is None or self._name in document:
            return parse(text)
        return {**document, self._name: tables}

    def _read(self, tail: str) -> list[dict[str, Any]] | None:
        """Return the tables, None where one names a key twice."""
        tables: list[dict[str, Any]] = []
        table: dict[str, Any] = {}
        keys = 0
        for header, key, string, items, number in self._parts.findall(tail):
            if header:
                table = {}
                tables.append(table)
                continue
            keys += 1
            if string:
                table[key] = string[1:-1]
            elif number:
                table[key] = int(number)
            else:
                table[key] = items.split('"')[1::2]
        return tables if sum(map(len, tables)) == keys else None
