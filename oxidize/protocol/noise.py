"""The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s in one round trip, both roles.

Rule: every function is a step of the paper from one value to the next; no state is kept here, and a peer's bytes never
raise. The caller decides which peers may begin a handshake, how often, and whether a timestamp is new; the macs belong
to `protocol.cookie`.

Source: the paper, sections 5.4.2 (initiation), 5.4.3 (response), 5.4.5 (transport keys); the TAI64N format is that of
https://cr.yp.to/libtai/tai64.html.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from oxidize.errors import StateError
from oxidize.protocol.constants import CONSTRUCTION, IDENTIFIER, KEY_SIZE
from oxidize.protocol.counters import DropReason
from oxidize.protocol.crypto import (
    RandomBytes,
    blake2s,
    check_key_size,
    generate_private_key,
    kdf,
    load_private_key,
    public_key,
    seal,
    shared_secret,
    unseal,
)
from oxidize.protocol.messages import Initiation, Response
from oxidize.protocol.secret_fields import text_without

_INITIAL_CHAINING_KEY = blake2s(CONSTRUCTION)
_INITIAL_HASH = blake2s(_INITIAL_CHAINING_KEY, IDENTIFIER)

_NO_PRESHARED_KEY = bytes(KEY_SIZE)  # section 5.4: zeros where there is none

_TAI64N = struct.Struct(">QI")
# The label of the Unix epoch: TAI was ten seconds ahead in 1970. As in the reference implementations, later leap
# seconds are not counted, because only the order of a peer's own timestamps matters.
_TAI64_UNIX_EPOCH = (1 << 62) + 10
# Precise clock readings would help an attacker to fingerprint this host, so the reference implementations round down to
# the largest power of two within a fiftieth of a second. Hence two timestamps less than 16.8 ms apart may be equal, and
# the second initiation is refused as a replay: see INITIATION_INTERVAL_MIN.
_TIMESTAMP_GRAIN_NS = 1 << 24
UNIX_SECONDS_MAX = 1 << 33  # the year 2242: nanoseconds of it are less than half of a counter
_NS_PER_SEC = 1_000_000_000


class LocalIdentity:
    """This device's static key, and the values that depend only on it; raises StateError for a key of a wrong size.

    known_public_key: the public key of `private_key` where it is known, else it is computed. public_key: 32 bytes.
    initial_hash: the hash that every initiation to this device starts from, 32 bytes.
    """

    __slots__ = ("_private", "_private_key", "initial_hash", "public_key")

    def __init__(self, private_key: bytes, known_public_key: bytes | None = None) -> None:
        check_key_size("private key", private_key)
        self._private_key = private_key
        self._private: X25519PrivateKey | None = None
        self.public_key: bytes = public_key(private_key) if known_public_key is None else known_public_key
        self.initial_hash: bytes = blake2s(_INITIAL_HASH, self.public_key)

    @property
    def private(self) -> X25519PrivateKey:
        """The key object, which is made for the first handshake: no restored session needs what X25519 imports."""
        if self._private is None:
            self._private = load_private_key(self._private_key)
        return self._private


class RemoteIdentity:
    """A peer's static key and the secrets shared with it; raises StateError for a key of a wrong size.

    public_key, preshared_key: 32 bytes.
    """

    __slots__ = ("_local", "_static_shared", "preshared_key", "public_key")

    def __init__(self, local: LocalIdentity, public_key: bytes, preshared_key: bytes = _NO_PRESHARED_KEY) -> None:
        check_key_size("public key", public_key)
        check_key_size("preshared key", preshared_key)
        self.public_key: bytes = public_key
        self.preshared_key: bytes = preshared_key
        self._local: LocalIdentity | None = local  # until it is used
        self._static_shared: bytes | None = None

    @property
    def static_shared(self) -> bytes | None:
        """DH of the two static keys, 32 bytes, or None for a key of low order, with which no handshake succeeds.

        Computed for the first handshake: a start and a reload would take 40 us for each peer, and need none.
        """
        if self._local is not None:
            self._static_shared = shared_secret(self._local.private, self.public_key)
            self._local = None
        return self._static_shared


class InitiatorState(NamedTuple):
    """The initiator's handshake between initiation and response; local_index: 32 bits, the others 32 bytes."""

    local_index: int
    ephemeral_private: bytes
    chaining_key: bytes
    hash: bytes

    def __repr__(self) -> str:
        return text_without(self, "ephemeral_private", "chaining_key", "hash")


