"""Replace the running process: directly, or through systemd where it belongs to a service.

The rule: the running process is found at the takeover socket, and so is the outcome of a reload. A server that belongs
to the service is reloaded by systemctl: only its own user may take its sockets (docs/adr/0004), and systemd starts a
process as that user.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxidize import config
from oxidize.cli.common import LOG_LEVELS
from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.text import counted

SERVICE = "oxidize-daemon.service"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The outcome of a reload as text: one line, and warnings."""

    summary: str
    warnings: tuple[str, ...] = ()


def replace_process(role: config.Role, config_path: Path, takeover_socket: Path, log_level: str | None) -> Reloaded:
    """Replace the process that listens at `takeover_socket` by a new one; raises OxidizeError with the reason.

    log_level: of the successor, None for that of its predecessor. The kernel identifies the predecessor, because its
    answers cannot be trusted.
    """
    from oxidize.control.query import nothing_runs  # noqa: PLC0415
    from oxidize.control.reload import reload  # noqa: PLC0415  # what checks a file needs none of it
    from oxidize.takeover import who_listens  # noqa: PLC0415

    listener = who_listens(takeover_socket)
    if listener is None:
        raise nothing_runs(takeover_socket)
    report = reload(role, config_path, log_level or _log_level(takeover_socket), takeover_socket, listener[0])
    refused = (f"{counted(number, 'peer')} not moved: {reason}" for reason, number in report["refused"].items())
    return Reloaded(
        f"reloaded: generation {report['generation']}, pid {report['pid']}: "
        f"{counted(report['sessions'], 'session')} moved, "
        f"blackout {report['blackout_ms']:.1f} ms, {report['seconds']:.2f} s in all",
        (*(f"warning: {warning}" for warning in report["warnings"]), *refused),
    )


def _log_level(takeover_socket: Path) -> str:
    """Return the log level of the running process, or "info" if it does not answer with one."""
    from oxidize.control.query import IDENTITY, fetch  # noqa: PLC0415

    try:
        level = fetch(takeover_socket, IDENTITY).get("log_level")
    except OxidizeError:
        level = None
    return str(level) if level in LOG_LEVELS else "info"


def who_serves(config_path: Path, role: config.Role, reason: str) -> list[str]:
    """Return a line about the process that serves after a failed reload; no line if none answers."""
    from oxidize.control.query import IDENTITY, fetch  # noqa: PLC0415
    from oxidize.control.reload import notify_failure  # noqa: PLC0415

    try:
        found = fetch(config.takeover_socket_of(config_path, role), IDENTITY)
        generation, pid = int(found["generation"]), int(found["pid"])
    except (OxidizeError, KeyError, TypeError, ValueError):
        return []
    notify_failure(generation, reason)
    return [f"not reloaded: generation {generation}, pid {pid}, still serves"]


def running_server(takeover_socket: Path) -> dict[str, Any] | None:
    """Return the status of the running server, None if there is none; raises OxidizeError if it does not answer."""
    from oxidize.control.query import find  # noqa: PLC0415

    return find(takeover_socket)


def apply_change(
    config_path: Path, takeover_socket: Path, pid: int, is_applied: Callable[[Collection[str]], bool]
) -> Reloaded:
    """Make the running server apply a changed configuration; raises OxidizeError with the reason if it does not.

    pid: of the server. is_applied: returns, given the public keys of a server's peers, whether it has the change.
    """
    from oxidize.service_manager import systemctl  # noqa: PLC0415

    try:
        if systemctl.service_of(pid) == SERVICE:
            systemctl.reload(SERVICE)
            reloaded = Reloaded(f"reloaded {SERVICE}")
        else:
            reloaded = replace_process("server", config_path, takeover_socket, None)
    except OxidizeError as error:
        # A successor may serve although it could not report that it does.
        if not is_applied(_peers_of(takeover_socket)):
            raise
        return Reloaded("reloaded", (f"warning: the reload ended with an error, but the change is in force: {error}",))
    if not is_applied(_peers_of(takeover_socket)):
        raise TakeoverError(
            Phase.VERIFYING,
            f"the reloaded server does not have the change in {config_path}: it runs with another configuration file; "
            f"edit that one (-c), which `systemctl cat {SERVICE}` or `ps` shows",
        )
    return reloaded


def _peers_of(takeover_socket: Path) -> frozenset[str]:
    try:
        status = running_server(takeover_socket)
    except OxidizeError:
        status = None
    return frozenset(peer["public_key"] for peer in status["peers"]) if status is not None else frozenset()
