"""`oxidize peer`: add, list and remove the clients in a server's configuration.

The rule: standard output has only what the client needs; reports about the server go to standard error. The client's
private key is printed once and stored nowhere. A change that the running server does not apply is undone.
"""

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from oxidize import config
from oxidize.cli.common import (
    CONFIG_PATH,
    SERVER_CONFIG,
    config_option,
    print_json,
    warn_of_readable_output,
    what_runs,
)
from oxidize.cli.completion import peer_names
from oxidize.cli.lines import fail, print_line, print_warning
from oxidize.cli.reload import apply_at_start, apply_change
from oxidize.cli.replacement import who_serves
from oxidize.config.document import parse_toml
from oxidize.config.values import format_key
from oxidize.control import query
from oxidize.errors import ConfigError, OxidizeError
from oxidize.provision import client_files
from oxidize.provision.client_files import ClientSetup
from oxidize.provision.config_file import ConfigFile, locked, owner_of_keys, write_secret
from oxidize.provision.new_client import ClientOptions, new_client
from oxidize.provision.peer_tables import add_peer, remove_peer
from oxidize.runtime import validated
from oxidize.terminal.table import print_lines, table
from oxidize.terminal.units import ago

PICTURES = ("png", "svg")
FORMATS = ("script", "conf", "qr", *PICTURES)
PICTURE_REMEDY = "--format png -o FILE"
TOO_LONG_FOR_QR = "the configuration is too long for a QR code; use --format conf"
OUTPUT_MODE = 0o600  # the file contains a private key
KEY_SHOWN_CHARS = 10
# The warning of a reload about the peer that was removed, which the removal has reported.
REMOVED_NOT_MOVED = "1 peer not moved: not configured any more"

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

_no_reload_option = click.option("--no-reload", is_flag=True, help="Only change the file.")


@click.group(short_help="Add, list and remove the clients of a server.")
def peer() -> None:
    """Add, list and remove the clients of a server."""


