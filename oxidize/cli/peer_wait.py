"""Wait until a new client has connected, for an operator who looks at the terminal.

The rule: it changes nothing, and holds nothing that another command waits for. It ends with the client's first session,
with Ctrl-C, or after WAIT_SECS, and each end says that the client stays.
"""

import time
from pathlib import Path
from typing import Any

from oxidize.cli.lines import print_line
from oxidize.control import query
from oxidize.errors import OxidizeError

WAIT_SECS = 300.0  # to find a phone, and to scan
LOOK_SECS = 1.0  # between two looks
LOOK_SHARE = 4  # times the duration of a look pass before the next one: of many peers it takes a second


def wait_for_client(takeover_socket: Path, name: str, key: str) -> None:
    """Wait for the first session of a client, by its public key in base64."""
    print_line(f"waiting for {name} to connect; Ctrl-C ends the waiting, and {name} stays")
    deadline = time.monotonic() + WAIT_SECS
    try:
        while time.monotonic() < deadline:
            began = time.monotonic()
            if (endpoint := _endpoint_of(takeover_socket, key)) is not None:
                print_line(f"{name} has connected from {endpoint}")
                return
            time.sleep(max(LOOK_SECS, LOOK_SHARE * (time.monotonic() - began)))
    except KeyboardInterrupt:
        print_line(f"\nno longer waiting: {name} stays, and can connect at any time")
        return
    print_line(f"{name} has not connected in {WAIT_SECS / 60:.0f} minutes: it stays, and `oxidize peer list` shows it")


def _endpoint_of(takeover_socket: Path, key: str) -> str | None:
    """Return where a client has connected from, None if it has not."""
    try:
        found = _peer_in(query.find_peers(takeover_socket), key)
        if not found.get("has_session"):
            return None
        peer = _peer_in(query.find(takeover_socket), key)
    except OxidizeError:  # a takeover is under way
        return None
    # A session that the client has not confirmed is none: anyone can replay an initiation.
    return str(peer.get("endpoint")) if peer.get("last_handshake_unix") else None


def _peer_in(answer: dict[str, Any] | None, key: str) -> dict[str, Any]:
    peers = answer["peers"] if answer is not None else []
    return next((peer for peer in peers if peer["public_key"] == key), {})
