"""The answers to the queries of `control.query`, which only the server's own user gets (`takeover.acceptor`)."""

import base64
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from oxidize.clock import boot_time
from oxidize.errors import OxidizeError
from oxidize.protocol.constants import NEVER
from oxidize.protocol.counters import (
    DROPS_START,
    RECEIVED_BYTES,
    RECEIVED_PACKETS,
    SENT_BYTES,
    SENT_PACKETS,
    Counters,
    DropReason,
    Total,
)
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.runtime.kept_settings import STORED_NAME
from oxidize.runtime.node import Node
from oxidize.runtime.offer import FdName, named_fd
from oxidize.service_manager import notify
from oxidize.takeover.host import Answer, NamedFd
from oxidize.text import own_release

PEERS_PER_PIECE = 64  # of a status: about a millisecond
SHORT_PEERS_PER_PIECE = 512  # the same of the shorter answer

_One = TypeVar("_One")


def _vitals(node: Node, now: float) -> dict[str, Any]:
    """Return the figures of a node that name no peer; times are in seconds, `_unix` since the epoch."""
    counters = node.counters
    return {
        **_identity(node),
        "uptime_secs": now - node.started_at,
        "started_unix": node.started_unix,
        "at_boot_secs": now,
        "sessions": node.device.live_sessions(now),
        "peers_configured": len(node.device.peers),
        "totals": {total.name.lower(): counters[total] for total in Total},
        "drops": {reason.name.lower(): counters[DROPS_START + reason] for reason in DropReason},
        "kernel_drops": node.udp.kernel_drops(),
        "errors_before": node.error_count.before,
        "takeovers": node.session_state.takeovers(),
        "metrics_listen": _address_of(node.http_listener),
        "metrics_listen_problem": node.http_problem,
        "network_missing": node.keeper.missing,
    }


def _identity(node: Node) -> dict[str, Any]:
    return {
        "role": node.settings.role,
        "state": node.state_name,
        "generation": node.generation,
        "release": own_release(),
        "release_folder": sys.prefix,
        "pid": os.getpid(),
    }


def _address_of(listener: socket.socket | None) -> str | None:
    """Return the address of a TCP socket, as `127.0.0.1:9090` or `[::1]:9090`, or None without a socket."""
    if listener is None:
        return None
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


def describe_vitals(node: Node) -> bytes:
    """Return the vitals of a node as JSON; only the counting of sessions takes longer with more peers."""
    return json.dumps(_vitals(node, boot_time())).encode()


def hand_out_state(node: Node) -> Answer:
    """Return journal and arena as read-only descriptors, with the vitals of the same moment.

    `journal_activations` and `journal_end` identify the journal of that moment, for it is written while it is read.
    """
    activations, end = node.session_state.journal.position
    content = {**_vitals(node, boot_time()), "journal_activations": activations, "journal_end": end}
    fds = node.session_state.read_only_fds()
    return Answer(json.dumps(content).encode(), tuple(named_fd(FdName(name), fd) for name, fd in fds.items()))


def hand_out_settings(node: Node) -> Answer:
    """Return the file with what this process has validated; raises OxidizeError where it has none."""
    if node.kept.fd is None:
        raise OxidizeError("this process keeps no settings: validate the configuration")
    return Answer(b"{}", (NamedFd(STORED_NAME, node.kept.fd, "memfd"),))


def describe(node: Node) -> Iterator[bytes]:
    """Return the status of a node as JSON, in pieces: its vitals, its settings and every peer."""
    now, nat = boot_time(), node.settings.nat
    head = {
        **_vitals(node, now),
        "interface": node.settings.interface,
        "network": node.settings.network,
        "nat": nat is not None,
        "nat_rules": nat.describe() if nat is not None else None,
        "listen": node.udp.local_address,
        "public_key": _base64(node.settings.public_key),
        "connection": node.connection.describe(now) if node.connection is not None else None,
        "wg_problem": node.wg_problem(),
    }
    unix_at_boot = time.time() - now
    waiting = {each.peer: each.reason for each in node.lookups.waiting()} if node.lookups is not None else {}

    def describe_one(peer: Peer) -> dict[str, Any]:
        return {**_describe_peer(peer, node.counters, now, unix_at_boot), "waits_for_name": waiting.get(peer)}

    return _with_peers(head, node, PEERS_PER_PIECE, describe_one)


