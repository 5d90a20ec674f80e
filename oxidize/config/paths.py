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


def default_takeover_socket(role: str = "server", environ: Mapping[str, str] = os.environ) -> Path:
    """Return the takeover socket of a role where none is configured: in the user's runtime directory unless root."""
    own = environ.get("XDG_RUNTIME_DIR", "")
    if own and os.geteuid() != 0:
        return Path(own) / "oxidize" / USER_SOCKET_NAMES[role]
    return Path(SYSTEM_RUNTIME_DIRECTORIES[role]) / "takeover.sock"
