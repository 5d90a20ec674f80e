"""`oxidize peer add` and `peer renew`: a client's key, its addresses, and the configuration that it gets.

The rule: standard output has only what the client needs; reports about the server go to standard error. The client's
private key is printed once and stored nowhere.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from oxidize import config
from oxidize.cli.common import CONFIG_PATH, SERVER_CONFIG, config_option, print_json, warn_of_readable_output
from oxidize.cli.completion import peer_names
from oxidize.cli.lines import fail, print_line, print_warning
from oxidize.cli.peer_changes import (
    REMOVED_NOT_MOVED,
    apply_to_server,
    changed,
    locked_config,
    no_reload_option,
    why_inactive,
)
from oxidize.cli.peer_output import FORMATS, PICTURES, render, written
from oxidize.cli.peer_wait import wait_for_client
from oxidize.config import expiry
from oxidize.config.document import parse_toml
from oxidize.config.key_files import NO_PRESHARED_KEY
from oxidize.config.values import format_key
from oxidize.control import query
from oxidize.provision import client_files
from oxidize.provision.client_files import ClientSetup
from oxidize.provision.config_file import ConfigFile, owner_of_keys, write_secret
from oxidize.provision.new_client import ClientOptions, differences, new_client
from oxidize.provision.peer_tables import add_peer, change_peer
from oxidize.runtime import validated

if TYPE_CHECKING:
    from oxidize.config.schema import PeerTable

# "\b" keeps click from filling the lines after it.
FORMATS_HELP = """
\b
script: shell commands that write client.toml and its keys,
        for `oxidize client`
conf:   a file for wg-quick and any other WireGuard app
qr:     the same as a QR code, for phones
png,
svg:    the QR code as a picture, in the FILE of -o

NETWORKS, SERVERS and ADDRESSES are separated by commas. Without --endpoint the client gets the configuration's
public_endpoint.
"""
ADD_HELP = f"""Add a client: generate its key, assign the next free address, reload, print its configuration.
{FORMATS_HELP}"""
RENEW_HELP = f"""Give a client a new key, because its configuration is lost: reload, print its configuration.

