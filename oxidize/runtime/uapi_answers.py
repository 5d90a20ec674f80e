"""The answers to `wg`: what a node is configured with and has counted; a request to change that is refused.

The rules: keys are given to root alone, which reads them from their files as well, and to no other user that was let
into the folder. An answer that grows with the number of peers is made in pieces. What a request to change something
contains, keys among it, is not logged.

Source: wireguard.com/xplatform, "Configuration Protocol".
"""

import errno
import os
from collections.abc import Iterator

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.config.paths import Role
from oxidize.protocol.counters import RECEIVED_BYTES, SENT_BYTES
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.runtime.line_limit import LineLimit
from oxidize.runtime.node import Node
from oxidize.service_manager import notify, systemctl

PEERS_PER_PIECE = 64  # half a millisecond
REFUSALS_LOGGED_SECS = 10.0  # between two lines: a program may try again and again
ROOT = 0
NO_KEY = bytes(32)

log = logs.get(__name__)


class UapiAnswers:
    """Answers the requests of `wg` about a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._refusals = LineLimit(1, REFUSALS_LOGGED_SECS)

    def __call__(self, request: bytes, uid: int) -> Iterator[bytes]:
        """Return the pieces of the answer to a request of which these are the first lines, of that user."""
        try:
            operation, _, rest = request.partition(b"\n")
            if operation == b"get=1":
                yield from self._describe(has_keys=uid == ROOT)
                yield _status(0)
            elif operation == b"set=1":
                self._log_refusal(rest)
                yield _status(-errno.EOPNOTSUPP)  # wg takes it as it is here, and an answer to "get" without its sign
            else:
                yield _status(errno.EINVAL)
        except Exception:  # the boundary of a request: one that cannot be answered must not end the service
            log.exception("a request of wg failed")
            yield _status(errno.EIO)

    def _describe(self, *, has_keys: bool) -> Iterator[bytes]:
        settings = self._node.settings
        lines = [f"private_key={settings.private_key.hex()}"] if has_keys else []
        lines.append(f"listen_port={self._node.udp.local_address.rpartition(':')[2]}")
        if settings.fwmark:
            lines.append(f"fwmark={settings.fwmark}")
        yield _piece(lines)
        peers = list(self._node.device.peers.values())
        for first in range(0, len(peers), PEERS_PER_PIECE):
            lines = []
            for peer in peers[first : first + PEERS_PER_PIECE]:
                lines += self._lines_of(peer, has_keys=has_keys)
            yield _piece(lines)

    def _lines_of(self, peer: Peer, *, has_keys: bool) -> list[str]:
        settings, counters = peer.settings, self._node.counters
        lines = [f"public_key={peer.public_key.hex()}"]
        if has_keys and settings.preshared_key != NO_KEY:
            lines.append(f"preshared_key={settings.preshared_key.hex()}")
        if peer.endpoint is not None:
            lines.append(f"endpoint={_with_zone(peer.endpoint)}")
        secs, nsecs = divmod(int(peer.last_handshake_unix * 1e9), 10**9)
        lines += [
            "protocol_version=1",
            f"last_handshake_time_sec={secs}",
            f"last_handshake_time_nsec={nsecs}",
            f"rx_bytes={counters[peer.slot + RECEIVED_BYTES] if peer.slot else 0}",
            f"tx_bytes={counters[peer.slot + SENT_BYTES] if peer.slot else 0}",
            f"persistent_keepalive_interval={settings.persistent_keepalive:.0f}",
            *(f"allowed_ip={network}" for network in settings.allowed_ips),
        ]
        return lines

    # --- Requests to change something ---

    def _log_refusal(self, lines: bytes) -> None:
        if self._refusals.passes(boot_time()):
            left_out = self._refusals.take_left_out()
            log.warning("wg can change nothing here", instead=self._instead(lines), left_out=left_out)

    def _instead(self, lines: bytes) -> str:
        """Return the command that does what a request asks for."""
        role = self._node.settings.role
        key = next((value for name, value in map(_pair, lines.split(b"\n")) if name == b"public_key"), None)
        if role == "client" or key is None:
            return f"edit {role}.toml, then `{_reload(role)}`"
        name = self._name_of(_bytes_of(key))
        if name is None:
            return "`oxidize peer add NAME --public-key KEY`"
        if b"remove=true" in lines.split(b"\n"):
            return f"`oxidize peer remove {name}`"
        return f"edit [[peer]] {name} in server.toml, then `{_reload(role)}`"

    def _name_of(self, public_key: bytes) -> str | None:
        """Return the name of a peer that is configured, also of one that may have no session."""
        active = (peer.settings for peer in filter(None, [self._node.device.peers.get(public_key)]))
        inactive = (settings for settings, _ in self._node.terms.inactive() if settings.public_key == public_key)
        return next((settings.name for settings in (*active, *inactive)), None)


def _reload(role: Role) -> str:
    unit = systemctl.service_of(os.getpid()) if notify.is_unit() else None
    if unit is not None:
        return f"systemctl reload {unit}"
    return "oxidize reload" if role == "server" else "oxidize reload --client"


def _pair(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b"=")
    return name, value


def _bytes_of(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""


def _with_zone(endpoint: Endpoint) -> str:
    text = str(endpoint)
    return text.replace("]", f"%{endpoint.scope_id}]") if endpoint.scope_id else text


def _piece(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _status(number: int) -> bytes:
    return f"errno={number}\n\n".encode()
