"""What `oxidize status` shows: asked for at the takeover socket, so that only the server's own user gets an answer."""

import base64
import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import oxidize
from oxidize.errors import OxidizeError
from oxidize.protocol.device import Device
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
from oxidize.runtime.connection import Connection
from oxidize.runtime.loop import boot_time
from oxidize.runtime.settings import NodeSettings
from oxidize.runtime.udp import UdpSocket
from oxidize.state.session_state import SessionState
from oxidize.takeover.query import query

# What a process can be asked for at its takeover socket.
STATUS = "status"
IDENTITY = "identity"
DRAIN = "drain"  # begin to drain, and end when told to
ACCEPT = "accept"  # drain no more
QUERIES = (STATUS, IDENTITY, DRAIN, ACCEPT)


class Describable(Protocol):
    """What a status is made of: a node."""

    settings: NodeSettings
    generation: int
    device: Device
    udp: UdpSocket
    session_state: SessionState
    words: Words
    started_at: float
    started_unix: float
    connection: Connection | None

    @property
    def state_name(self) -> str:
        """What /health says."""

    @property
    def drain_left_secs(self) -> float | None:
        """How long a drain still takes at most; None without one."""


def describe(node: Describable) -> bytes:
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
            "nat": node.settings.nat,
            "listen": node.udp.local_address,
            "public_key": _base64(node.settings.public_key),
            "connection": node.connection.describe(now) if node.connection is not None else None,
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


def describe_process(node: Describable) -> bytes:
    """Return what tells one process from another, as JSON: little work, however many peers there are."""
    return json.dumps(
        {
            "role": node.settings.role,
            "state": node.state_name,
            "generation": node.generation,
            "release": oxidize.__version__,
            "pid": os.getpid(),
            "log_level": logging.getLevelName(logging.getLogger().level).lower(),
            "drain_left_secs": node.drain_left_secs,
            "sessions": node.device.live_sessions(boot_time()) if node.drain_left_secs is not None else None,
            "drain_timeout_secs": node.settings.drain_timeout_secs,
        }
    ).encode()


def fetch(takeover_socket: Path, what: str = STATUS) -> dict[str, Any]:
    """Return what the process that listens there answers: its STATUS, or to any other query its IDENTITY.

    Raises OxidizeError where none does.
    """
    status = find(takeover_socket, what)
    if status is None:
        raise OxidizeError(
            f"nothing runs: nobody listens at {takeover_socket}; start it with `oxidize server` or `oxidize client`, "
            "or check takeover_socket in the configuration"
        )
    return status


def find(takeover_socket: Path, what: str = STATUS) -> dict[str, Any] | None:
    """Return the same as `fetch`, or None where nobody listens; raises OxidizeError for one that gives no answer."""
    answer = query(takeover_socket, what, clock=boot_time)
    if answer is None:
        return None
    status: dict[str, Any] = json.loads(answer)
    return status


# --- For people ---


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 peer" or "2 peers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
