"""The keys that name a path.

The rule: a relative path starts from the folder of the configuration, whatever the working directory is. Sources:
unix(7); systemd.exec(5) for STATE_DIRECTORY.
"""

import os
from pathlib import Path

from pydantic import ValidationInfo

from oxidize.config import values
from oxidize.config.paths import default_takeover_socket
from oxidize.config.validation import table_of

ENDPOINTS_FILE_NAME = "endpoints.json"
SOCKET_PATH_BYTES_MAX = 107  # unix(7): sun_path without its NUL


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
