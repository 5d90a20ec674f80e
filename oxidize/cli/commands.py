"""The command line: `oxidize`. `oxidize-server` and `oxidize-client` are names of its two main subcommands.

The hidden commands `clean-up`, `kill-switch` and `name-servers` are hooks that the client's systemd units run; rarely
used by hand.
"""

import errno
import gc
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import click

from oxidize import config
from oxidize.cli.common import (
    CLIENT_CONFIG,
    CONFIG_PATH,
    GAVE_UP_STATUS,
    GIVEN,
    SERVER_CONFIG,
    config_option,
    errors_as_lines,
    load,
    role_options,
    warn_of_readable_output,
)
from oxidize.cli.generation import LOG_LEVELS, Generation, is_held, serve
from oxidize.cli.lines import announce_key_change, echo, fail, print_warning
from oxidize.config.values import format_key, parse_key
from oxidize.log_output import open_standard_streams
from oxidize.protocol.constants import KEY_SIZE
from oxidize.service_manager import notify
from oxidize.text import counted, own_release

KEY_INPUT_BYTES_MAX = 4096
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
MODULES = {
    "deploy": "deploy:deploy",
    "drain": "drain_page:drain",
    "import": "import_wg_quick:import_wg_quick",
    "init": "init:init",
    "peer": "peers:peer",
    "rehearse": "rehearse:rehearse",
    "releases": "deploy:releases",
    "reload": "reload:reload",
    "rollback": "deploy:rollback",
    "status": "status_page:status",
    "stop": "stop:stop",
    "watch": "watch:watch",
}

_control_option = click.option("--control-fd", type=int, hidden=True, help="Socket of the coordinator of a reload.")
_log_level_option = click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="Lowest level to log."
)

_no_holder_option = click.option(
    "--no-holder",
    is_flag=True,
    help="Serve in this process: a reload then ends it, and a crash ends the sessions. Systemd needs no holder.",
)


class _Commands(click.Group):
    """The commands of this module, and those of MODULES, which are imported at their first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, None if there is none."""
        if cmd_name not in MODULES:
            return super().get_command(ctx, cmd_name)
        command: click.Command = pkgutil.resolve_name(f"oxidize.cli.{MODULES[cmd_name]}")
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; whatever it opens, standard input, output and error keep their numbers."""
        open_standard_streams()
        gc.disable()  # imports and a file that is read make no garbage: to look for it takes a sixth of their time
        try:
            return super().main(*args, **extra)
        finally:
            gc.enable()

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the command line; print its errors."""
        with errors_as_lines(), _unwritable_output_as_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> None:
        """Run a command; print its errors."""
        with errors_as_lines(), _unwritable_output_as_line():
            super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()


def end_with(error: BaseException, role: config.Role, config_path: Path) -> NoReturn:
    """End as a command with this role and configuration does that raises `error`."""

    def again() -> None:
        click.get_current_context().meta[GIVEN] = config_path, role
        raise error

    _Commands(commands={"again": click.Command("again", callback=again)}).main(["again"], prog_name="oxidize")
    raise error  # never reached: a command exits


