"""The default paths and names of both roles, for commands that load no configuration too."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Role = Literal["server", "client"]

CLIENT_INTERFACE = "oxidize1"
# As in the units and in systemd/sysusers.conf: neither can read the keys and the state of the other.
SERVICE_USERS: dict[Role, str] = {"server": "oxidize", "client": "oxidize-client"}
# One for each unit: systemd removes it when the unit stops.
SYSTEM_RUNTIME_DIRECTORIES = {"server": "/run/oxidize", "client": "/run/oxidize-client"}
USER_SOCKET_NAMES = {"server": "takeover.sock", "client": "client-takeover.sock"}


def remedy_for(error: BaseException, otherwise: str) -> str:
    """Return the remedy for a file that cannot be used because of an error.

    Root is an ordinary user to files of others where it has neither CAP_DAC_OVERRIDE nor CAP_CHOWN.
    """
    if isinstance(error, PermissionError) and os.geteuid() == 0:
        return (
            "root has no right to files of other users here, as in a container without CAP_DAC_OVERRIDE: give the "
            "folder and its files to root, on the host by `sudo chown -R root: FOLDER`"
        )
    return otherwise


def default_takeover_socket(role: str = "server", environ: Mapping[str, str] = os.environ) -> Path:
    """Return the takeover socket of a role where none is configured: in the user's runtime directory unless root."""
    own = environ.get("XDG_RUNTIME_DIR", "")
    if own and os.geteuid() != 0:
        return Path(own) / "oxidize" / USER_SOCKET_NAMES[role]
    return Path(SYSTEM_RUNTIME_DIRECTORIES[role]) / "takeover.sock"
