"""Add a table [[peer]] to the text of a server's configuration, or remove one.

The rule: no byte changes outside of the one table, and the new text means the old one with that table added or removed:
both are parsed and compared before the new one is returned. A value that could be more than itself in a file is not
written, whichever way it came here. Source: TOML 1.0.

This works on lines, not on a tree of the document: libraries that keep comments attach those above a table to the table
before it, so that removing a peer would remove the next one's comment.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import tomli

from oxidize.config.document import parse_toml
from oxidize.config.report import without_keys
from oxidize.errors import ConfigError, StateError

_TRIVIA = re.compile(r"\s*(#.*)?")
_COMMENT = re.compile(r"\s*#")
_HEADER = re.compile(r"\ufeff?\s*\[")  # after a byte order mark too
# Of what the configuration accepts: names, keys in base64, addresses, endpoints, names of files. No quote, no "#", no
# "$" and no control character: in no file of TOML, of wg-quick or of a shell do these end a value.
_WRITTEN = re.compile(r"[A-Za-z0-9_.@:/%+=\[\]-]*")
_WRITTEN_NAME = re.compile(r"[\w.@-]*")  # and the name of a file that has it in its own
_NAME_KEYS = {"name", "private_key_file", "preshared_key_file"}


def written(value: str) -> str:
    """Return a value for a generated file; raises StateError for one that could be more than a value there."""
    if not _WRITTEN.fullmatch(value):
        raise StateError(f"a value that is not written to a file: {value[:80]!a}: expected it checked; this is a bug")
    return value


def written_name(value: str) -> str:
    """Return the name of a peer, or of its key file, for a generated file; raises StateError as `written` does."""
    return value if _WRITTEN_NAME.fullmatch(value) and value.isprintable() else written(value)


def table_lines(header: str, values: Mapping[str, object]) -> list[str]:
    """Return a table as lines of TOML, without the keys whose value is None."""
    return [header, *(f"{key} = {_toml(key, value)}" for key, value in values.items() if value is not None)]


def _toml(key: str, value: object) -> str:
    if isinstance(value, date):  # or a datetime: as ISO 8601 has them
        return value.isoformat()
    return json.dumps(_checked_value(key, value), ensure_ascii=False)  # JSON and TOML write such values alike


def _checked_value(key: str, value: object) -> object:
    if isinstance(value, list):
        return [_checked_value(key, each) for each in value]
    if not isinstance(value, str):
        return value
    return written_name(value) if key in _NAME_KEYS else written(value)


def add_peer(text: str, peer: Mapping[str, object]) -> str:
    """Return the text with a table [[peer]] at its end; raises ConfigError if the peers are not written as tables.

    peer: its values by their keys; those that are None are left out.
    """
    lines = table_lines("[[peer]]", peer)
    added = "\n".join([*lines, ""])
    if text:
        added = ("\n" if text.endswith("\n") else "\n\n") + added
    if "\r\n" in text:
        added = added.replace("\n", "\r\n")
    before = parse_toml(text)
    (table,) = parse_toml("\n".join(lines))["peer"]
    expected = {**before, "peer": [*_peers(before), table]}
    return _checked(text + added, expected)


@dataclass(frozen=True, slots=True)
class Removed:
    """A text without one peer, the values of the removed table, and whether a comment was removed with it."""

    text: str
    table: dict[str, Any]
    with_comment: bool


def remove_peer(text: str, name: str) -> Removed:
    """Return the text without the table of that name and the comment right above it.

    Raises ConfigError, with the name that was probably meant, if there is no such table.
    """
    before = parse_toml(text)
    lines, header, end, table = _find(text, before, name)
    first = header
    while first and _COMMENT.match(lines[first - 1]):
        first -= 1
    head, tail = lines[:first], lines[end:]
    if not head or not head[-1].strip():
        while tail and not tail[0].strip():
            del tail[0]
    if not tail:
        while head and not head[-1].strip():
            del head[-1]
    peers = [peer for peer in _peers(before) if peer.get("name") != name]
    expected = {key: value for key, value in before.items() if key != "peer"} | ({"peer": peers} if peers else {})
    return Removed(_checked("".join(head + tail), expected), table, first < header)


def change_peer(text: str, name: str, changes: Mapping[str, object]) -> str:
    """Return the text with other values of keys in the table of that name; None removes a key.

    A key keeps its line and the comment behind it, a new one stands below the others. Raises ConfigError, with the name
    that was probably meant, if there is no such table, and where a key to be changed is written over several lines.
    """
    before = parse_toml(text)
    lines, header, end, table = _find(text, before, name)
    block = lines[header:end]
    newline = "\r\n" if "\r\n" in text else "\n"
    if not block[-1].endswith("\n"):
        block[-1] += newline
    for key, value in changes.items():
        table = {each: given for each, given in {**table, key: value}.items() if given is not None}
        line = "" if value is None else table_lines("", {key: value})[1]
        block = _with_line(block, key, line, newline, table)
    peers = [table if peer.get("name") == name else peer for peer in _peers(before)]
    return _checked("".join([*lines[:header], *block, *lines[end:]]), {**before, "peer": peers})


def _with_line(block: list[str], key: str, line: str, newline: str, expected: dict[str, Any]) -> list[str]:
    """Return the lines of a peer's table with another line for a key, "" for none; raises ConfigError if it has more.

    expected: the values of the table then, by which a line is told from one within a value of several lines.
    """
    for number, old in enumerate(block):
        if _keys_of(old) == [key]:
            kept = f"{line} {_comment_behind(old)}".strip()
            changed = block[:number] + ([kept + newline] if kept else []) + block[number + 1 :]
            if _values_of(changed) == expected:
                return changed
    changed = block + ([line + newline] if line else [])
    if _values_of(changed) != expected:
        raise ConfigError(f"peer.{expected['name']}.{key}: expected it on one line of its own; write it so")
    return changed


def _values_of(block: list[str]) -> object:
    try:
        return parse_toml("".join(block))["peer"][0]
    except tomli.TOMLDecodeError:  # the key is there twice
        return None


def _find(text: str, document: dict[str, Any], name: str) -> tuple[list[str], int, int, dict[str, Any]]:
    """Return the lines of a text, the first line of a peer's table, the line after its last key, and its values.

    Raises ConfigError as `remove_peer` says.
    """
    names = [str(peer.get("name")) for peer in _peers(document)]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else "`oxidize peer list` shows them"
        raise ConfigError(f"{without_keys(name)}: expected the name of a peer; {hint}")
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    header, end, table = next(block for block in list(_peer_blocks(lines)) if block[2].get("name") == name)
    return lines, header, end, table


def _keys_of(line: str) -> list[str]:
    """Return the keys that a line sets, none if it is no whole line."""
    try:
        return list(parse_toml(line))
    except (ValueError, RecursionError):  # a part of a value of several lines
        return []


def _comment_behind(line: str) -> str:
    """Return the comment behind the value of a line that sets a key, "" without one."""
    for match in re.finditer("#", line):
        if _keys_of(line[: match.start()]):  # else it is within the value
            return line[match.start() :].strip()
    return ""


def _peer_blocks(lines: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield every table of a document: its first line, the line after its last key, and its values if it is a peer.

    Raises ConfigError if peers are not written as tables.
    """
    start = 0
    for number in range(len(lines) + 1):
        if number < len(lines) and (number == start or not _HEADER.match(lines[number])):
            continue
        try:
            found = parse_toml("".join(lines[start:number]))
        except tomli.TOMLDecodeError:
            continue  # the bracket is within a string or a list of several lines
        end = number
        while end > start and _TRIVIA.fullmatch(lines[end - 1].rstrip("\r\n")):
            end -= 1
        peers = found.get("peer")
        if peers and not (_HEADER.match(lines[start]) and isinstance(peers, list) and len(peers) == 1):
            raise ConfigError(_NOT_TABLES)
        yield start, end, peers[0] if peers else {}
        start = number


_NOT_TABLES = "peer is one list here: expected a table [[peer]] for each peer; write it so, and run the command again"


def _peers(document: dict[str, Any]) -> list[dict[str, Any]]:
    peers: list[dict[str, Any]] = document.get("peer", [])
    return peers


def _checked(text: str, expected: dict[str, Any]) -> str:
    try:
        found = parse_toml(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(_NOT_TABLES) from error
    if found != expected:
        raise StateError("the edited configuration differs from what was meant; nothing is changed; this is a bug")
    return text
