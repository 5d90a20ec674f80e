"""The takeover socket and the interface that a configuration names, even if the configuration is broken.

The rule: an operator whose configuration is broken must still reach the process that runs with the one before, and what
that process set must still be removed. So only these keys are read, no key file is opened, and what cannot be parsed is
skipped; nor are a server's peers, which are nearly all of a file, where its table stands before them.
Source: TOML 1.0, sections "Table" and "Array of Tables".
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oxidize.config.document import parse_toml
from oxidize.config.paths import CLIENT_INTERFACE, Role, default_takeover_socket
from oxidize.config.source_file import read_file
from oxidize.config.values import InvalidValueError, interface_name
from oxidize.errors import ConfigError

DEFAULT_PORT = 51820  # of `listen`
_KILL_SWITCH_LINE = re.compile(r"^\s*kill_switch\s*=\s*true\b", re.MULTILINE)
_LINE = re.compile(r"^\s*takeover_socket\s*=.*$", re.MULTILINE)
_ARRAY_OF_TABLES = re.compile(r"^[ \t]*\[\[", re.MULTILINE)


def takeover_socket_of(path: str | Path, role: Role, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the takeover socket that a configuration names, or the default one if no name can be read.

    Raises ConfigError only where the file itself cannot be read. environ: XDG_RUNTIME_DIR is used.
    """
    source = Path(path)
    given = _given(_read(source), role)
    if given is None:
        return default_takeover_socket(role, environ)
    return Path(source.parent / given).absolute()


def client_interface_of(path: str | Path) -> str:
    """Return the name of a client's interface, or the default one if no name can be read.

    Raises ConfigError only where the file itself cannot be read.
    """
    table = _section(_read(Path(path)), "client")
    try:
        return interface_name(table.get("interface") if table is not None else None)
    except InvalidValueError:
        return CLIENT_INTERFACE


def asks_for_kill_switch(path: str | Path) -> bool:
    """Return whether a client's configuration has `kill_switch = true`, whatever else is wrong with it."""
    text = _read(Path(path))
    table = _section(text, "client")
    if table is not None:
        return table.get("kill_switch") is True
    return _KILL_SWITCH_LINE.search(text) is not None  # the file is not TOML, but this line of it may be


def udp_port_of(path: str | Path, role: Role) -> int:
    """Return the UDP port that a configuration names, a server's default one where none can be read, 0 for a client."""
    if role == "client":
        return 0
    try:
        table = _section(_read(Path(path)), role)
    except ConfigError:
        table = None
    listen = table.get("listen") if table is not None else None
    port = str(listen).rpartition(":")[2]
    return int(port) if port.isascii() and port.isdecimal() else DEFAULT_PORT


def _read(path: Path) -> str:
    return read_file(path).decode(errors="replace")


def _given(text: str, role: str) -> str | None:
    table = _section(text, role)
    if table is not None:
        return _path_in(table)
    # The file is not TOML, but this line of it may be.
    line = _LINE.search(text)
    return _path_in(_parse(line[0])) if line else None


def _path_in(table: dict[str, Any]) -> str | None:
    value = table.get("takeover_socket")
    return value if isinstance(value, str) and value and "\0" not in value else None


def _section(text: str, role: str) -> dict[str, Any] | None:
    """Return the table of a role, None where there is none or the file cannot be parsed."""
    if (array := _ARRAY_OF_TABLES.search(text)) is not None:
        table = _parse(text[: array.start()]).get(role)
        # A table that has a value is whole: it cannot be begun a second time. One of tables alone may be, further on.
        if isinstance(table, dict) and not all(isinstance(value, dict) for value in table.values()):
            return table
    table = _parse(text).get(role)
    return table if isinstance(table, dict) else None


def _parse(text: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except (ValueError, RecursionError):
        return {}
