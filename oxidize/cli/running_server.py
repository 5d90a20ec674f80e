"""The running server as a deployment sees it (`deploy.server.Server`).

The rule: who serves is told by systemd where it is the service's, else by the kernel, which knows who listens at the
takeover socket; the server's own answers are used for how it is, and never for who or whose it is. A server that
belongs to the service is replaced by systemctl, any other by the new program's own `reload`, as its own user.
"""

import pwd
from collections.abc import Sequence
from pathlib import Path

from oxidize import config
from oxidize.cli.health import why_unready
from oxidize.cli.reload import SERVICE
from oxidize.control.query import STATUS, VITALS, fetch, find
from oxidize.deploy.commands import run
from oxidize.deploy.releases import folder_of
from oxidize.deploy.server import Serving
from oxidize.deploy.vitals import PeerVitals, Vitals
from oxidize.errors import OxidizeError
from oxidize.net.event_loop import boot_time
from oxidize.service_manager import systemctl
from oxidize.takeover.query import who_listens

HEALTH_TIMEOUT_SECS = 3.0
LISTEN_TIMEOUT_SECS = 5.0
RELOAD_TIMEOUT_SECS = 120.0
EXPECTED_STATES = frozenset({"active", "activating", "reloading"})  # ActiveState of a unit that has a process, or will


class RunningServer:
    """The server whose configuration this is. lock_fd: of the installation, kept by what outlives this process."""

    def __init__(self, config_path: Path, lock_fd: int | None = None) -> None:
        self._config_path = config_path.absolute()
        self._lock_fd = lock_fd
        self._takeover_socket = config.takeover_socket_of(config_path, "server")
        # The service whose main process it is, as it was seen last; before that, whose the configuration is.
        is_default = self._takeover_socket == config.default_takeover_socket("server", {})
        self._known_service = SERVICE if is_default else None

    # --- Who serves ---

    def serving(self) -> Serving | None:
        """Return the process that serves, None where there is none."""
        listener = self._listener()
        pid = listener[0] if listener is not None else None
        if (service := self._service(listener)) is not None and (main_pid := _main_pid(service)) is not None:
            pid = main_pid
        return Serving(pid, folder_of(pid)) if pid else None

    def is_expected(self) -> bool:
        """Tell whether systemd has it running, or is about to start it."""
        return self._service(self._listener()) is not None

    def is_reloading(self) -> bool:
        """Tell whether systemd is replacing the process just now."""
        service = self._service(self._listener())
        return service is not None and systemctl.property_of(service, "ActiveState") == "reloading"

    def main_pid(self) -> int | None:
        """Return the main process of the service; None where the server is no service's, or there is none."""
        service = self._service(self._listener())
        return (_main_pid(service) or None) if service is not None else None

    def owner(self) -> tuple[int, int] | None:
        """Return whose the server is: as its unit says, else of who listens; None where nothing says."""
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
        """Return pid and uid of the process that listens, None where nobody does."""
        return who_listens(self._takeover_socket, clock=boot_time, timeout=LISTEN_TIMEOUT_SECS)

    def _service(self, listener: tuple[int, int] | None) -> str | None:
        """Return the service whose server it is; None for none, and where nobody listens and it is down."""
        service = systemctl.service_of(listener[0]) if listener is not None else None
        if listener is not None and service is not None:
            # In the middle of a takeover who listens is not yet, or no more, the main process.
            main_pid = _main_pid(service)
            is_main = main_pid is not None and (main_pid == listener[0] or _is_ours(main_pid))
            is_its_own = service in {SERVICE, self._known_service} or is_main
            self._known_service = service if is_its_own else None
        elif listener is not None and Path("/proc", str(listener[0])).exists():
            self._known_service = None
        known = self._known_service
        if known is None or listener is not None:
            return known
        return known if systemctl.property_of(known, "ActiveState") in EXPECTED_STATES else None

    # --- How it is ---

    def vitals(self) -> Vitals | None:
        """Return how it is, None where nobody listens; raises OxidizeError for one that does not answer rightly."""
        answer = find(self._takeover_socket, VITALS)
        return Vitals.of(answer) if answer is not None else None

    def look(self) -> Vitals | None:
        """Return the same as `vitals`, and None for one that gives no answer."""
        try:
            return self.vitals()
        except OxidizeError:
            return None

    def peers(self) -> Sequence[PeerVitals]:
        """Return the peers of its status; raises OxidizeError where nobody answers rightly."""
        return PeerVitals.all_of(fetch(self._takeover_socket, STATUS))

    def unready(self, vitals: Vitals) -> str:
        """Return why its /health does not call it ready, "" where it does; without HTTP its own word counts."""
        if vitals.metrics_listen is None:
            return "" if vitals.state == "healthy" else vitals.state
        return why_unready(vitals.metrics_listen, HEALTH_TIMEOUT_SECS)

    # --- Replacing it ---

    def reload(self, program: Path) -> None:
        """Replace its process by one of `program`; raises OxidizeError with the reason where it serves on."""
        listener = self._listener()
        if (service := self._service(listener)) is not None:
            systemctl.reload(service)
            return
        owner = self.owner() if listener is not None else None
        command = (program, "reload", "-c", self._config_path)
        # What it starts is to end before anybody else begins a deployment.
        kept = [self._lock_fd] if self._lock_fd is not None else []
        run(command, owner, timeout_secs=RELOAD_TIMEOUT_SECS, pass_fds=kept)


def _main_pid(service: str) -> int | None:
    """Return the main process of a service, 0 for none; None where systemd does not say."""
    answer = systemctl.property_of(service, "MainPID")
    return int(answer) if answer is not None and answer.isdecimal() else None


def _is_ours(pid: int) -> bool:
    """Tell whether a process was started from a release, or another environment of ours."""
    return (Path(folder_of(pid)) / "bin/oxidize").exists()