@contextmanager
def _unwritable_output_as_line() -> Iterator[None]:
    """Print an error of standard output and exit, but not that its reader is gone, which is no error."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer must not fail again at the exit
        fail(1, f"standard output: {error.strerror}: expected a file or terminal that can be written to")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(own_release(), prog_name="oxidize")
def main() -> None:
    """Relay WireGuard tunnels with a process that can be replaced under traffic."""


@main.command(short_help="Run a server in the foreground.")
@config_option(SERVER_CONFIG)
@_log_level_option
@_control_option
@_no_holder_option
def server(config_path: Path, log_level: str, control_fd: int | None, no_holder: bool) -> None:
    """Run a server in the foreground.

    If a server with the same takeover socket is already running, this one takes over its sockets and its sessions
    without losing a packet.

    Without systemd this process becomes a holder: a reload replaces the server below it, and after a crash it starts
    the next one with the sessions. Ctrl-C ends both.
    """
    _run("server", config_path, log_level, control_fd, no_holder=no_holder)


@main.command(short_help="Run a client in the foreground.")
@config_option(CLIENT_CONFIG)
@_log_level_option
@_control_option
@_no_holder_option
def client(config_path: Path, log_level: str, control_fd: int | None, no_holder: bool) -> None:
    """Run a client in the foreground.

    If a client with the same takeover socket is already running, this one takes over from it.

    Without systemd this process becomes a holder: a reload replaces the client below it, and after a crash it starts
    the next one with the session. Ctrl-C ends both. Exit status 3 if the client gave up.
    """
    _run("client", config_path, log_level, control_fd, no_holder=no_holder)


def _run(role: config.Role, config_path: Path, log_level: str, control_fd: int | None, *, no_holder: bool) -> NoReturn:
    if control_fd is None and not no_holder and not is_held():
        loaded = load(config_path, role)  # a mistake needs no holder
        command = [sys.executable, "-P", "-m", "oxidize.holder", role, str(config_path.absolute()), log_level]
        command.append(str(loaded.takeover_socket))  # by which `control.who_runs` finds the holder
        os.execv(command[0], command)  # noqa: S606  # without a shell; the holder needs none of this process's memory
    serve(Generation(role, config_path, log_level, control_fd))


@main.command()
@role_options("The file is a client's.")
@click.option(
    "--as", "place", type=CONFIG_PATH, metavar="FILE", help="Where it will be: relative paths in it start from there."
)
def check(config_path: Path, role: config.Role, place: Path | None) -> None:
    """Check a configuration file and the key files that it names.

    With --as the file is a copy of one that is not in its place yet.
    """
    loaded = load(config_path, role, place)
    for warning in loaded.warnings:
        print_warning(warning)
    from oxidize.cli.mtu_check import mtu_lack  # noqa: PLC0415  # slow: it has the schema and rtnetlink

    if (lack := mtu_lack(loaded)) is not None:
        print_warning(f"{config_path}: {role}.mtu: {lack}")
    announce_key_change(role, loaded.takeover_socket, loaded.public_key)
    peers = len(loaded.peers) if isinstance(loaded, config.ServerConfig) else 1
    echo(f"{config_path}: good: {counted(peers, 'peer')}")


@main.command()
def genkey() -> None:
    """Print a new private key, as `wg genkey` does."""
    import secrets  # noqa: PLC0415  # slow, and rarely needed

    from oxidize.protocol.crypto import generate_private_key  # noqa: PLC0415  # slow, and rarely needed

    warn_of_readable_output()
    echo(format_key(generate_private_key(secrets.token_bytes)))


@main.command()
def genpsk() -> None:
    """Print a new pre-shared key, as `wg genpsk` does."""
    import secrets  # noqa: PLC0415  # slow, and rarely needed

    warn_of_readable_output()
    echo(format_key(secrets.token_bytes(KEY_SIZE)))


@main.command(short_help="Print the public key of a private key.")
def pubkey() -> None:
    """Read a private key from standard input and print its public key, as `wg pubkey` does."""
    from oxidize.protocol.crypto import public_key  # noqa: PLC0415  # slow, and rarely needed

    private = parse_key(sys.stdin.buffer.read(KEY_INPUT_BYTES_MAX).decode("latin-1").strip(" \t\r\n"))
    if private is None:
        fail(1, "standard input: expected one key, 44 characters of base64 for 32 bytes, as `oxidize genkey` prints it")
    echo(format_key(public_key(private)))


@main.command(hidden=True)
@config_option(CLIENT_CONFIG)
def clean_up(config_path: Path) -> None:
    """Remove a client's routing rules and packet filter after its end: ExecStopPost= of its unit, and a holder's."""
    from oxidize.client import unit_hooks  # noqa: PLC0415  # slow, and rarely needed

    if notify.is_held():
        changes = unit_hooks.clean_up_held(chain.from_iterable(notify.listen_fds().values()))
    else:
        crashed = os.environ.get("SERVICE_RESULT", "success") != "success"
        changes = unit_hooks.clean_up(config_path, gave_up=_has_given_up(), crashed=crashed)
    for change in changes:
        echo(change)


@main.command(hidden=True)
@config_option(CLIENT_CONFIG)
def kill_switch(config_path: Path) -> None:
    """Set a client's kill switch, if it has one: ExecStart= of oxidize-kill-switch.service, before the network."""
    from oxidize.client import unit_hooks  # noqa: PLC0415  # slow, and rarely needed

    for change in unit_hooks.set_kill_switch(config_path):
        echo(change)


@main.command(hidden=True)
@click.argument("action", type=click.Choice(["set", "remove"]))
@click.option("--unit", metavar="NAME", help="With remove: the client's unit, where this is a hook of another one.")
@config_option(CLIENT_CONFIG)
def name_servers(action: str, unit: str | None, config_path: Path) -> None:
    """Set or remove a client's name servers: hooks of its unit, which run as root although the client does not."""
    from oxidize.client import unit_hooks  # noqa: PLC0415  # slow, and rarely needed

    if action == "remove":
        unit_hooks.remove_names(config_path, gave_up=_has_given_up(), client_unit=unit)
    elif servers := unit_hooks.set_names(config_path):
        echo(f"name servers: {', '.join(servers)}")


def _has_given_up() -> bool:
    """Return whether the unit's main process gave up, after which it is not started again (systemd.exec(5))."""
    return os.environ.get("EXIT_STATUS") == str(GAVE_UP_STATUS)
