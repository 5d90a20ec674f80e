"""The running server as a deployment sees it (`deploy.server.Server`): asked at its own sockets and of systemd.

The rule: who serves is asked at the takeover socket, whether it is ready over HTTP, and whose process it is of systemd.
A server that belongs to the service is replaced by systemctl, any other by the new program's own `reload`.
"""

import contextlib
import http.client
import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oxidize import config
from oxidize.cli.reloading import SERVICE
from oxidize.deploy.vitals import Vitals
from oxidize.errors import OxidizeError, TakeoverError
from oxidize.runtime import unit
from oxidize.runtime.status import STATUS, VITALS, fetch, find

HEALTH_TIMEOUT_SECS = 3.0
RELOAD_TIMEOUT_SECS = 120.0
BODY_BYTES_MAX = 4096


class RunningServer:
    """The server whose configuration this is."""

    def __init__(self, config_path: Path) -> None:
        self._config_path = config_path.absolute()
        self._takeover_socket = config.takeover_socket_of(config_path, "server")
        self._is_service = False  # as it was when it was last seen

    def vitals(self) -> Vitals | None:
        """Return how it is, None where nobody listens; raises TakeoverError for one that gives no answer."""
        answer = find(self._takeover_socket, VITALS)
        if answer is None:
            return None
        vitals = Vitals.of(answer)
        # As `Releases` has it: the way that it was started by may lead over links.
        vitals = replace(vitals, release_folder=str(Path(vitals.release_folder).resolve()))
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            self._is_service = unit.service_of(vitals.pid) == SERVICE
        return vitals

    def look(self) -> Vitals | None:
        """Return the same as `vitals`, and None for one that gives no answer."""
        try:
            return self.vitals()
        except OxidizeError:
            return None

    def peers(self) -> Sequence[Mapping[str, Any]]:
        """Return the peers of its status; raises OxidizeError where nobody answers."""
        peers: list[dict[str, Any]] = fetch(self._takeover_socket, STATUS)["peers"]
        return peers

    def unready(self, vitals: Vitals) -> str:
        """Return why its /health does not call it ready, "" where it does; without HTTP its own word counts."""
        if vitals.metrics_listen is None:
            return "" if vitals.state == "healthy" else vitals.state
        host, _, port = vitals.metrics_listen.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=HEALTH_TIMEOUT_SECS)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            body = response.read(BODY_BYTES_MAX).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return f"http://{vitals.metrics_listen} does not answer: {error}"
        finally:
            connection.close()
        return "" if response.status == http.client.OK else f"{response.status} {' '.join(body.split())}"

    def main_pid(self) -> int | None:
        """Return the main process of the service; None where the server is not the service's."""
        if not self._is_service:
            return None
        answer = unit.property_of(SERVICE, "MainPID")
        return int(answer) if answer is not None and answer.isdecimal() else None

    def is_reloading(self) -> bool:
        """Tell whether systemd is replacing the process just now."""
        return unit.property_of(SERVICE, "ActiveState") == "reloading"

    def owner(self) -> tuple[int, int] | None:
        """Return whose the server is: of its socket where it runs, else as the unit says; None where nothing says."""
        with contextlib.suppress(FileNotFoundError):
            found = self._takeover_socket.stat()
            return found.st_uid, found.st_gid
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(unit.property_of(SERVICE, "User") or "")
            return entry.pw_uid, entry.pw_gid
        return None

    def reload(self, program: Path) -> None:
        """Replace its process by one of `program`; raises TakeoverError with the reason where it serves on."""
        if self._is_service:
            unit.reload(SERVICE)
            return
        try:
            done = subprocess.run(
                [str(program), "reload", "-c", str(self._config_path)],
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RELOAD_TIMEOUT_SECS,
                start_new_session=True,  # Ctrl-C is not meant for it
                env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise TakeoverError("reload", f"{program}: {error}") from error
        if done.returncode != 0:
            raise TakeoverError("reload", done.stderr.strip().replace("oxidize: ", "") or f"exit {done.returncode}")
