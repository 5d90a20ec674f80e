"""The state that a successor must know, as values: one change for each fact that a device learned.

The rule: a device passes every change to its recorder before any effect of it can be seen outside. A change sets a part
of the state to a value and replaces the earlier change with the same `change_key`, so that applying a stream of changes
in order restores the device.
"""

from collections.abc import Mapping
from typing import NamedTuple

from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.secret_fields import text_without


class KeypairState(NamedTuple):
    """One transport keypair (paper, section 5.4.5).

    local_index, remote_index: session indices, 32 bits. send_key, receive_key: 32 bytes. created_at: seconds of the
    device's clock. is_initiator: whether this device was the initiator of the handshake. slot: the index of the first
    of its counters (`protocol.counters`).
    """

    local_index: int
    remote_index: int
    send_key: bytes
    receive_key: bytes
    created_at: float
    is_initiator: bool
    slot: int

    def __repr__(self) -> str:
        return text_without(self, "send_key", "receive_key")


class PeerSeen(NamedTuple):
    """A peer, by its public key of 32 bytes, has a slot of counters; slot: the index of the first."""

    peer: bytes
    slot: int


class PeerKeypairs(NamedTuple):
    """A peer's keypairs, recorded together because they rotate together.

    last_handshake_unix: seconds since the epoch, 0.0 for never. older: a reader that does not know it has none.
    """

    peer: bytes
    previous: KeypairState | None
    current: KeypairState | None
    next: KeypairState | None
    last_handshake_unix: float
    older: KeypairState | None = None

    @property
    def states(self) -> list[KeypairState]:
        """The keypairs that exist."""
        roles = (self.older, self.previous, self.current, self.next)
        return [state for state in roles if state is not None]


class PeerEndpoint(NamedTuple):
    """The endpoint at which a peer was last authenticated."""

    peer: bytes
    endpoint: Endpoint


class PeerTimestamp(NamedTuple):
    """The TAI64N timestamp of a peer's newest initiation, 12 bytes, and the time at which it came, seconds."""

    peer: bytes
    timestamp: bytes
    received_at: float


class PeerHandshake(NamedTuple):
    """The handshake that this device started and that is unanswered; `no_handshake` says that there is none.

    local_index: 32 bits. ephemeral_private, chaining_key, hash: 32 bytes. mac1: of the latest initiation, which a
    cookie reply is bound to. started_at: seconds, when the first initiation of this attempt was sent; sent_at: the
    latest; retry_at: when the next is due.
    """

    peer: bytes
    local_index: int
    ephemeral_private: bytes
    chaining_key: bytes
    hash: bytes
    mac1: bytes
    started_at: float
    sent_at: float
    retry_at: float

    def __repr__(self) -> str:
        return text_without(self, "ephemeral_private", "chaining_key", "hash")


class PeerCookie(NamedTuple):
    """The cookie that a peer under load sent, 16 bytes, and the time at which it came, seconds."""

    peer: bytes
    cookie: bytes
    received_at: float

    def __repr__(self) -> str:
        return text_without(self, "cookie")


class PeerStaged(NamedTuple):
    """A peer's staged packets, oldest first; recorded only for a takeover and at the end.

    serial: the number by which PeerStagedMore refers to this change, 32 bits; 0: none does.
    """

    peer: bytes
    packets: tuple[bytes, ...]
    serial: int = 0

    def __repr__(self) -> str:
        return text_without(self, "packets")


class PeerStagedMore(NamedTuple):
    """The packets that were staged after those of the PeerStaged with the same serial; void beside any other."""

    peer: bytes
    packets: tuple[bytes, ...]
    serial: int = 0

    def __repr__(self) -> str:
        return text_without(self, "packets")


class PeerRemoved(NamedTuple):
    """A peer left the configuration: all its earlier changes are void."""

    peer: bytes


class CookieSecret(NamedTuple):
    """The secret that this device's cookies are made of (paper, section 5.4.7); created_at: seconds."""

    secret: bytes
    created_at: float

    def __repr__(self) -> str:
        return text_without(self, "secret")


class ConfiguredEndpoints(NamedTuple):
    """What the configuration says of endpoints: a digest of the text, 8 bytes, by the public key of each such peer."""

    digests: Mapping[bytes, bytes]


PeerChange = (
    PeerSeen
    | PeerKeypairs
    | PeerEndpoint
    | PeerTimestamp
    | PeerHandshake
    | PeerCookie
    | PeerStaged
    | PeerStagedMore
    | PeerRemoved
)
Change = PeerChange | CookieSecret | ConfiguredEndpoints

_KINDS: dict[type, str] = {
    PeerSeen: "peer",
    PeerKeypairs: "keypairs",
    PeerEndpoint: "endpoint",
    PeerTimestamp: "timestamp",
    PeerHandshake: "handshake",
    PeerCookie: "cookie",
    PeerStaged: "staged",
    PeerStagedMore: "staged_more",
    PeerRemoved: "removed",
    CookieSecret: "cookie_secret",
    ConfiguredEndpoints: "configured_endpoints",
}


def change_key(change: Change) -> tuple[str, bytes]:
    """Return the part of the state that a change sets: its kind, and the peer's public key or no bytes."""
    return _KINDS[type(change)], getattr(change, "peer", b"")


def no_handshake(peer: bytes) -> PeerHandshake:
    """Return the change that says that no handshake with a peer is in flight: index 0 and empty keys."""
    return PeerHandshake(peer, 0, b"", b"", b"", b"", 0.0, 0.0, 0.0)
