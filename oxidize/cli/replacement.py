"""A reload: the running process is replaced by a new one, and the outcome is printed.

The rule: a reload of an unchanged configuration takes little of a processor that the server needs. So nothing here
imports the command line, and the units' own command lines are recognized without it (`oxidize.cli.entry`). The
running process is found at the takeover socket, and so is the outcome of a reload.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from oxidize import config, takeover
from oxidize.cli.generation import LOG_LEVELS
from oxidize.cli.lines import announce_key_change, echo, fail
from oxidize.config.paths import Role
from oxidize.control import query
from oxidize.control import reload as coordinator
from oxidize.cpu_priority import CpuPriority
from oxidize.errors import ConfigError, OxidizeError, TakeoverError
from oxidize.oom_score import OomScore
from oxidize.runtime import validated
from oxidize.takeover.channel import close_unasked
from oxidize.takeover.queries import query_with_fds
from oxidize.text import counted

# A server looks every second whether its path is there, and a unit's ExecReload= finds the folder made again.
PATH_RETURNS_SECS = 2.5

_Found = TypeVar("_Found")


def reload(role: Role, config_path: Path, log_level: str | None) -> None:
    """Replace the running process and print the outcome; exit with a status other than 0 where that fails.

    Raises OxidizeError where no process runs that could be replaced.
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


def _validated(role: Role, config_path: Path) -> tuple[Path, bytes | None]:
    """Return the takeover socket of a configuration, and what the successor gets of it; raises ConfigError.

    It is not validated again where the running process has validated the same. What that process hands out counts only
    if its digest is right, which covers the private key.
    """
    if not config_path.is_absolute():  # the successor's lines would name another path
        loaded = (config.load_client if role == "client" else config.load_server)(config_path)
        announce_key_change(role, loaded.takeover_socket, loaded.public_key)
        return loaded.takeover_socket, None
    match = validated.find(role, config_path, _handed_out(role, config_path))
    if match is not None:
        return match.takeover_socket, match.kept
    found = validated.load(role, config_path)
    settings = found.settings
    announce_key_change(role, settings.takeover_socket, settings.public_key)
    return settings.takeover_socket, found.kept


def _handed_out(role: Role, config_path: Path) -> list[bytes]:
    """Return what the running process has kept of its configuration; nothing where none answers with that."""
    try:
        answer = query_with_fds(config.takeover_socket_of(config_path, role), query.SETTINGS)
    except OxidizeError:  # also an older release
        return []
    fds = [named.fd for named in answer.fds] if answer is not None else []
    try:
        return list(validated.contents_of(fds).values())
    finally:
        close_unasked(fds)


class Reloaded(NamedTuple):
    """The outcome of a reload as text: one line, and warnings."""

    summary: str
    warnings: tuple[str, ...] = ()


def replace_process(
    role: Role, config_path: Path, takeover_socket: Path, log_level: str | None, kept: bytes | None = None
) -> Reloaded:
    """Replace the process that listens at `takeover_socket` by a new one; raises OxidizeError with the reason.

    log_level: of the successor, None for that of its predecessor. kept: what it gets of the configuration. The kernel
    identifies the predecessor, because its answers cannot be trusted.
    """
    listener = with_patience(takeover.who_listens, takeover_socket)
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


def with_patience(look: Callable[[Path], _Found | None], takeover_socket: Path) -> _Found | None:
    """Return what is found at the takeover socket, also where its path comes back while this waits."""
    found = look(takeover_socket)
    if found is None:
        from oxidize.control.who_runs import who_runs  # noqa: PLC0415  # rarely needed

        if who_runs(takeover_socket):
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


def who_serves(config_path: Path, role: Role, reason: str) -> list[str]:
    """Return a line about the process that serves after a failed reload; no line if none answers."""
    try:
        found = query.fetch(config.takeover_socket_of(config_path, role), query.IDENTITY)
        generation, pid = int(found["generation"]), int(found["pid"])
    except (OxidizeError, KeyError, TypeError, ValueError):
        return []
    coordinator.notify_failure(generation, reason)
    return [f"not reloaded: generation {generation}, pid {pid}, still serves"]
