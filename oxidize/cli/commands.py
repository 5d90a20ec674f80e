"""The command line: `oxidize`, and `oxidize-server` and `oxidize-client` as names of its two main subcommands.

The rule: an error is one line for each problem on standard error, without a traceback; exit status 2 for what the
operator can mend in the configuration or the command, 3 for a client that gave its server up, 1 for what else failed, 0
otherwise.
"""

import base64
import json
import secrets
import sys
from pathlib import Path

import click

import oxidize
from oxidize import config
from oxidize.cli.client_hooks import clean_up, name_servers
from oxidize.cli.common import (
    CLIENT_CONFIG,
    LOG_LEVELS,
    SERVER_CONFIG,
    config_option,
    default_config,
    either_config_option,
    errors_as_lines,
    fail,
    role_of,
    warn_of_readable_output,
)
from oxidize.cli.deploy import deploy, releases, rollback
from oxidize.cli.import_wg_quick import import_wg_quick
from oxidize.cli.peers import peer
from oxidize.cli.rehearse import rehearse
from oxidize.cli.reload import replace_process, who_serves
from oxidize.cli.watch import watch
from oxidize.errors import ConfigError, TakeoverError

KEY_SIZE = 32
KEY_INPUT_BYTES_MAX = 4096


_control_option = click.option("--control-fd", type=int, hidden=True, help="The link to the coordinator of a reload.")
_log_level_option = click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="Log this and what is worse."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(oxidize.__version__, prog_name="oxidize")
def main() -> None:
    """Relay WireGuard tunnels by a process that can be replaced under traffic."""


@main.command(short_help="Run a server in the foreground.")
@config_option(SERVER_CONFIG)
@_log_level_option
@_control_option
def server(config_path: Path, log_level: str, control_fd: int | None) -> None:
    """Run a server in the foreground.

    Where another server with the same takeover socket runs already, this one takes over from it: its sockets, its
    sessions, every packet.
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

    Where another client with the same takeover socket runs already, this one takes over from it.
    """
    from oxidize.runtime.daemon import run  # noqa: PLC0415  # the other commands need none of it

    with errors_as_lines(is_coordinated=control_fd is not None):
        sys.exit(run("client", config_path, log_level, control_fd))


@main.command()
@either_config_option
@click.option("--client", "is_client", is_flag=True, help="The file is a client's.")
def check(config_path: Path | None, is_client: bool) -> None:
    """Check a configuration, and do nothing else."""
    config_path = config_path or default_config(is_client)
    with errors_as_lines():
        loaded = _load(config_path, is_client)
        for warning in loaded.warnings:
            click.echo(f"oxidize: warning: {warning}", err=True)
        peers = len(loaded.peers) if isinstance(loaded, config.ServerConfig) else 1
        click.echo(f"{config_path}: good: {peers} {'peer' if peers == 1 else 'peers'}")


@main.command(short_help="Replace the running process by a fresh one.")
@either_config_option
@click.option("--client", "is_client", is_flag=True, help="Reload a client instead of a server.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="As of `oxidize server`.  [default: as before]")
def reload(config_path: Path | None, is_client: bool, log_level: str | None) -> None:
    """Replace the running process by a fresh one: new code, new configuration, the same sessions.

    Exit status 1, with the reason, if the new process could not take over; then the old one serves as before.
    """
    role = role_of(is_client)
    config_path = config_path or default_config(is_client)
    with errors_as_lines():
        try:
            loaded = _load(config_path, is_client)
            reloaded = replace_process(role, config_path, loaded.takeover_socket, log_level)
        except ConfigError as error:
            fail(2, *error.problems, *who_serves(config_path, role, str(error)))
        except TakeoverError as error:
            fail(1, f"reload {error}", *who_serves(config_path, role, str(error)))
        click.echo(reloaded.summary)
        for warning in reloaded.warnings:
            click.echo(f"oxidize: {warning}", err=True)


@main.command(short_help="Show the running process, its peers and last takeovers.")
@either_config_option
@click.option("--client", "is_client", is_flag=True, help="Ask a client instead of a server.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(config_path: Path | None, is_client: bool, as_json: bool) -> None:
    """Show the running process, its peers and its last takeovers.

    It is found also where the configuration has been broken since it was started.
    """
    from oxidize.cli.status_page import render  # noqa: PLC0415
    from oxidize.control.query import fetch  # noqa: PLC0415

    config_path = config_path or default_config(is_client)
    with errors_as_lines():
        answer = fetch(config.takeover_socket_of(config_path, role_of(is_client)))
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            render(answer)


@main.command(short_help="Refuse new sessions until nobody uses the old ones.")
@either_config_option
@click.option("--cancel", is_flag=True, help="Accept new sessions again.")
def drain(config_path: Path | None, cancel: bool) -> None:
    """Drain a server by hand, as before a reboot: no new sessions, and wait until nobody uses the old ones.

    It waits for drain_timeout_secs at most. Afterwards the server still runs, and still refuses new sessions, until it
    is stopped, reloaded, or told to accept them again (--cancel).
    """
    from oxidize.cli.drain_page import watch_drain  # noqa: PLC0415
    from oxidize.control.query import ACCEPT, fetch  # noqa: PLC0415

    with errors_as_lines():
        takeover_socket = config.takeover_socket_of(config_path or SERVER_CONFIG, "server")
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
    click.echo(base64.b64encode(generate_private_key(secrets.token_bytes)).decode())


@main.command()
def genpsk() -> None:
    """Print a new pre-shared key, as `wg genpsk` does."""
    warn_of_readable_output()
    click.echo(base64.b64encode(secrets.token_bytes(KEY_SIZE)).decode())


@main.command(short_help="Print the public key of a private key.")
def pubkey() -> None:
    """Read a private key on standard input and print its public key, as `wg pubkey` does."""
    from oxidize.config.values import parse_key  # noqa: PLC0415
    from oxidize.protocol.crypto import public_key  # noqa: PLC0415

    private = parse_key(sys.stdin.buffer.read(KEY_INPUT_BYTES_MAX).decode("latin-1").strip(" \t\r\n"))
    if private is None:
        fail(1, "standard input: expected one key, 44 characters of base64 for 32 bytes, as `oxidize genkey` prints it")
    click.echo(base64.b64encode(public_key(private)).decode())


main.add_command(watch)
main.add_command(peer)
main.add_command(rehearse)
main.add_command(import_wg_quick)
main.add_command(deploy)
main.add_command(rollback)
main.add_command(releases)
main.add_command(clean_up)
main.add_command(name_servers)


def _load(config_path: Path, is_client: bool) -> config.ServerConfig | config.ClientConfig:
    return config.load_client(config_path) if is_client else config.load_server(config_path)


def server_main() -> None:
    """Run `oxidize server`."""
    server(prog_name="oxidize-server")


def client_main() -> None:
    """Run `oxidize client`."""
    client(prog_name="oxidize-client")
