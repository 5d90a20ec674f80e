"""The command line: `oxidize`, and `oxidize-server` and `oxidize-client` as names of its two main subcommands.

The hidden commands `clean-up` and `name-servers` are hooks that the client's systemd unit runs; rarely used by hand.
"""

import json
import os
import secrets
import sys
from pathlib import Path

import click

import oxidize
from oxidize import config
from oxidize.cli.common import (
    CLIENT_CONFIG,
    GAVE_UP_STATUS,
    LOG_LEVELS,
    SERVER_CONFIG,
    config_option,
    errors_as_lines,
    fail,
    json_option,
    print_warning,
    role_options,
    warn_of_readable_output,
)
from oxidize.cli.deploy import deploy, releases, rollback
from oxidize.cli.import_wg_quick import import_wg_quick
from oxidize.cli.peers import peer
from oxidize.cli.rehearse import rehearse
from oxidize.cli.reload import replace_process, who_serves
from oxidize.cli.watch import watch
from oxidize.config.values import format_key, parse_key
from oxidize.errors import ConfigError, TakeoverError

KEY_SIZE = 32
KEY_INPUT_BYTES_MAX = 4096


_control_option = click.option("--control-fd", type=int, hidden=True, help="Socket of the coordinator of a reload.")
_log_level_option = click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="Lowest level to log."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(oxidize.__version__, prog_name="oxidize")
def main() -> None:
    """Relay WireGuard tunnels with a process that can be replaced under traffic."""


@main.command(short_help="Run a server in the foreground.")
@config_option(SERVER_CONFIG)
@_log_level_option
@_control_option
def server(config_path: Path, log_level: str, control_fd: int | None) -> None:
    """Run a server in the foreground.

    If a server with the same takeover socket is already running, this one takes over its sockets and its sessions
    without losing a packet.
    """
    from oxidize.runtime.daemon import run  # noqa: PLC0415  # the other commands need none of it

    with errors_as_lines(is_coordinated=control_fd is not None):
        sys.exit(run("server", config_path, log_level, control_fd))


@main.command(short_help="Run a client in the foreground.")
@config_option(CLIENT_CONFIG)
@_log_level_option
@_control_option
def client(config_path: Path, log_level: str, control_fd: int | None) -> None:
    """Run a client in the foreground.

    If a client with the same takeover socket is already running, this one takes over from it.
    """
    from oxidize.runtime.daemon import run  # noqa: PLC0415  # the other commands need none of it

    with errors_as_lines(is_coordinated=control_fd is not None):
        sys.exit(run("client", config_path, log_level, control_fd))


@main.command()
@role_options("The file is a client's.")
def check(config_path: Path, role: config.Role) -> None:
    """Check a configuration file and the key files that it names."""
    with errors_as_lines():
        loaded = _load(config_path, role)
        for warning in loaded.warnings:
            print_warning(warning)
        peers = len(loaded.peers) if isinstance(loaded, config.ServerConfig) else 1
        click.echo(f"{config_path}: good: {peers} {'peer' if peers == 1 else 'peers'}")


@main.command(short_help="Replace the running process by a new one.")
@role_options("Reload a client instead of a server.")
@click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), help="Log level of the new process.  [default: that of the old one]"
)
def reload(config_path: Path, role: config.Role, log_level: str | None) -> None:
    """Replace the running process by a new one: new code, new configuration, the same sessions.

    Exit status 1, with the reason, if the new process could not take over; the old one then continues to serve. Exit
    status 2 for a mistake in the configuration; then no process is started.
    """
    with errors_as_lines():
        try:
            loaded = _load(config_path, role)
            reloaded = replace_process(role, config_path, loaded.takeover_socket, log_level)
        except ConfigError as error:
            fail(2, *error.problems, *who_serves(config_path, role, str(error)))
        except TakeoverError as error:
            fail(1, f"reload {error}", *who_serves(config_path, role, str(error)))
        click.echo(reloaded.summary)
        for warning in reloaded.warnings:
            click.echo(f"oxidize: {warning}", err=True)


