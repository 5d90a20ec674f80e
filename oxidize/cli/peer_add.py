"""`oxidize peer add`: a new client, its key, its address, and the configuration that it gets.

The rule: standard output has only what the client needs; reports about the server go to standard error. The client's
private key is printed once and stored nowhere.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from oxidize import config
from oxidize.cli.common import CONFIG_PATH, SERVER_CONFIG, config_option, warn_of_readable_output
from oxidize.cli.lines import fail, print_line, print_warning
from oxidize.cli.peer_changes import apply_to_server, changed, locked_config, no_reload_option
from oxidize.cli.peer_output import FORMATS, PICTURES, render, written
from oxidize.config.document import parse_toml
from oxidize.config.values import format_key
from oxidize.control import query
from oxidize.provision.client_files import ClientSetup
from oxidize.provision.config_file import ConfigFile, owner_of_keys, write_secret
from oxidize.provision.new_client import ClientOptions, new_client
from oxidize.provision.peer_tables import add_peer
from oxidize.runtime import validated

# "\b" keeps click from filling the lines after it.
ADD_HELP = """Add a client: generate its key, assign the next free address, reload, print its configuration.

\b
script: shell commands that write client.toml and its keys,
        for `oxidize client`
conf:   a file for wg-quick and any other WireGuard app
qr:     the same as a QR code, for phones
png,
svg:    the QR code as a picture, in the FILE of -o

NETWORKS and SERVERS are separated by commas. Without --endpoint the client gets the configuration's public_endpoint.
"""


@click.command(short_help="Add a client and print its configuration.", help=ADD_HELP)
@click.argument("name")
@config_option(SERVER_CONFIG)
@click.option("--endpoint", metavar="HOST[:PORT]", help="Address of the server for the client.")
@click.option(
    "--allowed-ips", metavar="NETWORKS", help="Networks it reaches through the tunnel.  [default: the tunnel's]"
)
@click.option("--full", "is_full", is_flag=True, help="All traffic: --allowed-ips 0.0.0.0/0,::/0")
@click.option("--dns", metavar="SERVERS", help="Name servers and search domains.")
@click.option(
    "--keepalive",
    type=click.IntRange(0, 65_535),
    default=25,
    show_default=True,
    metavar="SECS",
    help="Interval of keepalives; 0 to disable.",
)
@click.option("--public-key", metavar="KEY", help="The client's own key; none is generated.")
@click.option("--preshared-key", "with_preshared_key", is_flag=True, help="Also generate a pre-shared key.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="Print only this.  [default: conf; in a terminal, conf and qr]"
)
@click.option("-o", "--output", type=CONFIG_PATH, metavar="FILE", help="Write to a new file, that only you can read.")
@no_reload_option
def add(config_path: Path, form: str | None, output: Path | None, no_reload: bool, **options: Any) -> None:
    """Add a client; ADD_HELP is the help text."""
    if form == "qr" and (output is not None or not sys.stdout.isatty()):
        fail(2, "--format qr: the output is not a terminal; use a terminal, or --format png -o FILE")
    if form in PICTURES and output is None:
        fail(2, f"--format {form}: expected a file for the picture; name one with -o FILE")
    if form in ("qr", *PICTURES) and options["public_key"] is not None:
        fail(2, f"--format {form}: expected no --public-key: the code contains the private key; use --format conf")
    with locked_config(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        port = loaded.listen[1] if running is None else int(str(running["listen"]).rpartition(":")[2])
        setup, warnings = new_client(ClientOptions(**options), loaded, port)
        shown = render(setup, form, is_terminal=output is None and sys.stdout.isatty())
        with written(output, shown), _added(file, setup) as kept:
            print_line(f"added {setup.name}: {', '.join(str(address.ip) for address in setup.addresses)}")
            key = format_key(setup.public_key)
            apply_to_server(file, loaded, running, no_reload, lambda keys: key in keys, kept)
        for warning in warnings:
            print_warning(warning)
        if setup.private_key is not None:
            print_line("its private key is shown only once and is not stored on this machine")
        if output is None:
            if setup.private_key is not None or setup.preshared_key is not None:
                warn_of_readable_output()
            click.echo(shown, nl=False, color=True)


@contextmanager
def _added(file: ConfigFile, setup: ClientSetup) -> Iterator[bytes]:
    """Add the peer to the file and write its pre-shared key; undo both if the block fails.

    Yields what a successor gets of the changed configuration.
    """
    text = file.content.decode()
    table = {
        "name": setup.name,
        "public_key": format_key(setup.public_key),
        "allowed_ips": [str(ip_network(address.ip)) for address in setup.addresses],
        "preshared_key_file": f"{setup.name}.psk" if setup.preshared_key is not None else None,
    }
    content = add_peer(text, table).encode()
    with ExitStack() as undo:
        if setup.preshared_key is not None:
            path = file.path.parent / f"{setup.name}.psk"
            private_key_file = parse_toml(text)["server"].get("private_key_file")
            owner = owner_of_keys(file.path.parent / private_key_file if private_key_file is not None else None)
            write_secret(path, format_key(setup.preshared_key), owner)
            undo.callback(path.unlink, missing_ok=True)
        kept = validated.validate("server", file.path, content).kept
        with changed(file, content):
            yield kept
        undo.pop_all()
