"""`oxidize reload`: replace the running process, directly, or through systemd where it belongs to a service.

The rule: the running process is found at the takeover socket, and so is the outcome of a reload. A server that belongs
to the service is reloaded by systemctl: only its own user may take its sockets (docs/adr/0004), and systemd starts a
process as that user.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from oxidize import config, takeover
from oxidize.cli.common import announce_key_change, echo, fail, load, role_options, what_runs
from oxidize.cli.generation import LOG_LEVELS
from oxidize.control import query
from oxidize.control import reload as coordinator
from oxidize.control.who_runs import who_runs
from oxidize.cpu_priority import CpuPriority
from oxidize.errors import ConfigError, OxidizeError, Phase, TakeoverError
from oxidize.oom_score import OomScore
from oxidize.runtime import validated
from oxidize.runtime.kept_settings import contents_of
from oxidize.service_manager import systemctl
from oxidize.takeover.channel import close_unasked
from oxidize.takeover.queries import query_with_fds
from oxidize.text import counted

SERVICE = "oxidize-daemon.service"
# A server looks every second whether its path is there, and a unit's ExecReload= finds the folder made again.
PATH_RETURNS_SECS = 2.5
START_WAIT_SECS = 10.0  # for a service that is starting
START_LOOK_SECS = 0.2

_Found = TypeVar("_Found")


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
    try:
        with OomScore():  # where memory runs out this process goes, and not the server
            with CpuPriority():
                takeover_socket, kept = _validated(role, config_path)
            reloaded = replace_process(role, config_path, takeover_socket, log_level, kept)
    except ConfigError as error:
        fail(2, *error.problems, *who_serves(config_path, role, str(error)))
    except TakeoverError as error:
        fail(1, f"reload {error}", *who_serves(config_path, role, str(error)))
    echo(reloaded.summary)
    for warning in reloaded.warnings:
        echo(f"oxidize: {warning}", err=True)


def _validated(role: config.Role, config_path: Path) -> tuple[Path, bytes | None]:
    """Return the takeover socket of a configuration, and what the successor gets of it; raises ConfigError.

    It is not validated again where the running process has validated the same. What that process hands out counts only
    if its digest is right, which covers the private key.
    """
    if not config_path.is_absolute():  # the successor's lines would name another path
        loaded = load(config_path, role)
        announce_key_change(role, loaded.takeover_socket, loaded.public_key)
        return loaded.takeover_socket, None
    match = validated.find(role, config_path, _handed_out(role, config_path))
    if match is not None:
        return match.takeover_socket, match.kept
    found = validated.load(role, config_path)
    settings = found.settings
    announce_key_change(role, settings.takeover_socket, settings.public_key)
    return settings.takeover_socket, found.kept


def _handed_out(role: config.Role, config_path: Path) -> list[bytes]:
    """Return what the running process has kept of its configuration; nothing where none answers with that."""
    try:
        answer = query_with_fds(config.takeover_socket_of(config_path, role), query.SETTINGS)
    except OxidizeError:  # also an older release
        return []
    fds = [named.fd for named in answer.fds] if answer is not None else []
    try:
        return list(contents_of(fds).values())
    finally:
        close_unasked(fds)


class Reloaded(NamedTuple):
    """The outcome of a reload as text: one line, and warnings."""

    summary: str
    warnings: tuple[str, ...] = ()


def replace_process(
    role: config.Role, config_path: Path, takeover_socket: Path, log_level: str | None, kept: bytes | None = None
) -> Reloaded:
    """Replace the process that listens at `takeover_socket` by a new one; raises OxidizeError with the reason.

    log_level: of the successor, None for that of its predecessor. kept: what it gets of the configuration. The kernel
    identifies the predecessor, because its answers cannot be trusted.
    """
    listener = _with_patience(takeover.who_listens, takeover_socket)
    if listener is None:
        raise query.NothingListensError(takeover_socket)
    running_level, holder_name = _process_at(takeover_socket)
    level = log_level or running_level
    with contextlib.ExitStack() as undo:
        settings_fd = None
        if kept is not None:
            with contextlib.suppress(OSError):  # no room: the successor validates by itself
                settings_fd = validated.keep(kept)
                undo.callback(os.close, settings_fd)
        report = coordinator.reload(
            role, config_path, level, takeover_socket, listener[0], holder_name, settings_fd=settings_fd
        )
    refused = (f"{counted(number, 'peer')} not moved: {reason}" for reason, number in report["refused"].items())
    return Reloaded(
        f"reloaded: generation {report['generation']}, pid {report['pid']}: "
        f"{counted(report['sessions'], 'session')} moved, "
        f"blackout {report['blackout_ms']:.1f} ms, {report['seconds']:.2f} s in all",
        (*(f"warning: {warning}" for warning in report["warnings"]), *refused),
    )


def _with_patience(look: Callable[[Path], _Found | None], takeover_socket: Path) -> _Found | None:
    """Return what is found at the takeover socket, also where its path comes back while this waits."""
    found = look(takeover_socket)
    if found is None and who_runs(takeover_socket):
        time.sleep(PATH_RETURNS_SECS)
        found = look(takeover_socket)
    return found


def _process_at(takeover_socket: Path) -> tuple[str, object]:
    """Return the log level of the running process, "info" if it does not answer with one, and its holder's name."""
    try:
        found = query.fetch(takeover_socket, query.IDENTITY)
    except OxidizeError:
        found = {}
    level = found.get("log_level")
    return str(level) if level in LOG_LEVELS else "info", found.get("holder")


def who_serves(config_path: Path, role: config.Role, reason: str) -> list[str]:
    """Return a line about the process that serves after a failed reload; no line if none answers."""
    try:
        found = query.fetch(config.takeover_socket_of(config_path, role), query.IDENTITY)
        generation, pid = int(found["generation"]), int(found["pid"])
    except (OxidizeError, KeyError, TypeError, ValueError):
        return []
    coordinator.notify_failure(generation, reason)
    return [f"not reloaded: generation {generation}, pid {pid}, still serves"]


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
    found = _with_patience(query.find_peers, takeover_socket)
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
