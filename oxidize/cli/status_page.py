"""`oxidize status`, and what it prints for people.

Rule: no value is cut; it fits 80 columns where the values allow it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from oxidize import config
from oxidize.cli.common import json_option, print_json, role_options
from oxidize.control import query
from oxidize.terminal.table import print_lines, table
from oxidize.terminal.units import ago, byte_count, duration, milliseconds
from oxidize.text import counted, one_line, release_name

TAKEOVERS_SHOWN = 5
PEER_HEADINGS = ("peer", "endpoint", "last handshake", "received", "sent")
TAKEOVER_HEADINGS = ("takeover", "result", "generation", "sessions", "blackout", "")


@click.command(short_help="Show the running process, its peers and its last takeovers.")
@role_options("Ask a client instead of a server.")
@json_option
def status(config_path: Path, role: config.Role, as_json: bool) -> None:
    """Show the running process, its peers and its last takeovers.

    This works even if the configuration file has become invalid since the process was started.
    """
    answer = query.fetch(config.takeover_socket_of(config_path, role))
    if as_json:
        print_json(answer)
    else:
        render(answer)


def render(status: dict[str, Any]) -> None:
    """Print a status."""
    print_lines(_lines(status))


def _lines(status: dict[str, Any]) -> Iterator[Text]:
    interface = f"interface {status['interface']}" if status["network"] == "tun" else "userspace network"
    interface += ", nat" if status.get("nat") else ""
    head = [
        (status["role"], f"{status['state']}, generation {status['generation']}, release {_release(status)}"),
        ("process", f"pid {status['pid']}, up {duration(status['uptime_secs'])}"),
        ("listening", f"{status['listen']}, {interface}"),
        ("public key", status["public_key"]),
        *([("connection", _connection(status["connection"]))] if status.get("connection") else []),
        *[("missing", one_line(missing)) for missing in status.get("network_missing", ())],
        ("sessions", f"{status['sessions']} of {counted(len(status['peers']), 'peer')}"),
        *([("waiting", waiting)] if (waiting := _waiting(status["peers"])) else []),
        ("dropped", _drops(status)),
    ]
    if problem := status.get("metrics_listen_problem"):
        head.append(("metrics", f"no /health, no /metrics, tried again: {problem}"))
    width = max(len(name) for name, _ in head)
    for name, value in head:
        yield Text.assemble((name.ljust(width), "bold"), "  ", value)
    if status["peers"]:
        yield Text()
        yield from table(PEER_HEADINGS, [_peer_row(peer) for peer in status["peers"]], right={3, 4})
    if status["takeovers"]:
        yield Text()
        shown = status["takeovers"][-TAKEOVERS_SHOWN:]
        yield from table(TAKEOVER_HEADINGS, [_takeover_row(entry) for entry in shown], right={2, 3, 4})


def _release(status: dict[str, Any]) -> str:
    return release_name(status["release"], status.get("release_folder", ""))


def _peer_row(peer: dict[str, Any]) -> tuple[str, ...]:
    return (
        _name(peer),
        peer["endpoint"] or "-",
        ago(peer["last_handshake_unix"]),
        byte_count(peer["received_bytes"]),
        byte_count(peer["sent_bytes"]),
    )


def _waiting(peers: list[dict[str, Any]]) -> str:
    """Return the peers whose endpoint is a name that has no answer yet, each with the name and the reason."""
    found = (peer for peer in peers if peer.get("waits_for_name"))
    return "; ".join(f"{_name(peer)} for {peer['configured_endpoint']}: {peer['waits_for_name']}" for peer in found)


def _name(peer: dict[str, Any]) -> str:
    return str(peer["name"] or peer["public_key"][:10] + "...")


def _takeover_row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        ago(entry["at_unix"]),
        entry["result"],
        str(entry["generation"]),
        str(entry.get("sessions", "-")),
        milliseconds(entry.get("blackout_ms")),
        " ".join(str(entry.get("reason", entry.get("way", ""))).split()),
    )


def _connection(connection: dict[str, Any]) -> str:
    parts = [f"{connection['state']} to {connection['server']}"]
    if connection["outage_secs"] is not None:
        parts += [f"for {duration(connection['outage_secs'])}", counted(connection["retries"], "retry", "retries")]
    elif connection["round_trip_ms"]:
        parts.append(f"round trip {connection['round_trip_ms']:.1f} ms")
    if connection["waiting_packets"]:
        parts.append(f"{counted(connection['waiting_packets'], 'packet')} waiting")
    return ", ".join(parts)


def _drops(status: dict[str, Any]) -> str:
    numbers = dict(status["drops"])
    shed = status.get("totals", {}).get("shed_datagrams", 0)  # the kernel counts them as well
    numbers |= {"shed": shed, "kernel queue": max(status["kernel_drops"] - shed, 0)}
    return (
        ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in numbers.items() if number) or "nothing"
    )
