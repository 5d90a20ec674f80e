"""What `oxidize status` shows: asked for at the takeover socket, so that only the server's own user gets an answer."""

import base64
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

import oxidize
from oxidize.errors import OxidizeError
from oxidize.protocol.peer import Peer
from oxidize.protocol.words import (
    DROPS_WORD,
    RECEIVED_BYTES,
    RECEIVED_PACKETS,
    SENT_BYTES,
    SENT_PACKETS,
    DropReason,
    Total,
    Words,
)
from oxidize.runtime.loop import boot_time
from oxidize.takeover.query import query

if TYPE_CHECKING:
    from oxidize.runtime.node import Node

# What a process can be asked for at its takeover socket.
STATUS = "status"
IDENTITY = "identity"

TAKEOVERS_SHOWN = 5
PEER_HEADINGS = ("peer", "endpoint", "last handshake", "received", "sent")
TAKEOVER_HEADINGS = ("takeover", "result", "generation", "sessions", "blackout", "")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def describe(node: "Node") -> bytes:
    """Return the status of a node as JSON; times are seconds, `_unix` since the epoch."""
    now, words = boot_time(), node.words
    return json.dumps(
        {
            "role": node.settings.role,
            "state": node.state_name,
            "generation": node.generation,
            "release": oxidize.__version__,
            "pid": os.getpid(),
            "uptime_secs": now - node.started_at,
            "started_unix": node.started_unix,
            "interface": node.settings.interface,
            "network": node.settings.network,
            "listen": node.udp.local_address,
            "public_key": _base64(node.settings.public_key),
            "sessions": node.device.live_sessions(now),
            "peers": [_describe_peer(peer, words, now) for peer in node.device.peers.values()],
            "takeovers": node.session_state.takeovers(),
            "totals": {total.name.lower(): words[total] for total in Total},
            "drops": {reason.name.lower(): words[DROPS_WORD + reason] for reason in DropReason},
            "kernel_drops": node.udp.kernel_drops(),
        }
    ).encode()


def _describe_peer(peer: Peer, words: Words, now: float) -> dict[str, Any]:
    def count(word: int) -> int:
        return words[peer.slot + word] if peer.slot else 0

    return {
        "name": peer.settings.name,
        "public_key": _base64(peer.public_key),
        "endpoint": str(peer.endpoint) if peer.endpoint is not None else None,
        "allowed_ips": [str(network) for network in peer.settings.allowed_ips],
        "has_session": peer.has_session(now),
        "last_handshake_unix": peer.last_handshake_unix,
        "received_bytes": count(RECEIVED_BYTES),
        "sent_bytes": count(SENT_BYTES),
        "received_packets": count(RECEIVED_PACKETS),
        "sent_packets": count(SENT_PACKETS),
        "persistent_keepalive_secs": peer.settings.persistent_keepalive,
    }


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def describe_process(node: "Node") -> bytes:
    """Return what tells one process from another, as JSON: little work, however many peers there are."""
    return json.dumps(
        {
            "role": node.settings.role,
            "state": node.state_name,
            "generation": node.generation,
            "release": oxidize.__version__,
            "pid": os.getpid(),
            "log_level": logging.getLevelName(logging.getLogger().level).lower(),
        }
    ).encode()


def fetch(takeover_socket: Path, what: str = STATUS) -> dict[str, Any]:
    """Return the STATUS, or the IDENTITY alone, of the process that listens there.

    Raises OxidizeError where none does.
    """
    answer = query(takeover_socket, what, clock=boot_time)
    if answer is None:
        raise OxidizeError(
            f"nothing runs: nobody listens at {takeover_socket}; start it with `oxidize server`, "
            "or check takeover_socket in the configuration"
        )
    status: dict[str, Any] = json.loads(answer)
    return status


# --- For people ---


def render(status: dict[str, Any]) -> None:
    """Print a status for people: in 80 columns where the values allow it, and never cut."""
    console = Console(highlight=False)
    for line in _lines(status):
        console.print(line, soft_wrap=True)


def _lines(status: dict[str, Any]) -> Iterator[Text]:
    interface = f"interface {status['interface']}" if status["network"] == "tun" else "userspace network"
    head = [
        (status["role"], f"{status['state']}, generation {status['generation']}, release {status['release']}"),
        ("process", f"pid {status['pid']}, up {_duration(status['uptime_secs'])}"),
        ("listening", f"{status['listen']}, {interface}"),
        ("public key", status["public_key"]),
        ("sessions", f"{status['sessions']} of {counted(len(status['peers']), 'peer')}"),
        ("dropped", _drops(status)),
    ]
    width = max(len(name) for name, _ in head)
    for name, value in head:
        yield Text.assemble((name.ljust(width), "bold"), "  ", value)
    if status["peers"]:
        yield Text()
        yield from _table(PEER_HEADINGS, [_peer_row(peer) for peer in status["peers"]], right={3, 4})
    if status["takeovers"]:
        yield Text()
        shown = status["takeovers"][-TAKEOVERS_SHOWN:]
        yield from _table(TAKEOVER_HEADINGS, [_takeover_row(entry) for entry in shown], right={2, 3, 4})


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Set[int]) -> Iterator[Text]:
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
        _ago(peer["last_handshake_unix"]),
        _bytes(peer["received_bytes"]),
        _bytes(peer["sent_bytes"]),
    )


def _takeover_row(entry: dict[str, Any]) -> tuple[str, ...]:
    blackout = entry.get("blackout_ms")
    return (
        _ago(entry["at_unix"]),
        entry["result"],
        str(entry["generation"]),
        str(entry.get("sessions", "-")),
        f"{blackout:.1f} ms" if blackout is not None else "-",
        " ".join(str(entry.get("reason", entry.get("way", ""))).split()),
    )


def _drops(status: dict[str, Any]) -> str:
    numbers = {reason: number for reason, number in status["drops"].items() if number}
    numbers |= {"kernel queue": status["kernel_drops"]} if status["kernel_drops"] else {}
    return ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in numbers.items()) or "nothing"


def counted(number: int, noun: str) -> str:
    """Return "1 peer" or "2 peers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ago(unix: float) -> str:
    return f"{_duration(max(0.0, time.time() - unix))} ago" if unix else "never"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole % 60, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"


def _bytes(number: float) -> str:
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("the last unit takes everything")