class ReceivedInitiation(NamedTuple):
    """An authentic initiation whose timestamp is not checked yet.

    remote: the peer that sent it. sender_index: 32 bits. ephemeral, chaining_key, hash: 32 bytes. timestamp: 12 bytes
    that order as the times do.
    """

    remote: RemoteIdentity
    sender_index: int
    ephemeral: bytes
    chaining_key: bytes
    hash: bytes
    timestamp: bytes

    def __repr__(self) -> str:
        return text_without(self, "chaining_key", "hash")


class TransportKeys(NamedTuple):
    """The two keys of a session, 32 bytes each, named from this device's side."""

    send_key: bytes
    receive_key: bytes

    def __repr__(self) -> str:
        return text_without(self, "send_key", "receive_key")


def create_initiation(
    local: LocalIdentity, remote: RemoteIdentity, local_index: int, timestamp: bytes, random_bytes: RandomBytes
) -> tuple[InitiatorState, bytes]:
    """Start a handshake (section 5.4.2).

    Return the state that `consume_response` needs, and the message without its macs, 116 bytes. timestamp: from
    `tai64n`, later than any that this device sent to the peer before. random_bytes: count -> bytes. Raises StateError
    when the peer's key is of low order.
    """
    if remote.static_shared is None:
        raise StateError(f"peer key {remote.public_key.hex()} is of low order; expected a key made by `wg pubkey`")
    ephemeral_private = generate_private_key(random_bytes)
    ephemeral = public_key(ephemeral_private)
    (chaining_key,) = kdf(_INITIAL_CHAINING_KEY, ephemeral, 1)
    hash_ = blake2s(blake2s(_INITIAL_HASH, remote.public_key), ephemeral)

    shared = shared_secret(load_private_key(ephemeral_private), remote.public_key)
    if shared is None:  # a clamped key meets a point of low order exactly when every other clamped key does
        raise StateError("an ephemeral DH failed where the static one succeeded; expected neither or both")
    chaining_key, key = kdf(chaining_key, shared, 2)
    encrypted_static = seal(key, 0, local.public_key, hash_)
    hash_ = blake2s(hash_, encrypted_static)

    chaining_key, key = kdf(chaining_key, remote.static_shared, 2)
    encrypted_timestamp = seal(key, 0, timestamp, hash_)
    hash_ = blake2s(hash_, encrypted_timestamp)

    message = Initiation(local_index, ephemeral, encrypted_static, encrypted_timestamp)
    return InitiatorState(local_index, ephemeral_private, chaining_key, hash_), message.encode()


def consume_initiation(
    local: LocalIdentity, message: Initiation, find_remote: Callable[[bytes], RemoteIdentity | None]
) -> ReceivedInitiation | DropReason:
    """Authenticate an initiation (section 5.4.2); return AUTHENTICATION_FAILED or UNKNOWN_PEER when that fails.

    find_remote: the static key that the sender claims, 32 bytes -> the peer or None.
    """
    (chaining_key,) = kdf(_INITIAL_CHAINING_KEY, message.ephemeral, 1)
    hash_ = blake2s(local.initial_hash, message.ephemeral)

    shared = shared_secret(local.private, message.ephemeral)
    if shared is None:
        return DropReason.AUTHENTICATION_FAILED
    chaining_key, key = kdf(chaining_key, shared, 2)
    static = unseal(key, 0, message.encrypted_static, hash_)
    if static is None:
        return DropReason.AUTHENTICATION_FAILED
    hash_ = blake2s(hash_, message.encrypted_static)

    remote = find_remote(static)
    if remote is None:
        return DropReason.UNKNOWN_PEER
    if remote.static_shared is None:
        return DropReason.AUTHENTICATION_FAILED
    chaining_key, key = kdf(chaining_key, remote.static_shared, 2)
    timestamp = unseal(key, 0, message.encrypted_timestamp, hash_)
    if timestamp is None:
        return DropReason.AUTHENTICATION_FAILED
    hash_ = blake2s(hash_, message.encrypted_timestamp)
    return ReceivedInitiation(remote, message.sender_index, message.ephemeral, chaining_key, hash_, timestamp)


