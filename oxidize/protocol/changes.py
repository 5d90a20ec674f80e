"""What a successor must know, as values: one change for each thing that a device learned.

A device hands every change to its recorder before any effect of it can be seen outside. Changes set state, they do not
alter it: each replaces the one before it with the same `key`, so folding a stream of them in order restores the device.
"""

from dataclasses import dataclass, field

from oxidize.protocol.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class KeypairState:
    """One transport keypair (paper, section 5.4.5).

    local_index, remote_index: session indices, 32 bit. slot: its counters (`protocol.counters`). created_at: seconds of
    the device's clock. is_initiator: our role in the handshake that made it.
    """

    local_index: int
    remote_index: int
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    created_at: float
    is_initiator: bool
    slot: int


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A peer has a slot of counters."""

    peer: bytes
    slot: int


@dataclass(frozen=True, slots=True)
class PeerKeypairs:
    """A peer's keypairs, all three at once: they rotate together. last_handshake_unix: seconds, 0.0 for never."""

    peer: bytes
    previous: KeypairState | None
    current: KeypairState | None
    next: KeypairState | None
    last_handshake_unix: float


@dataclass(frozen=True, slots=True)
class PeerEndpoint:
    """A peer was authenticated at this endpoint."""

    peer: bytes
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class PeerTimestamp:
    """The TAI64N of the newest initiation that a peer sent, 12 bytes, and when it came."""

    peer: bytes
    timestamp: bytes
    received_at: float


@dataclass(frozen=True, slots=True)
class PeerHandshake:
    """The handshake that we started and that is not answered yet; `local_index` 0 with empty keys: none any more.

    started_at: when the first initiation of this attempt was sent; sent_at: the latest; retry_at: when the next is due.
    mac1: of the latest initiation, which a cookie reply is bound to.
    """

    peer: bytes
    local_index: int
    ephemeral_private: bytes = field(repr=False)
    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)
    mac1: bytes
    started_at: float
    sent_at: float
    retry_at: float


@dataclass(frozen=True, slots=True)
class PeerCookie:
    """The cookie that a peer under load gave us."""

    peer: bytes
    cookie: bytes = field(repr=False)
    received_at: float


@dataclass(frozen=True, slots=True)
class PeerStaged:
    """Packets that wait for a session, oldest first; recorded at a freeze only."""

    peer: bytes
    packets: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PeerRemoved:
    """A peer left the configuration: everything known of it is dead."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class CookieSecret:
    """The secret of which our cookies are made (paper, section 5.4.7)."""

    secret: bytes = field(repr=False)
    created_at: float


Change = (
    PeerSeen
    | PeerKeypairs
    | PeerEndpoint
    | PeerTimestamp
    | PeerHandshake
    | PeerCookie
    | PeerStaged
    | PeerRemoved
    | CookieSecret
)

_KINDS: dict[type, str] = {
    PeerSeen: "peer",
    PeerKeypairs: "keypairs",
    PeerEndpoint: "endpoint",
    PeerTimestamp: "timestamp",
    PeerHandshake: "handshake",
    PeerCookie: "cookie",
    PeerStaged: "staged",
    PeerRemoved: "removed",
    CookieSecret: "cookie_secret",
}


def change_key(change: Change) -> tuple[str, bytes]:
    """Return what the change sets: its kind, and the public key of the peer or nothing."""
    return _KINDS[type(change)], getattr(change, "peer", b"")