@main.command(short_help="Show the running process, its peers and its last takeovers.")
@role_options("Ask a client instead of a server.")
@json_option
def status(config_path: Path, role: config.Role, as_json: bool) -> None:
    """Show the running process, its peers and its last takeovers.

    This works even if the configuration file has become invalid since the process was started.
    """
    from oxidize.cli.status_page import render  # noqa: PLC0415
    from oxidize.control.query import fetch  # noqa: PLC0415

    with errors_as_lines():
        answer = fetch(config.takeover_socket_of(config_path, role))
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            render(answer)


@main.command(short_help="Refuse new sessions and wait for the old ones to end.")
@config_option(SERVER_CONFIG)
@click.option("--cancel", is_flag=True, help="Accept new sessions again.")
def drain(config_path: Path, cancel: bool) -> None:
    """Refuse new sessions and wait until the old ones are no longer used, for example before a reboot.

    The wait is limited to drain_timeout_secs. Afterwards the server still runs and still refuses new sessions, until it
    is stopped, reloaded, or told to accept them again (--cancel).
    """
    from oxidize.cli.drain_page import watch_drain  # noqa: PLC0415
    from oxidize.control.query import ACCEPT, fetch  # noqa: PLC0415

    with errors_as_lines():
        takeover_socket = config.takeover_socket_of(config_path, "server")
        if cancel:
            found = fetch(takeover_socket, ACCEPT)
            click.echo(f"generation {found['generation']}, pid {found['pid']}, accepts new sessions")
        else:
            watch_drain(takeover_socket)


@main.command()
def genkey() -> None:
    """Print a new private key, as `wg genkey` does."""
    from oxidize.protocol.crypto import generate_private_key  # noqa: PLC0415

    warn_of_readable_output()
    click.echo(format_key(generate_private_key(secrets.token_bytes)))


@main.command()
def genpsk() -> None:
    """Print a new pre-shared key, as `wg genpsk` does."""
    warn_of_readable_output()
    click.echo(format_key(secrets.token_bytes(KEY_SIZE)))


@main.command(short_help="Print the public key of a private key.")
def pubkey() -> None:
    """Read a private key from standard input and print its public key, as `wg pubkey` does."""
    from oxidize.protocol.crypto import public_key  # noqa: PLC0415

    private = parse_key(sys.stdin.buffer.read(KEY_INPUT_BYTES_MAX).decode("latin-1").strip(" \t\r\n"))
    if private is None:
        fail(1, "standard input: expected one key, 44 characters of base64 for 32 bytes, as `oxidize genkey` prints it")
    click.echo(format_key(public_key(private)))


@main.command(hidden=True)
@config_option(CLIENT_CONFIG)
def clean_up(config_path: Path) -> None:
    """Remove a client's routing rules after its end: ExecStopPost= of its unit."""
    from oxidize.client import unit_hooks  # noqa: PLC0415

    with errors_as_lines():
        for change in unit_hooks.clean_up(config_path, gave_up=_has_given_up()):
            click.echo(change)


@main.command(hidden=True)
@click.argument("action", type=click.Choice(["set", "remove"]))
@config_option(CLIENT_CONFIG)
def name_servers(action: str, config_path: Path) -> None:
    """Set or remove a client's name servers: hooks of its unit, which run as root although the client does not."""
    from oxidize.client import unit_hooks  # noqa: PLC0415

    with errors_as_lines():
        if action == "remove":
            unit_hooks.remove_names(config_path, gave_up=_has_given_up())
        elif servers := unit_hooks.set_names(config_path):
            click.echo(f"name servers: {', '.join(servers)}")


def _has_given_up() -> bool:
    """Return whether the unit's main process gave up, after which it is not started again (systemd.exec(5))."""
    return os.environ.get("EXIT_STATUS") == str(GAVE_UP_STATUS)


main.add_command(watch)
main.add_command(peer)
main.add_command(rehearse)
main.add_command(import_wg_quick)
main.add_command(deploy)
main.add_command(rollback)
main.add_command(releases)


def _load(config_path: Path, role: config.Role) -> config.ServerConfig | config.ClientConfig:
    return config.load_client(config_path) if role == "client" else config.load_server(config_path)


def server_main() -> None:
    """Run `oxidize server`."""
    server(prog_name="oxidize-server")


def client_main() -> None:
    """Run `oxidize client`."""
    client(prog_name="oxidize-client")