Its name, its addresses and its access stay; the old configuration is of no use from then on. What the server does not
know of a client (--endpoint, --full, --allowed-ips, --dns, --keepalive) is given again.
{FORMATS_HELP}"""

_CLIENT_OPTIONS = (
    click.option("--endpoint", metavar="HOST[:PORT]", help="Address of the server for the client."),
    click.option(
        "--allowed-ips", metavar="NETWORKS", help="Networks it reaches through the tunnel.  [default: the tunnel's]"
    ),
    click.option("--full", "is_full", is_flag=True, help="All traffic: --allowed-ips 0.0.0.0/0,::/0"),
    click.option("--dns", metavar="SERVERS", help="Name servers and search domains."),
    click.option(
        "--keepalive",
        type=click.IntRange(0, 65_535),
        default=25,
        show_default=True,
        metavar="SECS",
        help="Interval of keepalives; 0 to disable.",
    ),
    click.option("--public-key", metavar="KEY", help="The client's own key; none is generated."),
)
_OUTPUT_OPTIONS = (
    click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        help="Print only this.  [default: conf; in a terminal, conf and qr]",
    ),
    click.option(
        "-o", "--output", type=CONFIG_PATH, metavar="FILE", help="Write to a new file, that only you can read."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the configuration."),
    click.option("--no-wait", is_flag=True, help="In a terminal: do not wait until it has connected."),
    no_reload_option,
)


def _with(options: Iterable[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Return a decorator that adds options in this order."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed([*options]), function)


@click.command(short_help="Add a client and print its configuration.", help=ADD_HELP)
@click.argument("name")
@config_option(SERVER_CONFIG)
@click.option("--address", metavar="ADDRESSES", help="Its addresses in the tunnel.  [default: the next free ones]")
@click.option("--expires", metavar="DATE", help="Last day of its access, or the moment: 2030-12-31T18:00:00Z")
@_with(_CLIENT_OPTIONS)
@click.option("--preshared-key", "with_preshared_key", is_flag=True, help="Also generate a pre-shared key.")
@click.option("--if-absent", is_flag=True, help="Succeed if it is there already, with the same options.")
@_with(_OUTPUT_OPTIONS)
def add(config_path: Path, if_absent: bool, no_reload: bool, **given: Any) -> None:
    """Add a client; ADD_HELP is the help text."""
    output, options = _output_of(given), ClientOptions(**given)
    with locked_config(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        existing = next((one for one in loaded.peers if one.name == options.name), None)
        if existing is not None and if_absent:
            _report_unchanged(options, existing, output)
            return
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        setup, warnings = new_client(options, loaded, _port_of(loaded, running))
        shown = output.render(setup, warnings)
        with written(output.path, shown), _added(file, setup, options.expires) as kept:
            print_line(f"added {setup.name}: {', '.join(str(address.ip) for address in setup.addresses)}")
            key = format_key(setup.public_key)
            apply_to_server(file, loaded, running, no_reload, lambda keys: key in keys, kept)
        output.show(setup, warnings, shown)
    if running is not None:
        output.wait(loaded, setup)


@click.command(short_help="Give a client a new key and print its configuration.", help=RENEW_HELP)
@click.argument("name", shell_complete=peer_names)
@config_option(SERVER_CONFIG)
@_with(_CLIENT_OPTIONS)
@_with(_OUTPUT_OPTIONS)
def renew(config_path: Path, no_reload: bool, **given: Any) -> None:
    """Give a client a new key; RENEW_HELP is the help text."""
    output = _output_of(given)
    with locked_config(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        text = file.content.decode()
        change_peer(text, given["name"], {})  # which says of an unknown name which one was meant
        one = next(one for one in loaded.peers if one.name == given["name"])
        has_preshared_key = one.preshared_key != NO_PRESHARED_KEY
        options = ClientOptions(**given, with_preshared_key=has_preshared_key)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        setup, warnings = new_client(options, loaded, _port_of(loaded, running), one)
        shown = output.render(setup, warnings)
        before, key = format_key(one.public_key), format_key(setup.public_key)
        is_inactive = why_inactive(one, time.time()) is not None
        with written(output.path, shown), _renewed(file, setup) as kept:
            print_line(f"renewed the key of {setup.name}")
            apply_to_server(
                file,
                loaded,
                running,
                no_reload,
                lambda keys: before not in keys and (is_inactive or key in keys),
                kept,
                REMOVED_NOT_MOVED,
            )
        output.show(setup, warnings, shown)
    if running is not None and not is_inactive:
        output.wait(loaded, setup)


def _port_of(loaded: config.ServerConfig, running: dict[str, Any] | None) -> int:
    return loaded.listen[1] if running is None else int(str(running["listen"]).rpartition(":")[2])


def _report_unchanged(options: ClientOptions, existing: "PeerTable", output: "_Output") -> None:
    """Say that a client is there already; exit with an error if that differs from what the options say."""
    if found := differences(options, existing):
        fail(2, f"NAME {options.name}: expected no such peer, or one with these options, but {'; '.join(found)}")
    print_line(f"{options.name} is there already: nothing is changed")
    if output.as_json:
        print_json(
            {
                "changed": False,
                "name": existing.name,
                "public_key": format_key(existing.public_key),
                "addresses": [str(network.network_address) for network in existing.allowed_ips],
                "expires_unix": existing.expires,
                "inactive": why_inactive(existing, time.time()),
            }
        )


class _Output(NamedTuple):
    """Where and how a client's configuration is put out; path: None for standard output. waits: for the client."""

    form: str | None
    path: Path | None
    as_json: bool
    waits: bool

    def render(self, setup: ClientSetup, warnings: Sequence[str]) -> bytes:
        """Return the output; exit if it cannot be shown."""
        if self.as_json:
            return (json.dumps(client_files.as_values(setup, warnings), indent=2) + "\n").encode()
        return render(setup, self.form, is_terminal=self.path is None and sys.stdout.isatty())

    def show(self, setup: ClientSetup, warnings: Sequence[str], shown: bytes) -> None:
        """Print the warnings, and the output where it has not gone to a file."""
        for warning in warnings:
            print_warning(warning)
        if setup.private_key is not None:
            print_line("its private key is shown only once and is not stored on this machine")
        if self.path is None:
            if setup.private_key is not None or setup.preshared_key is not None:
                warn_of_readable_output()
            click.echo(shown, nl=False, color=True)

    def wait(self, loaded: config.ServerConfig, setup: ClientSetup) -> None:
        """Wait until the client has connected, if a person looks at a terminal."""
        if self.waits and self.path is None and sys.stdout.isatty():
            wait_for_client(loaded.takeover_socket, setup.name, format_key(setup.public_key))


