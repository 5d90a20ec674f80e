"""`oxidize peer`: list and remove the clients in a server's configuration, and give or take their access.

The rule: a change is in force when the command has succeeded, or the command says when it will be.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oxidize import config
from oxidize.cli.common import SERVER_CONFIG, config_option, print_json, what_runs
from oxidize.cli.completion import peer_names
from oxidize.cli.lines import print_line, print_warning
from oxidize.cli.peer_add import add, preshared_key_files, renew
from oxidize.cli.peer_changes import (
    REMOVED_NOT_MOVED,
    apply_to_server,
    changed,
    locked_config,
    no_reload_option,
    why_inactive,
)
from oxidize.config.document import parse_toml
from oxidize.config.values import format_key
from oxidize.control import query
from oxidize.errors import ConfigError
from oxidize.provision.peer_tables import change_peer, remove_peer
from oxidize.runtime import validated
from oxidize.terminal.table import print_lines, table
from oxidize.terminal.units import ago, minute

if TYPE_CHECKING:
    from oxidize.config.schema import PeerTable

KEY_SHOWN_CHARS = 10
# The warning of a reload about the peer that was disabled, which the command has reported.
DISABLED_NOT_MOVED = "1 peer not moved: disabled or expired"


@click.group(short_help="Add, list and remove the clients of a server.")
def peer() -> None:
    """Add, list and remove the clients of a server, and give or take their access."""


peer.add_command(add)
peer.add_command(renew)


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
    headings = ["peer", "public key", "allowed ips", "expires", "connected", "last handshake"]
    cells = [
        [
            row["name"],
            row["public_key"][:KEY_SHOWN_CHARS],
            ", ".join(row["allowed_ips"]) or "-",
            minute(row["expires_unix"]) if row["expires_unix"] is not None else "-",
            _connected(row),
            ago(row["last_handshake_unix"]),
        ]
        for row in rows
    ]
    if running is None:  # only a running server knows the rest
        headings = [*headings[:4], ""]
        cells = [[*cell[:4], row["inactive"] or ""] for cell, row in zip(cells, rows, strict=True)]
    if all(row["expires_unix"] is None for row in rows):
        headings, cells = _without(3, headings), [_without(3, cell) for cell in cells]
    if rows:
        print_lines(table(headings, cells))
    else:
        print_line("no peers yet: `oxidize peer add NAME` adds one")
    if running is None:
        for line in what_runs(loaded.takeover_socket) or ["no server is running"]:
            print_line(line)
    elif unloaded := [row["name"] for row in rows if not row["is_loaded"]]:
        print_line(f"not loaded by the running server: {', '.join(unloaded)}; run `oxidize reload`")


def _without(column: int, cells: list[str]) -> list[str]:
    return cells[:column] + cells[column + 1 :]


def _connected(row: dict[str, Any]) -> str:
    return str(row["inactive"] or ("yes" if row["has_session"] else "no"))


def _rows(loaded: config.ServerConfig, running: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return one row for each peer; values that only a running server knows are None without one."""
    known = {found["public_key"]: found for found in running["peers"]} if running is not None else {}
    rows = []
    now = time.time()
    for one in loaded.peers:
        inactive = why_inactive(one, now)
        key = format_key(one.public_key)
        found = known.get(key, {})
        rows.append(
            {
                "name": one.name,
                "public_key": key,
                "allowed_ips": [str(network) for network in one.allowed_ips],
                "enabled": one.enabled,
                "expires_unix": one.expires,
                "inactive": inactive,
                "is_loaded": bool(found) == (inactive is None) if running is not None else None,
                "has_session": found.get("has_session", False) if running is not None else None,
                "endpoint": found.get("endpoint"),
                "last_handshake_unix": found.get("last_handshake_unix", 0),
            }
        )
    return rows


