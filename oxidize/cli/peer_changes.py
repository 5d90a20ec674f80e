"""A change of the peers in a server's configuration, made by a command: the file, and the server that runs with it.

The rule: a change that the running server does not apply is undone, and what cannot be undone is said.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oxidize import config
from oxidize.cli.lines import fail, print_line
from oxidize.cli.reload import apply_at_start, apply_change
from oxidize.cli.replacement import who_serves
from oxidize.errors import ConfigError, OxidizeError
from oxidize.provision.config_file import ConfigFile, locked

if TYPE_CHECKING:
    from oxidize.config.schema import PeerTable

no_reload_option = click.option("--no-reload", is_flag=True, help="Only change the file.")

# The warning of a reload about a key that was removed or renewed, which the command has reported.
REMOVED_NOT_MOVED = "1 peer not moved: not configured any more"


def locked_config(config_path: Path) -> AbstractContextManager[ConfigFile]:
    """Lock a configuration against other commands; a wait for another one is said."""
    return locked(config_path, lambda: print_line(f"waiting for another command that changes {config_path}"))


@contextmanager
def changed(file: ConfigFile, content: bytes) -> Iterator[None]:
    """Replace the content of the file; restore it if the block fails."""
    before = file.content
    file.replace(content)
    try:
        yield
    except BaseException:  # cleans up, and raises it again
        try:
            file.replace(before)
        except ConfigError as error:
            fail(
                1,
                *error.problems,
                f"{file.path}: the change is still in the file, but no server runs with it: undo it by hand",
            )
        print_line(f"oxidize: {file.path} has been restored")
        raise


def apply_to_server(
    file: ConfigFile,
    loaded: config.ServerConfig,
    running: dict[str, Any] | None,
    no_reload: bool,
    is_applied: Callable[[Collection[str]], bool],
    kept: bytes,
    expected_warning: str | None = None,
) -> None:
    """Make the running server apply the change, if one is running; exit with the reason if that fails.

    kept: what its successor gets of the configuration. expected_warning: a warning that is not printed.
    """
    if no_reload:
        print_line("not reloaded: the change takes effect with the next reload or start")
        return
    try:
        if running is None:
            print_line(apply_at_start(file.path, loaded.takeover_socket, is_applied, kept))
            return
        reloaded = apply_change(file.path, loaded.takeover_socket, running["pid"], is_applied, kept)
    except OxidizeError as error:
        fail(1, str(error), *who_serves(file.path, "server", str(error)))
    print_line(reloaded.summary)
    for warning in reloaded.warnings:
        if warning != expected_warning:
            print_line(f"oxidize: {warning}")


def why_inactive(one: "PeerTable", now: float) -> str | None:
    """Return why a peer may not connect, "disabled" or "expired", None if it may; now: seconds since the epoch."""
    if not one.enabled:
        return "disabled"
    return "expired" if one.expires is not None and one.expires <= now else None
