"""Shared by the commands: printing of errors, the option that names the configuration, its default paths.

The rule: an error is one line for each problem on standard error, without a traceback. The exit status is 2 for a
mistake in the configuration or the command, 3 for a client that gave up on its server, 1 for any other error, else 0.
All text is printed by `echo` and what calls it, or by `oxidize.terminal`: file names, reasons and names may come from
others, and a terminal must not execute what is in them.
"""

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import click

from oxidize import config
from oxidize.config.source_file import read_file
from oxidize.control.query import NothingListensError
from oxidize.errors import ConfigError, OxidizeError, UnreachableError
from oxidize.text import one_line, printable, wrapped

_Function = TypeVar("_Function", bound=Callable[..., Any])

COLUMNS = 80  # of a terminal that does not say
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


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a text, without what a terminal executes, to standard output or standard error.

    A terminal, which would break a line within a word, gets lines that fit.
    """
    click.echo(_fitted(printable(text, characters_max=None), sys.stderr if err else sys.stdout), err=err)


def _fitted(text: str, stream: TextIO | None) -> str:
    return text if stream is None or not stream.isatty() else wrapped(text, _columns_of(stream))


def _columns_of(terminal: TextIO) -> int:
    """Return the width of a terminal; as for every program, COLUMNS comes first."""
    with suppress(KeyError, ValueError):
        return max(int(os.environ["COLUMNS"]), 1)
    with suppress(OSError):  # of the stream's own terminal: the other one may be a file
        return os.get_terminal_size(terminal.fileno()).columns or COLUMNS
    return COLUMNS


def print_json(value: object, indent: int | None = 2) -> None:
    """Print a value as JSON, in ASCII."""
    click.echo(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def fail(status: int, *lines: str) -> NoReturn:
    """Print lines as errors and exit."""
    for line in lines:
        echo(f"oxidize: {line}", err=True)
    sys.exit(status)


def print_line(line: str) -> None:
    """Print a line about what was done to standard error, apart from the command's output."""
    echo(line, err=True)


def print_warning(line: str) -> None:
    """Print a warning to standard error."""
    echo(f"oxidize: warning: {line}", err=True)


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


def announce_key_change(role: config.Role, takeover_socket: Path, public_key: bytes) -> None:
    """Warn if the running process has another private key than a configuration: a reload ends its sessions."""
    from oxidize.control import key_change  # noqa: PLC0415  # the other commands need none of it

    announced = key_change.announcement(role, takeover_socket, public_key)
    if announced is not None:
        print_warning(announced)


def load(
    config_path: Path, role: config.Role, place: Path | None = None
) -> "config.ServerConfig | config.ClientConfig":
    """Load the configuration of a role; raises ConfigError with every mistake in it.

    place: where the file will be, which its relative paths start from; None where it is there already.
    """
    load_role = config.load_client if role == "client" else config.load_server
    return load_role(config_path) if place is None else load_role(place, content=read_file(config_path))
