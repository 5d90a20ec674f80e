"""The running server as a deployment sees it (implements `deploy.server.Server`).

The rule: systemd identifies the serving process where it belongs to the service, else the kernel does, which knows the
process that listens at the takeover socket. The server's own answers are used for its condition, never for its
identity or owner. A server that belongs to the service is replaced by systemctl, any other by the new program's own
`reload`, as the server's user.
"""

import pwd
from collections.abc import Sequence
from pathlib import Path

from oxidize import config
from oxidize.cli.health import why_unready
from oxidize.cli.reload import SERVICE
from oxidize.control.query import STATUS, VITALS, fetch, find
from oxidize.control.who_runs import who_runs
from oxidize.deploy.commands import run
from oxidize.deploy.releases import folder_of
from oxidize.deploy.server import Serving
from oxidize.deploy.vitals import PeerVitals, Vitals
from oxidize.errors import OxidizeError
from oxidize.service_manager import systemctl
from oxidize.takeover.connection import who_listens

HEALTH_TIMEOUT_SECS = 3.0
LISTEN_TIMEOUT_SECS = 5.0
RELOAD_TIMEOUT_SECS = 120.0
# ActiveState of a unit that has a process, or will have one.
EXPECTED_STATES = frozenset({"active", "activating", "reloading"})


class RunningServer:
    """The server of a configuration. lock_fd: of the installation, inherited by children that outlive this process."""

    def __init__(self, config_path: Path, lock_fd: int | None = None) -> None:
        self._config_path = config_path.absolute()
        self._lock_fd = lock_fd
        self._takeover_socket = config.takeover_socket_of(config_path, "server")
        # The service whose main process it last was; at first, the one that the default takeover socket belongs to.
        is_default = self._takeover_socket == config.default_takeover_socket("server", {})
        self._known_service = SERVICE if is_default else None

    # --- Identity ---

    def serving(self) -> Serving | None:
        """Return the serving process, None if there is none."""
        listener = self._listener()
        pid = listener[0] if listener is not None else None
        if (service := self._service(listener)) is not None and (main_pid := _main_pid(service)) is not None:
            pid = main_pid
        return Serving(pid, folder_of(pid)) if pid else None

    def unreached(self) -> str:
        """Return which process runs although none listens, and how to reach it, "" where none is found."""
        found = who_runs(self._takeover_socket, config.udp_port_of(self._config_path, "server"))
        return f"no process listens at {self._takeover_socket}, but {'; '.join(found)}" if found else ""

    def is_expected(self) -> bool:
        """Return whether systemd runs the server or is about to start it."""
        return self._service(self._listener()) is not None

    def is_reloading(self) -> bool:
        """Return whether systemd is reloading the server now."""
        service = self._service(self._listener())
        return service is not None and systemctl.property_of(service, "ActiveState") == "reloading"

    def main_pid(self) -> int | None:
        """Return the main process of the service; None if the server belongs to no service, or has no process."""
        service = self._service(self._listener())
        return (_main_pid(service) or None) if service is not None else None

    def owner(self) -> tuple[int, int] | None:
        """Return user and group of the server: as in its unit, else of the listening process; None if unknown."""
        listener = self._listener()
        service = self._service(listener)
        try:
            if service is not None or listener is None:
                entry = pwd.getpwnam(systemctl.property_of(service or self._known_service or "", "User") or "")
            else:
                entry = pwd.getpwuid(listener[1])
        except KeyError:
            return (listener[1], listener[1]) if listener is not None else None
        return entry.pw_uid, entry.pw_gid

    def _listener(self) -> tuple[int, int] | None:
        """Return pid and uid of the process that listens, None if none does."""
        return who_listens(self._takeover_socket, timeout=LISTEN_TIMEOUT_SECS)

    def _service(self, listener: tuple[int, int] | None) -> str | None:
        """Return the service that the server belongs to; None for none, and if no process listens and it is down."""
        service = systemctl.service_of(listener[0]) if listener is not None else None
        if listener is not None and service is not None:
            # During a takeover the listening process is not yet, or no longer, the main process.
            main_pid = _main_pid(service)
            is_main = main_pid is not None and (main_pid == listener[0] or _is_oxidize(main_pid))
            is_its_own = service in {SERVICE, self._known_service} or is_main
            self._known_service = service if is_its_own else None
        elif listener is not None and Path("/proc", str(listener[0])).exists():
            self._known_service = None
        known = self._known_service
        if known is None or listener is not None:
            return known
        return known if systemctl.property_of(known, "ActiveState") in EXPECTED_STATES else None

    # --- Condition ---

    def vitals(self) -> Vitals | None:
        """Return the server's vitals, None if no process listens; raises OxidizeError for a wrong answer, or none."""
        answer = find(self._takeover_socket, VITALS)
        return Vitals.of(answer) if answer is not None else None

    def vitals_or_none(self) -> Vitals | None:
        """Return the same as `vitals`, but None instead of an error."""
        try:
            return self.vitals()
        except OxidizeError:
            return None

    def peers(self) -> Sequence[PeerVitals]:
        """Return the peers in the server's status; raises OxidizeError for a wrong answer, or none."""
        return PeerVitals.all_of(fetch(self._takeover_socket, STATUS))

    def unready(self, vitals: Vitals) -> str:
        """Return why /health does not report the server as ready, "" if it does; without HTTP its state decides."""
        if vitals.metrics_listen is None:
            return "" if vitals.state == "healthy" else vitals.state
        return why_unready(vitals.metrics_listen, HEALTH_TIMEOUT_SECS)

    # --- Replacement ---

    def reload(self, program: Path) -> None:
        """Replace the process by one of `program`; raises OxidizeError with the reason if the old one still serves."""
        listener = self._listener()
        if (service := self._service(listener)) is not None:
            systemctl.reload(service)
            return
        owner = self.owner() if listener is not None else None
        command = (program, "reload", "-c", self._config_path)
        # A process that it starts keeps the lock: no other deployment may begin before that process ends.
        kept = [self._lock_fd] if self._lock_fd is not None else []
        run(command, owner, timeout_secs=RELOAD_TIMEOUT_SECS, pass_fds=kept)


def _main_pid(service: str) -> int | None:
    """Return the main process of a service, 0 for none; None if systemd does not answer."""
    answer = systemctl.property_of(service, "MainPID")
    return int(answer) if answer is not None and answer.isdecimal() else None


def _is_oxidize(pid: int) -> bool:
    """Return whether a process was started from a release, or another environment with Oxidize in it."""
    return (Path(folder_of(pid)) / "bin/oxidize").exists()