def describe_peers(node: Node) -> Iterator[bytes]:
    """Return of a status as JSON, in pieces, what a command needs that changes the peers."""
    now = boot_time()

    def describe_one(peer: Peer) -> dict[str, Any]:
        return {"public_key": _base64(peer.public_key), "has_session": peer.session_ends_at(now) is not None}

    head = {**_identity(node), "listen": node.udp.local_address}
    return _with_peers(head, node, SHORT_PEERS_PER_PIECE, describe_one)


def _with_peers(
    head: dict[str, Any], node: Node, per_piece: int, describe_one: Callable[[Peer], dict[str, Any]]
) -> Iterator[bytes]:
    yield json.dumps(head)[:-1].encode() + b', "peers": ['
    yield from _described(list(node.device.peers.values()), per_piece, describe_one)
    yield b'], "inactive_peers": ['
    yield from _described(node.terms.inactive(), per_piece, _describe_inactive)
    yield b"]}"


def _described(each: Sequence[_One], per_piece: int, describe_one: Callable[[_One], dict[str, Any]]) -> Iterator[bytes]:
    """Yield the elements of a list as JSON, without its brackets."""
    for first in range(0, len(each), per_piece):
        described = [describe_one(one) for one in each[first : first + per_piece]]
        yield (b", " if first else b"") + json.dumps(described)[1:-1].encode()


def _describe_inactive(inactive: tuple[PeerSettings, str]) -> dict[str, Any]:
    settings, reason = inactive
    return {
        "name": settings.name,
        "public_key": _base64(settings.public_key),
        "allowed_ips": [str(network) for network in settings.allowed_ips],
        "reason": reason,
        "expires_unix": _end_of(settings),
    }


def _describe_peer(peer: Peer, counters: Counters, now: float, unix_at_boot: float) -> dict[str, Any]:
    ends_at = peer.session_ends_at(now)
    # A deployment takes a session that is gone before this for one that it has cost.
    ends_unix = min(unix_at_boot + ends_at, peer.settings.expires_unix) if ends_at is not None else 0.0

    def count(word: int) -> int:
        return counters[peer.slot + word] if peer.slot else 0

    return {
        "name": peer.settings.name,
        "public_key": _base64(peer.public_key),
        "endpoint": str(peer.endpoint) if peer.endpoint is not None else None,
        "configured_endpoint": peer.settings.configured_endpoint or None,
        "allowed_ips": [str(network) for network in peer.settings.allowed_ips],
        "has_session": ends_at is not None,
        "session_ends_unix": round(ends_unix, 3),
        "expires_unix": _end_of(peer.settings),
        "last_handshake_unix": peer.last_handshake_unix,
        "received_bytes": count(RECEIVED_BYTES),
        "sent_bytes": count(SENT_BYTES),
        "received_packets": count(RECEIVED_PACKETS),
        "sent_packets": count(SENT_PACKETS),
        "persistent_keepalive_secs": peer.settings.persistent_keepalive,
    }


def _end_of(settings: PeerSettings) -> float | None:
    return settings.expires_unix if settings.expires_unix < NEVER else None


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def describe_process(node: Node) -> bytes:
    """Return the identity of the process as JSON; the work does not grow with the number of peers."""
    return json.dumps(
        {
            **_identity(node),
            "public_key": _base64(node.settings.public_key),
            "log_level": logging.getLevelName(logging.getLogger().level).lower(),
            "drain_left_secs": node.drain_left_secs,
            "sessions": node.device.live_sessions(boot_time()) if node.drain_left_secs is not None else None,
            "drain_timeout_secs": node.settings.drain_timeout_secs,
            "holder": os.environ.get(notify.HOLDER_VARIABLE),
        }
    ).encode()
