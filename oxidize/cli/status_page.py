"""How `oxidize status` looks in a terminal.

It stands apart from what the status is, so that a server need not import what draws it: every millisecond of a start
is one in which packets wait after a crash.
"""

import time
from collections.abc import Iterator, Sequence, Set
from typing import Any

from rich.console import Console
from rich.text import Text

from oxidize.text import counted, release_name

TAKEOVERS_SHOWN = 5
PEER_HEADINGS = ("peer", "endpoint", "last handshake", "received", "sent")
TAKEOVER_HEADINGS = ("takeover", "result", "generation", "sessions", "blackout", "")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render(status: dict[str, Any]) -> None:
    """Print a status for people: in 80 columns where the values allow it, and never cut."""
    console = Console(highlight=False)
    for line in _lines(status):
        console.print(line, soft_wrap=True)


def _lines(status: dict[str, Any]) -> Iterator[Text]:
    interface = f"interface {status['interface']}" if status["network"] == "tun" else "userspace network"
    interface += ", nat" if status.get("nat") else ""
    head = [
        (status["role"], f"{status['state']}, generation {status['generation']}, release {_release(status)}"),
        ("process", f"pid {status['pid']}, up {duration(status['uptime_secs'])}"),
        ("listening", f"{status['listen']}, {interface}"),
        ("public key", status["public_key"]),
        *([("connection", _connection(status["connection"]))] if status.get("connection") else []),
        ("sessions", f"{status['sessions']} of {counted(len(status['peers']), 'peer')}"),
        ("dropped", _drops(status)),
    ]
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


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned lines, never cut."""
    console = Console(highlight=False)
    for line in table(headings, rows, right=frozenset()):
        console.print(line, soft_wrap=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Set[int]) -> Iterator[Text]:
    """Yield aligned lines; the columns whose numbers are in `right` are aligned there."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for number, row in enumerate([headings, *rows]):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield Text("  ".join(cells).rstrip(), style="" if number else "bold")


def _peer_row(peer: dict[str, Any]) -> tuple[str, ...]:
    return (
        peer["name"] or peer["public_key"][:10] + "...",
        peer["endpoint"] or "-",
        ago(peer["last_handshake_unix"]),
        byte_count(peer["received_bytes"]),
        byte_count(peer["sent_bytes"]),
    )


def _takeover_row(entry: dict[str, Any]) -> tuple[str, ...]:
    blackout = entry.get("blackout_ms")
    return (
        ago(entry["at_unix"]),
        entry["result"],
        str(entry["generation"]),
        str(entry.get("sessions", "-")),
        f"{blackout:.1f} ms" if blackout is not None else "-",
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
    numbers = {reason: number for reason, number in status["drops"].items() if number}
    numbers |= {"kernel queue": status["kernel_drops"]} if status["kernel_drops"] else {}
    return ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in numbers.items()) or "nothing"


def ago(unix: float) -> str:
    """Return how long a time in seconds since the epoch is ago, in words; 0 is never."""
    return f"{duration(max(0.0, time.time() - unix))} ago" if unix else "never"


def duration(seconds: float) -> str:
    """Return seconds in words, by the two largest units that are not 0."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole % 60, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"


def byte_count(number: float) -> str:
    """Return a number of bytes in binary units."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("the last unit takes everything")
