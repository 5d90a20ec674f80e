"""`oxidize reload`, and what else makes a running server apply a changed configuration.

The rule: a server that belongs to the service is reloaded by systemctl for another command: only its own user may take
its sockets (docs/adr/0004), and systemd starts a process as that user.
"""

import time
from collections.abc import Callable, Collection
from pathlib import Path

import click

from oxidize import config
from oxidize.cli import replacement
from oxidize.cli.common import role_options, what_runs
from oxidize.cli.generation import LOG_LEVELS
from oxidize.cli.replacement import Reloaded, replace_process, with_patience
from oxidize.control import query
from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.service_manager import systemctl

SERVICE = "oxidize-daemon.service"
START_WAIT_SECS = 10.0  # for a service that is starting
START_LOOK_SECS = 0.2


@click.command(short_help="Replace the running process by a new one.")
@role_options("Reload a client instead of a server.")
@click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), help="Log level of the new process.  [default: that of the old one]"
)
def reload(config_path: Path, role: config.Role, log_level: str | None) -> None:
    """Replace the running process by a new one: new code, new configuration, the same sessions.

    Exit status 1, with the reason, if the new process could not take over; the old one then continues to serve. Exit
    status 2 for a mistake in the configuration; then no process is started.
    """
    replacement.reload(role, config_path, log_level)


def apply_change(
    config_path: Path, takeover_socket: Path, pid: int, is_applied: Callable[[Collection[str]], bool], kept: bytes
) -> Reloaded:
    """Make the running server apply a changed configuration; raises OxidizeError with the reason if it does not.

    pid: of the server. is_applied: returns, given the public keys of a server's peers, whether it has the change. kept:
    what a successor gets of the configuration.
    """
    try:
        if systemctl.service_of(pid) == SERVICE:
            systemctl.reload(SERVICE)
            reloaded = Reloaded(f"reloaded {SERVICE}")
        else:
            reloaded = replace_process("server", config_path, takeover_socket, None, kept)
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


def apply_at_start(
    config_path: Path, takeover_socket: Path, is_applied: Callable[[Collection[str]], bool], kept: bytes
) -> str:
    """Return what becomes of a changed configuration for which no server answers yet; arguments as of `apply_change`.

    A service that is starting may have read the file as it was: it is awaited, and reloaded where it has not the
    change; raises OxidizeError where that fails.
    """
    is_own = takeover_socket == config.default_takeover_socket("server", {})
    for _ in range(int(START_WAIT_SECS / START_LOOK_SECS) if is_own else 0):
        if systemctl.property_of(SERVICE, "ActiveState") != "activating":
            break
        time.sleep(START_LOOK_SECS)
    found = with_patience(query.find_peers, takeover_socket)
    if found is None:
        if is_own and systemctl.property_of(SERVICE, "ActiveState") == "activating":
            return f"{SERVICE} does not serve yet: if it does so without the change, `systemctl reload oxidize-daemon`"
        running = "\n".join(what_runs(takeover_socket)) or "no server is running"
        return f"{running}: the change takes effect with the next start"
    if is_applied(_peers_of(takeover_socket)):
        return "the server that has just started has the change"
    return apply_change(config_path, takeover_socket, int(found["pid"]), is_applied, kept).summary


def _peers_of(takeover_socket: Path) -> frozenset[str]:
    try:
        found = query.find_peers(takeover_socket)
    except OxidizeError:
        found = None
    return frozenset(peer["public_key"] for peer in found["peers"]) if found is not None else frozenset()