@peer.command(short_help="Remove a client.")
@click.argument("name", shell_complete=peer_names)
@config_option(SERVER_CONFIG)
@no_reload_option
def remove(name: str, config_path: Path, no_reload: bool) -> None:
    """Remove a client: its session ends with the reload."""
    with locked_config(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        removed = remove_peer(file.content.decode(), name)
        content = removed.text.encode()
        kept = validated.validate("server", config_path, content).kept
        key = next(format_key(one.public_key) for one in loaded.peers if one.name == name)
        with changed(file, content):
            print_line(f"removed {name}{' and the comment above it' if removed.with_comment else ''}")
            apply_to_server(file, loaded, running, no_reload, lambda keys: key not in keys, kept, REMOVED_NOT_MOVED)
        if _had_session(running, key):
            print_line("its session has ended")
        preshared_key_file = removed.table.get("preshared_key_file")
        others = [one.get("preshared_key_file") for one in parse_toml(removed.text).get("peer", [])]
        # Only a file that `peer add` or `peer renew` wrote; one with another name belongs to the operator.
        if preshared_key_file in preshared_key_files(name) and preshared_key_file not in others:
            (config_path.parent / preshared_key_file).unlink(missing_ok=True)


@peer.command(short_help="Take a client's access, and keep it in the file.")
@click.argument("name", shell_complete=peer_names)
@config_option(SERVER_CONFIG)
@no_reload_option
def disable(name: str, config_path: Path, no_reload: bool) -> None:
    """Take a client's access: its session ends with the reload, its key and its addresses stay in the file."""
    with locked_config(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        content = change_peer(file.content.decode(), name, {"enabled": False}).encode()
        one = _peer_of(loaded, name)
        if not one.enabled:
            print_line(f"{name} is disabled already")
            return
        kept = validated.validate("server", config_path, content).kept
        key = format_key(one.public_key)
        with changed(file, content):
            print_line(f"disabled {name}")
            apply_to_server(file, loaded, running, no_reload, lambda keys: key not in keys, kept, DISABLED_NOT_MOVED)
        if _had_session(running, key):
            print_line("its session has ended")


@peer.command(short_help="Give a disabled client its access back.")
@click.argument("name", shell_complete=peer_names)
@config_option(SERVER_CONFIG)
@no_reload_option
def enable(name: str, config_path: Path, no_reload: bool) -> None:
    """Give a disabled client its access back: the same key, the same addresses."""
    with locked_config(config_path) as file:
        loaded = config.load_server(config_path, content=file.content)
        running = None if no_reload else query.find_peers(loaded.takeover_socket)
        content = change_peer(file.content.decode(), name, {"enabled": None}).encode()
        one = _peer_of(loaded, name)
        if one.enabled:
            print_line(f"{name} is enabled already")
            return
        _check_addresses(one, loaded)
        kept = validated.validate("server", config_path, content).kept
        key, has_expired = format_key(one.public_key), one.expires is not None and one.expires <= time.time()
        with changed(file, content):
            print_line(f"enabled {name}")
            apply_to_server(file, loaded, running, no_reload, lambda keys: has_expired or key in keys, kept)
        if has_expired:
            print_warning(f"{name} has expired, and so cannot connect; correct `expires` of it in {config_path}")


def _peer_of(loaded: config.ServerConfig, name: str) -> "PeerTable":
    return next(one for one in loaded.peers if one.name == name)


def _had_session(running: dict[str, Any] | None, key: str) -> bool:
    return running is not None and any(each["has_session"] for each in running["peers"] if each["public_key"] == key)


def _check_addresses(one: "PeerTable", loaded: config.ServerConfig) -> None:
    """Raise ConfigError where another peer was given an address of a disabled one meanwhile."""
    owners = {network: other.name for other in loaded.peers if other.enabled for network in other.allowed_ips}
    problems = [
        f"{one.name}: {network} belongs to {owners[network]} now: expected addresses of its own; correct allowed_ips "
        "of one of them first"
        for network in one.allowed_ips
        if network in owners
    ]
    if problems:
        raise ConfigError(*problems)
