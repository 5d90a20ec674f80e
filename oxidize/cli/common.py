"""Shared by the commands: printing of errors, the option that names the configuration, its default paths.

The rule: an error is one line for each problem on standard error, without a traceback. The exit status is 2 for a
mistake in the configuration or the command, 3 for a client that gave up on its server, 1 for any other error, else 0.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from oxidize import config
from oxidize.cli.lines import fail, print_warning, write_line
from oxidize.config.source_file import read_file
from oxidize.control.query import NothingListensError
from oxidize.errors import ConfigError, OxidizeError, UnreachableError
from oxidize.text import one_line, printable

_Function = TypeVar("_Function", bound=Callable[..., Any])

GAVE_UP_STATUS = 3  # as in RestartPreventExitStatus= of oxidize-client.service
SERVER_CONFIG = Path("/etc/oxidize/server.toml")
CLIENT_CONFIG = Path("/etc/oxidize/client.toml")
GIVEN = "oxidize.given"  # of a command: its configuration file and role
CONFIG_PATH = click.Path(path_type=Path, readable=False)  # not checked here: an error when it is read says why


@contextmanager
def errors_as_lines(is_told: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Print errors and exit. is_told: returns whether the coordinator of a reload has received the error: it prints."""
    try:
        yield
    except ConfigError as error:
        fail(2, *(() if is_told() else map(one_line, error.problems)))
    except UnreachableError as error:
        fail(GAVE_UP_STATUS, str(error))
    except NothingListensError as error:
        running = what_runs(error.takeover_socket)
        fail(1, f"no process listens at {error.takeover_socket}" if running else _text_of(error), *running)
    except OxidizeError as error:
        fail(1, *(() if is_told() else [str(error)]))
    except click.UsageError as error:  # it quotes the command line
        raise click.UsageError(printable(error.format_message(), characters_max=None), error.ctx) from None


def _text_of(error: NothingListensError) -> str:
    from oxidize.control.who_runs import way_to_start  # noqa: PLC0415  # rarely needed

    way = way_to_start(error.takeover_socket)
    return str(error) if way is None else error.text_with(way)


def what_runs(takeover_socket: Path) -> list[str]:
    """Return a line for each process that runs although none listens at the takeover socket."""
    from oxidize.control.who_runs import who_runs  # noqa: PLC0415  # rarely needed

    context = click.get_current_context(silent=True)
    given: tuple[Path, config.Role] | None = context.meta.get(GIVEN) if context is not None else None
    return who_runs(takeover_socket, config.udp_port_of(*given) if given is not None else 0)


def print_json(value: object, indent: int | None = 2) -> None:
    """Print a value as JSON, in ASCII."""
    write_line(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def config_option(default: Path) -> Callable[[_Function], _Function]:
    """Return a decorator that adds the option -c with this default."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=CONFIG_PATH,
        metavar="FILE",
        default=default,
        show_default=True,
        callback=_or_default,
        help="The configuration file.",
    )


def role_options(client_help: str) -> Callable[[_Function], _Function]:
    """Return a decorator that adds -c and --client; they give the command `config_path` and `role`."""

    def add(function: _Function) -> _Function:
        client_option = click.option(
            "--client",
            "role",
            is_flag=True,
            flag_value="client",
            default="server",
            is_eager=True,  # the default of -c depends on it
            help=client_help,
        )
        return click.option(
            "-c",
            "--config",
            "config_path",
            type=CONFIG_PATH,
            metavar="FILE",
            callback=_or_default,
            help=f"The configuration file.  [default: {SERVER_CONFIG}; with --client {CLIENT_CONFIG}]",
        )(client_option(function))

    return add


def _or_default(context: click.Context, _option: click.Parameter, given: Path | None) -> Path:
    role: config.Role = context.params.get("role", "server")
    path = rooted(given or (CLIENT_CONFIG if role == "client" else SERVER_CONFIG))
    context.meta[GIVEN] = path, role
    return path


def rooted(path: Path) -> Path:
    """Return the path, an absolute one where the working directory was removed: only the kernel knows where it was.

    Raises ConfigError if nothing is there.
    """
    with suppress(FileNotFoundError):
        Path.cwd()
        return path
    if path.is_absolute():
        return path
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        problem = f"{path}: {error.strerror}: expected a path from a folder that was removed; give an absolute one"
        raise ConfigError(problem) from None
    try:
        return Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)


def warn_of_readable_output() -> None:
    """Warn, as wg does, where a key is written to a file that other users can read."""
    found = os.fstat(1).st_mode
    if stat.S_ISREG(found) and found & 0o077:
        print_warning("standard output is a file that other users can read; run `umask 077` first")


def load(
    config_path: Path, role: config.Role, place: Path | None = None
) -> "config.ServerConfig | config.ClientConfig":
    """Load the configuration of a role; raises ConfigError with every mistake in it.

    place: where the file will be, which its relative paths start from; None where it is there already.
    """
    load_role = config.load_client if role == "client" else config.load_server
    return load_role(config_path) if place is None else load_role(place, content=read_file(config_path))