def _output_of(given: dict[str, Any]) -> _Output:
    """Take the options of the output from those of the command; exit if they do not fit together."""
    form, path, as_json, waits = given.pop("form"), given.pop("output"), given.pop("as_json"), not given.pop("no_wait")
    if as_json and form is not None:
        fail(2, f"--json and --format {form}: expected one of them; leave out the other")
    if form == "qr" and (path is not None or not sys.stdout.isatty()):
        fail(2, "--format qr: the output is not a terminal; use a terminal, or --format png -o FILE")
    if form in PICTURES and path is None:
        fail(2, f"--format {form}: expected a file for the picture; name one with -o FILE")
    if form in ("qr", *PICTURES) and given["public_key"] is not None:
        fail(2, f"--format {form}: expected no --public-key: the code contains the private key; use --format conf")
    return _Output(form, path, as_json, waits)


def preshared_key_files(name: str) -> tuple[str, str]:
    """Return the names that a peer's pre-shared key has by turns: a new key is written before the old one goes."""
    return f"{name}.psk", f"{name}.renewed.psk"


@contextmanager
def _added(file: ConfigFile, setup: ClientSetup, expires: str | None) -> Iterator[bytes]:
    """Add the peer to the file and write its pre-shared key; undo both if the block fails.

    Yields what a successor gets of the changed configuration.
    """
    table = {
        "name": setup.name,
        "public_key": format_key(setup.public_key),
        "allowed_ips": [str(ip_network(address.ip)) for address in setup.addresses],
        "preshared_key_file": preshared_key_files(setup.name)[0] if setup.preshared_key is not None else None,
        "expires": expiry.parse(expires) if expires is not None else None,
    }
    text = file.content.decode()
    with _put(file, setup, add_peer(text, table), preshared_key_files(setup.name)[0]) as kept:
        yield kept


@contextmanager
def _renewed(file: ConfigFile, setup: ClientSetup) -> Iterator[bytes]:
    """Change the keys of the peer, its pre-shared key too if it has one; undo that if the block fails.

    Yields what a successor gets of the changed configuration. The file of the old pre-shared key goes at the end, if
    `peer add` or this command wrote it: another one belongs to the operator.
    """
    text = file.content.decode()
    changes: dict[str, object] = {"public_key": format_key(setup.public_key)}
    old = next(peer for peer in parse_toml(text)["peer"] if peer["name"] == setup.name).get("preshared_key_file")
    own = preshared_key_files(setup.name)
    name = own[1] if old == own[0] else own[0]
    if setup.preshared_key is not None:
        changes["preshared_key_file"] = name
    with _put(file, setup, change_peer(text, setup.name, changes), name) as kept:
        yield kept
    if old in own:
        (file.path.parent / old).unlink(missing_ok=True)


@contextmanager
def _put(file: ConfigFile, setup: ClientSetup, text: str, preshared_key_name: str) -> Iterator[bytes]:
    """Give the file another text, and write a client's pre-shared key beside it; undo both if the block fails."""
    with ExitStack() as undo:
        if setup.preshared_key is not None:
            path = file.path.parent / preshared_key_name
            private_key_file = parse_toml(text)["server"].get("private_key_file")
            owner = owner_of_keys(file.path.parent / private_key_file if private_key_file is not None else None)
            write_secret(path, format_key(setup.preshared_key), owner)
            undo.callback(path.unlink, missing_ok=True)
        content = text.encode()
        kept = validated.validate("server", file.path, content).kept
        with changed(file, content):
            yield kept
        undo.pop_all()
