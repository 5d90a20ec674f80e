"""What `oxidize status` shows: asked for at the takeover socket, so that only the server's own user gets an answer."""

import base64
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

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

TAKEOVERS_SHOWN = 5
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


def fetch(takeover_socket: Path) -> dict[str, Any]:
    """Return the status of the process that listens there; raises OxidizeError where none does."""
    answer = query(takeover_socket, "status", clock=boot_time)
    if answer is None:
        raise OxidizeError(
            f"nothing runs: nobody listens at {takeover_socket}; start it with `oxidize server`, "
            "or check takeover_socket in the configuration"
        )
    status: dict[str, Any] = json.loads(answer)
    return status


def render(status: dict[str, Any]) -> None:
    """Print a status for people."""
    console = Console()
    head = Table.grid(padding=(0, 2))
    sessions = f"{status['sessions']} of {len(status['peers'])} peers"
    uptime = _duration(status["uptime_secs"])
    for name, value in (
        (status["role"], f"{status['state']}, generation {status['generation']}, release {status['release']}"),
        ("process", f"pid {status['pid']}, up {uptime}"),
        ("listening", f"{status['listen']}, {status['network']} {status['interface']}"),
        ("public key", status["public_key"]),
        ("sessions", sessions),
        ("dropped", _drops(status)),
    ):
        head.add_row(f"[bold]{name}[/bold]", value)
    console.print(head)
    if status["peers"]:
        console.print(_peers_table(status["peers"]))
    if status["takeovers"]:
        console.print(_takeovers_table(status["takeovers"][-TAKEOVERS_SHOWN:]))


def _drops(status: dict[str, Any]) -> str:
    counted = {reason: number for reason, number in status["drops"].items() if number}
    counted |= {"kernel queue": status["kernel_drops"]} if status["kernel_drops"] else {}
    return ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in counted.items()) or "nothing"


def _peers_table(peers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("peer", "endpoint", "allowed IPs", "last handshake", "received", "sent"):
        table.add_column(heading, justify="right" if heading in {"received", "sent"} else "left", no_wrap=True)
    for peer in peers:
        table.add_row(
            peer["name"] or peer["public_key"][:10] + "...",
            peer["endpoint"] or "-",
            ", ".join(peer["allowed_ips"]),
            _ago(peer["last_handshake_unix"]),
            _bytes(peer["received_bytes"]),
            _bytes(peer["sent_bytes"]),
        )
    return table


def _takeovers_table(takeovers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("takeover", "result", "generation", "sessions", "blackout", ""):
        table.add_column(heading)
    for entry in takeovers:
        blackout = entry.get("blackout_ms")
        table.add_row(
            _ago(entry["at_unix"]),
            entry["result"],
            str(entry["generation"]),
            str(entry.get("sessions", "-")),
            f"{blackout:.1f} ms" if blackout is not None else "-",
            entry.get("reason", entry.get("way", "")),
        )
    return table


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