def create_response(
    received: ReceivedInitiation, local_index: int, random_bytes: RandomBytes
) -> tuple[bytes, TransportKeys] | None:
    """Answer an initiation: return the message without its macs, 60 bytes, and the keys (sections 5.4.3, 5.4.5).

    Returns None when the initiator's ephemeral key is of low order. The keys are confirmed only when the initiator has
    used them.
    """
    ephemeral_private = generate_private_key(random_bytes)
    ephemeral = public_key(ephemeral_private)
    private = load_private_key(ephemeral_private)
    ephemeral_shared = shared_secret(private, received.ephemeral)
    static_shared = shared_secret(private, received.remote.public_key)
    if ephemeral_shared is None or static_shared is None:
        return None
    chaining_key, hash_, key = _mix_response(
        received.chaining_key, received.hash, ephemeral, (ephemeral_shared, static_shared), received.remote
    )
    message = Response(local_index, received.sender_index, ephemeral, seal(key, 0, b"", hash_))
    receive_key, send_key = kdf(chaining_key, b"", 2)
    return message.encode(), TransportKeys(send_key, receive_key)


def consume_response(
    local: LocalIdentity, remote: RemoteIdentity, state: InitiatorState, message: Response
) -> TransportKeys | None:
    """Finish an initiator's handshake (sections 5.4.3, 5.4.5); None when the message is no valid answer to `state`."""
    if message.receiver_index != state.local_index:
        return None
    ephemeral_shared = shared_secret(load_private_key(state.ephemeral_private), message.ephemeral)
    static_shared = shared_secret(local.private, message.ephemeral)
    if ephemeral_shared is None or static_shared is None:
        return None
    chaining_key, hash_, key = _mix_response(
        state.chaining_key, state.hash, message.ephemeral, (ephemeral_shared, static_shared), remote
    )
    if unseal(key, 0, message.encrypted_nothing, hash_) is None:
        return None
    send_key, receive_key = kdf(chaining_key, b"", 2)
    return TransportKeys(send_key, receive_key)


def tai64n(unix_seconds: float) -> bytes:
    """Return the TAI64N label of a time, 12 bytes that order as times do, rounded down to 2^24 ns (5.4.2, 5.1).

    Raises StateError for a time before 1970.
    """
    return label_of(next_timestamp(unix_seconds, None))


def usable_time(unix_seconds: float) -> float:
    """Return a time of a wall clock, which may be wrong, as one that a timestamp can carry; 0.0 for no such time.

    A wrong time only delays handshakes (`next_timestamp`), and must not end the process.
    """
    return unix_seconds if 0.0 <= unix_seconds <= UNIX_SECONDS_MAX else 0.0


def next_timestamp(unix_seconds: float, last: int | None) -> int:
    """Return the timestamp to use at a time, ns since the epoch: one whose label is later than that of `last`.

    Raises StateError for a time before 1970.
    """
    if not unix_seconds >= 0:
        raise StateError(f"wall clock reads {unix_seconds} s; expected a time after 1970: set the clock")
    seconds = int(unix_seconds)
    now = seconds * _NS_PER_SEC + int((unix_seconds - seconds) * _NS_PER_SEC)
    return now if last is None else max(now, last + _TIMESTAMP_GRAIN_NS)


def label_of(unix_ns: int) -> bytes:
    """Return the TAI64N label of a time in ns since the epoch, as `tai64n` does."""
    seconds, nanoseconds = divmod(unix_ns, _NS_PER_SEC)
    return _TAI64N.pack(_TAI64_UNIX_EPOCH + seconds, nanoseconds - nanoseconds % _TIMESTAMP_GRAIN_NS)


def _mix_response(
    chaining_key: bytes, hash_: bytes, ephemeral: bytes, shared: tuple[bytes, bytes], remote: RemoteIdentity
) -> tuple[bytes, bytes, bytes]:
    """Return chaining key, hash and AEAD key before the response's empty payload: the same steps for both roles.

    shared: DH of the responder's ephemeral key with the initiator's ephemeral, then with the initiator's static key.
    """
    (chaining_key,) = kdf(chaining_key, ephemeral, 1)
    hash_ = blake2s(hash_, ephemeral)
    for secret in shared:
        (chaining_key,) = kdf(chaining_key, secret, 1)
    chaining_key, tau, key = kdf(chaining_key, remote.preshared_key, 3)
    return chaining_key, blake2s(hash_, tau), key
