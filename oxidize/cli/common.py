"""What the commands share: how an error is printed, the option that names the configuration, where that lies.

The rule: an error is one line for each problem on standard error, without a traceback; exit status 2 for what the
operator can mend in the configuration or the command, 3 for a client that gave its server up, 1 for what else failed.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import click

from oxidize.errors import ConfigError, OxidizeError, UnreachableError

_Function = TypeVar("_Function", bound=Callable[..., Any])

LOG_LEVELS = ("debug", "info", "warning", "error")
GAVE_UP_STATUS = 3  # as in RestartPreventExitStatus= of oxidize-client.service
SERVER_CONFIG = Path("/etc/oxidize/server.toml")
CLIENT_CONFIG = Path("/etc/oxidize/client.toml")
CONFIG_PATH = click.Path(path_type=Path, readable=False)  # not asked here: who reads it says why it cannot


@contextmanager
def errors_as_lines(*, is_coordinated: bool = False) -> Iterator[None]:
    """Print errors and exit. Whoever is coordinated has told its coordinator, which prints them."""
    try:
        yield
    except ConfigError as error:
        fail(2, *(() if is_coordinated else error.problems))
    except UnreachableError as error:
        fail(GAVE_UP_STATUS, str(error))
    except OxidizeError as error:
        fail(1, *(() if is_coordinated else [str(error)]))


def fail(status: int, *lines: str) -> NoReturn:
    """Print lines as errors and exit."""
    for line in lines:
        click.echo(f"oxidize: {line}", err=True)
    sys.exit(status)


def say(line: str) -> None:
    """Print what happened to standard error, where it is in nobody's way."""
    click.echo(line, err=True)


def warn(line: str) -> None:
    """Print a warning."""
    click.echo(f"oxidize: warning: {line}", err=True)


def config_option(default: Path) -> Callable[[_Function], _Function]:
    """Return the option -c with this default."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=CONFIG_PATH,
        default=default,
        show_default=True,
        help="The configuration file.",
    )


def either_config_option(function: _Function) -> _Function:
    """Add the option -c of a command that has --client as well; it goes with `default_config`."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=CONFIG_PATH,
        help=f"The configuration file.  [default: {SERVER_CONFIG}; with --client {CLIENT_CONFIG}]",
    )(function)


def default_config(is_client: bool) -> Path:
    """Return where the configuration lies that no option named."""
    return CLIENT_CONFIG if is_client else SERVER_CONFIG


def role_of(is_client: bool) -> Literal["server", "client"]:
    """Return what the option --client says."""
    return "client" if is_client else "server"


def warn_of_readable_output() -> None:
    """Do as wg does: a key that goes to a file which others can read deserves a word."""
    found = os.fstat(1).st_mode
    if stat.S_ISREG(found) and found & 0o077:
        warn("others can read the file that this goes to; `umask 077` first")
