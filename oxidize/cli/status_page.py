"""`oxidize status`, and what it prints for people.

Rule: no value is cut; it fits 80 columns where the values allow it. In a terminal the table of a large server has no
more peers than there is room for, so that the rest of the page stays in sight; elsewhere it has all of them.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from oxidize import config
from oxidize.cli.common import json_option, print_json, role_options
from oxidize.control import query
from oxidize.terminal.table import print_lines, table
from oxidize.terminal.units import ago, byte_count, duration, milliseconds, minute
from oxidize.text import counted, one_line, release_name

TAKEOVERS_SHOWN = 5
INACTIVE_SHOWN = 10  # names of a kind: two lines of a terminal; `oxidize peer list` shows all
PEERS_MANY = 50  # with more a terminal gets those that fit it, but PEERS_FEW at least
PEERS_FEW = 5
NETWORKS_SHOWN = 3  # of the sources of one family
FORWARDS_SHOWN = 5
SPACE_LINES = 4  # two empty ones, that of the peers left out, and the shell's
PEER_HEADINGS = ("peer", "endpoint", "last handshake", "received", "sent")
TAKEOVER_HEADINGS = ("takeover", "result", "generation", "sessions", "blackout", "")


@click.command(short_help="Show the running process, its peers and its last takeovers.")
@role_options("Ask a client instead of a server.")
@json_option
@click.option("--all", "shows_all", is_flag=True, help="Show all peers, however many, in a terminal as well.")
def status(config_path: Path, role: config.Role, as_json: bool, shows_all: bool) -> None:
    """Show the running process, its peers and its last takeovers.

    Of more than 50 peers a terminal shows those with the latest handshakes. This works even if the configuration file
    has become invalid since the process was started.
    """
    answer = query.fetch(config.takeover_socket_of(config_path, role))
    if as_json:
        print_json(answer)
    else:
        render(answer, None if shows_all or not sys.stdout.isatty() else shutil.get_terminal_size().lines)


def render(status: dict[str, Any], lines_max: int | None = None) -> None:
    """Print a status. lines_max: of a terminal, in which not all of many peers are shown."""
    print_lines(_lines(status, lines_max))


def _lines(status: dict[str, Any], lines_max: int | None) -> Iterator[Text]:
    interface = f"interface {status['interface']}" if status["network"] == "tun" else "userspace network"
    interface += ", nat" if status.get("nat") else ""
    head = [
        (status["role"], f"{status['state']}, generation {status['generation']}, release {_release(status)}"),
        ("process", f"pid {status['pid']}, up {duration(status['uptime_secs'])}"),
        ("listening", f"{status['listen']}, {interface}"),
        *_translation(status.get("nat_rules")),
        ("public key", status["public_key"]),
        *([("connection", _connection(status["connection"]))] if status.get("connection") else []),
        *[("missing", one_line(missing)) for missing in status.get("network_missing", ())],
        ("sessions", f"{status['sessions']} of {counted(len(status['peers']), 'peer')}"),
        *([("ending", ending)] if (ending := _ending(status["peers"])) else []),
        *([("inactive", inactive)] if (inactive := _inactive(status.get("inactive_peers", ()))) else []),
        *([("waiting", waiting)] if (waiting := _waiting(status["peers"])) else []),
        ("dropped", _drops(status)),
    ]
    if problem := status.get("metrics_listen_problem"):
        head.append(("metrics", f"no /health, no /metrics, tried again: {problem}"))
    if problem := status.get("wg_problem"):
        head.append(("wg", f"`wg show` does not find it: {one_line(problem)}"))
    width = max(len(name) for name, _ in head)
    for name, value in head:
        yield Text.assemble((name.ljust(width), "bold"), "  ", value)
    shown, peers = status["takeovers"][-TAKEOVERS_SHOWN:], status["peers"]
    takeovers = list(table(TAKEOVER_HEADINGS, [_takeover_row(entry) for entry in shown], right={2, 3, 4}))
    if lines_max is not None and len(peers) > PEERS_MANY:
        room = lines_max - len(head) - len(takeovers) - SPACE_LINES - 1  # its headings
        peers = nlargest(max(room, PEERS_FEW), peers, key=itemgetter("last_handshake_unix"))
    if peers:
        yield Text()
        yield from table(PEER_HEADINGS, [_peer_row(peer) for peer in peers], right={3, 4})
    if left_out := len(status["peers"]) - len(peers):
        yield Text(f"and {left_out:,} more, with earlier handshakes or none: `oxidize status --all`")
    if shown:
        yield Text()
        yield from takeovers


def _translation(rules: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield a line for each family that is translated, and one for each port that is forwarded."""
    if rules is None:
        return
    for colon in (False, True):
        sources = [each for each in rules["sources"] if (":" in each) is colon]
        address = next((each for each in rules["snat"] if (":" in each) is colon), None)
        if sources:
            shown = ", ".join(sources[:NETWORKS_SHOWN]) + _more(len(sources) - NETWORKS_SHOWN)
            by = f" by {rules['interface']}" if rules["interface"] else ""
            yield "translated", f"{shown}{by}, {f'to {address}' if address else 'masqueraded'}"
    for each in rules["forward"][:FORWARDS_SHOWN]:
        by = f" by {each['interface']}" if each["interface"] else ""
        at = f" at {', '.join(each['address'])}" if each["address"] else ""
        hidden = ", masqueraded" if each["masquerade"] else ""
        protocol = "tcp and udp" if each["protocol"] == "both" else each["protocol"]
        yield "forwarded", f"{protocol} {each['port']}{by}{at}, to {each['to']}{hidden}"
    if more := _more(len(rules["forward"]) - FORWARDS_SHOWN):
        yield "forwarded", f"{more.strip()}: `oxidize status --json`"


def _more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""


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


def _ending(peers: Sequence[dict[str, Any]]) -> str:
    """Return whose access ends next, and when."""
    ending = [peer for peer in peers if peer.get("expires_unix")]
    if not ending:
        return ""
    first = min(ending, key=itemgetter("expires_unix"))
    more = f", {len(ending) - 1} more later" if len(ending) > 1 else ""
    return f"{_name(first)} expires {minute(first['expires_unix'])}{more}"


def _inactive(peers: Sequence[dict[str, Any]]) -> str:
    """Return the peers that may not connect, by the reason: by name where they are few, else how many."""
    by_reason: dict[str, list[str]] = {}
    for peer in peers:
        by_reason.setdefault(peer["reason"], []).append(_name(peer))
    return "; ".join(
        f"{len(names)} {reason}: {', '.join(names[:INACTIVE_SHOWN])}{', ...' if len(names) > INACTIVE_SHOWN else ''}"
        for reason, names in by_reason.items()
    )


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
