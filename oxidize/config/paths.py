"""Paths in a configuration and their defaults.

The rule: a relative path starts from the folder of the configuration, whatever the working directory is. Sources:
unix(7); systemd.exec(5) for STATE_DIRECTORY.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo

from oxidize.config import values
from oxidize.config.validation import table_of

Role = Literal["server", "client"]

ENDPOINTS_FILE_NAME = "endpoints.json"
# As in the units and in systemd/sysusers.conf: neither can read the keys and the state of the other.
SERVICE_USERS: dict[Role, str] = {"server": "oxidize", "client": "oxidize-client"}
SOCKET_PATH_BYTES_MAX = 107  # unix(7): sun_path without its NUL
# One for each unit: systemd removes it when the unit stops.
SYSTEM_RUNTIME_DIRECTORIES = {"server": "/run/oxidize", "client": "/run/oxidize-client"}
USER_SOCKET_NAMES = {"server": "takeover.sock", "client": "client-takeover.sock"}


def default_takeover_socket(role: str = "server", environ: Mapping[str, str] = os.environ) -> Path:
    """Return the takeover socket of a role where none is configured: in the user's runtime directory unless root."""
    own = environ.get("XDG_RUNTIME_DIR", "")
    if own and os.geteuid() != 0:
        return Path(own) / "oxidize" / USER_SOCKET_NAMES[role]
    return Path(SYSTEM_RUNTIME_DIRECTORIES[role]) / "takeover.sock"


def takeover_socket(value: object, info: ValidationInfo) -> Path:
    """Return the takeover socket, by default that of the role; reports a path that is too long for a socket."""
    checked = table_of(info)
    source = checked.source
    if value is None:
        path = default_takeover_socket(checked.prefix, source.environ)
    else:
        path = Path(source.folder / values.file_path(value)).absolute()
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        expected = f"a path of at most {SOCKET_PATH_BYTES_MAX} bytes, as Unix sockets have"
        source.report.wrong(f"{checked.prefix}.takeover_socket", str(path), expected, "choose a shorter one")
    return path


def endpoints_file(value: object, info: ValidationInfo) -> Path | None:
    """Return where endpoints are stored; by default in systemd's state directory, or nowhere without one."""
    source = table_of(info).source
    if value == "":
        return None
    if value is not None:
        return Path(source.folder / values.file_path(value)).absolute()
    directory = source.environ.get("STATE_DIRECTORY", "").partition(":")[0]  # systemd.exec(5): joined by colons
    return Path(directory) / ENDPOINTS_FILE_NAME if directory else None