@peer.command(short_help="Add a client and print its configuration.", help=ADD_HELP)
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
@_no_reload_option
def add(config_path: Path, form: str | None, output: Path | None, no_reload: bool, **options: Any) -> None:
    """Add a client; ADD_HELP is the help text."""
    if form == "qr" and (output is not None or not sys.stdout.isatty()):
        fail(2, "--format qr: the output is not a terminal; use a terminal, or --format png -o FILE")
    if form in PICTURES and output is None:
        fail(2, f"--format {form}: expected a file for the picture; name one with -o FILE")
    if form in ("qr", *PICTURES) and options["public_key"] is not None:
        fail(2, f"--format {form}: expected no --public-key: the code contains the private key; use --format conf")
    with _locked(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        port = loaded.listen[1] if running is None else int(str(running["listen"]).rpartition(":")[2])
        setup, warnings = new_client(ClientOptions(**options), loaded, port)
        shown = _render(setup, form, is_terminal=output is None and sys.stdout.isatty())
        with _written(output, shown), _added(file, setup) as kept:
            print_line(f"added {setup.name}: {', '.join(str(address.ip) for address in setup.addresses)}")
            key = format_key(setup.public_key)
            _apply(file, loaded, running, no_reload, lambda keys: key in keys, kept)
        for warning in warnings:
            print_warning(warning)
        if setup.private_key is not None:
            print_line("its private key is shown only once and is not stored on this machine")
        if output is None:
            if setup.private_key is not None or setup.preshared_key is not None:
                warn_of_readable_output()
            click.echo(shown, nl=False, color=True)


@peer.command("list", short_help="List the clients and whether they are connected.")
@config_option(SERVER_CONFIG)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_(config_path: Path, as_json: bool) -> None:
    """List the clients of the configuration and whether they are connected."""
    loaded = config.load_server(config_path)
    running = query.find(loaded.takeover_socket)
    rows = _rows(loaded, running)
    if as_json:
        print_json(rows)
        return
    headings = ["peer", "public key", "allowed ips", "connected", "last handshake"]
    cells = [
        [
            row["name"],
            row["public_key"][:KEY_SHOWN_CHARS],
            ", ".join(row["allowed_ips"]) or "-",
            _connected(row),
            ago(row["last_handshake_unix"]),
        ]
        for row in rows
    ]
    if running is None:  # only a running server knows the rest
        headings = [*headings[:3], ""]
        cells = [[*cell[:3], "" if row["enabled"] else "disabled"] for cell, row in zip(cells, rows, strict=True)]
    if rows:
        print_lines(table(headings, cells))
    else:
        print_line("no peers yet: `oxidize peer add NAME` adds one")
    if running is None:
        for line in what_runs(loaded.takeover_socket) or ["no server is running"]:
            print_line(line)
    elif unloaded := [row["name"] for row in rows if not row["is_loaded"]]:
        print_line(f"not loaded by the running server: {', '.join(unloaded)}; run `oxidize reload`")


def _connected(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return "disabled"
    return "yes" if row["has_session"] else "no"


def _rows(loaded: config.ServerConfig, running: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return one row for each peer; values that only a running server knows are None without one."""
    known = {found["public_key"]: found for found in running["peers"]} if running is not None else {}
    rows = []
    for one in loaded.peers:
        key = format_key(one.public_key)
        found = known.get(key, {})
        rows.append(
            {
                "name": one.name,
                "public_key": key,
                "allowed_ips": [str(network) for network in one.allowed_ips],
                "enabled": one.enabled,
                "is_loaded": bool(found) == one.enabled if running is not None else None,
                "has_session": found.get("has_session", False) if running is not None else None,
                "endpoint": found.get("endpoint"),
                "last_handshake_unix": found.get("last_handshake_unix", 0),
            }
        )
    return rows


@peer.command(short_help="Remove a client.")
@click.argument("name", shell_complete=peer_names)
@config_option(SERVER_CONFIG)
@_no_reload_option
def remove(name: str, config_path: Path, no_reload: bool) -> None:
    """Remove a client: its session ends with the reload."""
    with _locked(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        removed = remove_peer(file.content.decode(), name)
        content = removed.text.encode()
        kept = validated.validate("server", config_path, content).kept
        key = next(format_key(one.public_key) for one in loaded.peers if one.name == name)
        with _changed(file, content):
            print_line(f"removed {name}{' and the comment above it' if removed.with_comment else ''}")
            _apply(file, loaded, running, no_reload, lambda keys: key not in keys, kept, REMOVED_NOT_MOVED)
        if running is not None and any(
            found["has_session"] for found in running["peers"] if found["public_key"] == key
        ):
            print_line("its session has ended")
        preshared_key_file = removed.table.get("preshared_key_file")
        others = [one.get("preshared_key_file") for one in parse_toml(removed.text).get("peer", [])]
        # Only a file that `peer add` wrote; one with another name belongs to the operator.
        if preshared_key_file == f"{name}.psk" and preshared_key_file not in others:
            (config_path.parent / preshared_key_file).unlink(missing_ok=True)


# --- Changing the file ---


def _locked(config_path: Path) -> AbstractContextManager[ConfigFile]:
    return locked(config_path, lambda: print_line(f"waiting for another command that changes {config_path}"))


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
        with _changed(file, content):
            yield kept
        undo.pop_all()


@contextmanager
def _changed(file: ConfigFile, content: bytes) -> Iterator[None]:
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


def _apply(
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


# --- Output ---


@contextmanager
def _written(path: Path | None, content: bytes) -> Iterator[None]:
    """Write the output to a new file, before the peer is added; remove the file if the block fails. None: no file."""
    if path is None:
        yield
        return
    with ExitStack() as undo:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, OUTPUT_MODE), "wb") as file:
                undo.callback(path.unlink, missing_ok=True)
                file.write(content)
        except OSError as error:
            fail(2, f"-o {path}: {error.strerror}: expected the name of a new file, in a folder that can be written to")
        yield
        undo.pop_all()


def _render(setup: ClientSetup, form: str | None, *, is_terminal: bool) -> bytes:
    """Return the output; exit if only a QR code is wanted and there can be none."""
    conf = client_files.wg_quick(setup)
    if form == "script":
        return client_files.script(setup).encode()
    if form == "conf" or (form is None and not is_terminal):
        return conf.encode()
    from oxidize.provision import qr_code  # noqa: PLC0415  # slow, and rarely needed

    if form in PICTURES:
        return qr_code.picture(client_files.compact(conf), form) or fail(2, f"--format {form}: {TOO_LONG_FOR_QR}")
    code, why_not = _drawn(conf)
    if form == "qr":
        return code.encode() if code else fail(2, f"--format qr: {why_not}")
    name = client_files.wg_quick_file_name(setup.name)
    parts = [(f"For wg-quick, any WireGuard app, and `oxidize import --client`: {name}", conf)]
    if setup.private_key is not None:  # last: the end of the output is what a small terminal shows
        parts.append(("For a phone: scan this with the WireGuard app", code or f"(no QR code: {why_not})\n"))
    return "".join(f"\n{click.style(heading, bold=True)}\n{text}" for heading, text in parts).encode()


def _drawn(conf: str) -> tuple[str, str]:
    """Return a QR code of a client's file, or "" and the reason if this terminal cannot show it."""
    from oxidize.provision.qr_code import draw  # noqa: PLC0415  # slow, and rarely needed

    size, encoding = shutil.get_terminal_size(), sys.stdout.encoding or ""
    if "utf" not in encoding.lower():
        return "", f"expected a terminal of UTF-8, not {encoding}: set LC_ALL=C.UTF-8; or use {PICTURE_REMEDY}"
    lines = draw(client_files.compact(conf), size.columns, size.lines - 1)  # the last line is the shell's
    if lines is None:
        return "", f"it does not fit a terminal of {size.columns}x{size.lines}: enlarge it; or use {PICTURE_REMEDY}"
    return "".join(f"{line}\n" for line in lines), ""
