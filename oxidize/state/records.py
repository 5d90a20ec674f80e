"""The schema of the journal: how a change of the protocol is encoded as a record.

Rules of its evolution, because old code reads what new code wrote (a rollback is a takeover):
- A new field has a default, which a reader uses when the field is missing.
- A field or a type that a reader does not know is skipped and counted.
- No field or type is renamed, retyped or used again. A removed field is still written for one release.
- A change that a reader must understand raises MIN_READER; an older release then refuses before it is ready.

A change that ends other records has `retire` (`state.stream`): a removed peer retires every record under its key; a
finished handshake and empty staging retire their own record.
"""

import math
from collections.abc import Callable
from typing import Final

from oxidize.errors import SnapshotError
from oxidize.protocol.changes import (
    Change,
    ConfiguredEndpoints,
    CookieSecret,
    KeypairState,
    PeerCookie,
    PeerEndpoint,
    PeerHandshake,
    PeerKeypairs,
    PeerRemoved,
    PeerSeen,
    PeerStaged,
    PeerStagedMore,
    PeerTimestamp,
    change_key,
    no_handshake,
)
from oxidize.protocol.constants import COOKIE_SIZE, ENDPOINT_DIGEST_SIZE, HASH_SIZE, KEY_SIZE, MAC_SIZE, TIMESTAMP_SIZE
from oxidize.protocol.endpoint import Endpoint
from oxidize.state.plain_records import plain_change
from oxidize.state.stream import RECORD_BYTES_MAX, REMEDY, RETIRE_ALL, RETIRE_OWN, Record

FORMAT = 1  # the format that this release writes, and the newest that it understands in full
# The oldest FORMAT whose releases may read a journal of this release. A release that raises it writes what the older
# ones understand until its predecessor has ended (`SessionState.raise_min_reader`): an older one may have to thaw.
MIN_READER = 1

_U32_MAX = (1 << 32) - 1
_U64_MAX = (1 << 64) - 1
_PORT_MAX = (1 << 16) - 1
_SECRET_SIZES = range(1, 65)  # the paper leaves the size of a cookie secret open
_PACKET_SIZES = range((1 << 16) + 1)
_ADDRESS_SIZES = (4, 16)
_CONFIGURED_SIZE = KEY_SIZE + ENDPOINT_DIGEST_SIZE  # of one peer in a record of the configured endpoints
_CONFIGURED_SIZES = range(0, RECORD_BYTES_MAX, _CONFIGURED_SIZE)
_DEVICE_KINDS = frozenset({"cookie_secret", "configured_endpoints"})  # records of no peer


class Unknown:
    """The numbers of fields and types that this release does not know, because a later release wrote them."""

    def __init__(self) -> None:
        self.fields = 0
        self.types = 0


# --- Encoding ---


def encode_change(change: Change) -> Record:
    """Return the record of a change: string keys, and values that msgpack encodes unchanged."""
    kind, key = change_key(change)
    record: Record = {"type": kind, "key": key}
    match change:
        case PeerSeen(slot=slot):
            record["slot"] = slot
        case PeerKeypairs():
            record["previous"] = _encode_keypair(change.previous)
            record["current"] = _encode_keypair(change.current)
            record["next"] = _encode_keypair(change.next)
            record |= {"older": _encode_keypair(change.older)} if change.older is not None else {}
            record["last_handshake_unix"] = max(0.0, change.last_handshake_unix)  # a clock may be set before 1970
        case PeerEndpoint(endpoint=endpoint):
            record["endpoint"] = endpoint._asdict()
        case PeerTimestamp():
            record["timestamp"] = change.timestamp
            record["received_at"] = change.received_at
        case PeerHandshake(local_index=0):
            record["retire"] = RETIRE_OWN
        case PeerHandshake():
            record["local_index"] = change.local_index
            record["ephemeral_private"] = change.ephemeral_private
            record["chaining_key"] = change.chaining_key
            record["hash"] = change.hash
            record["mac1"] = change.mac1
            record["started_at"] = change.started_at
            record["sent_at"] = change.sent_at
            record["retry_at"] = change.retry_at
        case PeerCookie():
            record["cookie"] = change.cookie
            record["received_at"] = change.received_at
        case PeerStaged(packets=()) | PeerStagedMore(packets=()):
            record["retire"] = RETIRE_OWN
        case PeerStaged(packets=packets, serial=serial) | PeerStagedMore(packets=packets, serial=serial):
            record["packets"] = list(packets)
            if serial:
                record["serial"] = serial
        case PeerRemoved():
            record["retire"] = RETIRE_ALL
        case CookieSecret() | ConfiguredEndpoints():
            record |= _encode_of_device(change)
    return record


def _encode_of_device(change: CookieSecret | ConfiguredEndpoints) -> Record:
    if isinstance(change, CookieSecret):
        return {"secret": change.secret, "created_at": change.created_at}
    return {"digests": b"".join(map(bytes.__add__, change.digests.keys(), change.digests.values()))}


def _encode_keypair(keypair: KeypairState | None) -> Record | None:
    if keypair is None:
        return None
    return {
        "local_index": keypair.local_index,
        "remote_index": keypair.remote_index,
        "send_key": keypair.send_key,
        "receive_key": keypair.receive_key,
        "created_at": keypair.created_at,
        "is_initiator": keypair.is_initiator,
        "slot": keypair.slot,
    }


# --- Decoding ---


class _Required:
    """The type of the default of a field that every release has written."""


_REQUIRED: Final = _Required()


class _Fields:
    """The fields of one map of a record; each is taken once, and `end` counts the rest as unknown.

    The methods that take a field raise SnapshotError when it is missing without a default, or has another type or
    range.
    """

    __slots__ = ("_fields", "_unknown", "_where")

    def __init__(self, where: str, fields: object, unknown: Unknown) -> None:
        self._where = where
        if type(fields) is not dict:
            raise self._error("", f"is of the type {type(fields).__name__}", "a map")
        self._fields = dict(fields)
        self._unknown = unknown

    def _error(self, name: str, found: str, expected: str) -> SnapshotError:
        # Numbers may be shown; bytes and text never: most of them are keys.
        field = f"{self._where}.{name}" if name else self._where
        return SnapshotError(f"journal: {field} {found}, expected {expected}; {REMEDY}")

    def _take(self, name: str, default: object) -> object:
        value = self._fields.pop(name, default)
        if value is _REQUIRED:
            raise self._error(name, "is missing", "every release to write it")
        return value

    def skip(self, *names: str) -> None:
        """Skip fields that the journal has checked."""
        for name in names:
            self._fields.pop(name, None)

    def octets(self, name: str, sizes: range | tuple[int, ...], default: bytes | _Required = _REQUIRED) -> bytes:
        """Take bytes of one of these sizes."""
        value = self._take(name, default)
        if type(value) is not bytes:
            raise self._error(name, f"is of the type {type(value).__name__}", "bytes")
        if len(value) not in sizes:
            raise self._error(name, f"has {len(value)} bytes", f"a size among {sizes}")
        return value

    def integer(self, name: str, maximum: int, *, minimum: int = 0, default: int | _Required = _REQUIRED) -> int:
        """Take an integer from `minimum` to `maximum`."""
        value = self._take(name, default)
        if type(value) is not int:
            raise self._error(name, f"is of the type {type(value).__name__}", "a number")
        if not minimum <= value <= maximum:
            raise self._error(name, f"is {value}", f"a number from {minimum} to {maximum}")
        return value

    def seconds(self, name: str, default: float | _Required = _REQUIRED) -> float:
        """Take a time in seconds, finite and not negative."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, float | int):
            raise self._error(name, f"is of the type {type(value).__name__}", "seconds")
        if not 0 <= value < math.inf:
            raise self._error(name, f"is {value}", "seconds, finite and not negative")
        return float(value)

    def flag(self, name: str) -> bool:
        """Take a boolean."""
        value = self._take(name, _REQUIRED)
        if type(value) is not bool:
            raise self._error(name, f"is of the type {type(value).__name__}", "true or false")
        return value

    def map(self, name: str) -> "_Fields":
        """Take a map."""
        return _Fields(f"{self._where}.{name}", self._take(name, _REQUIRED), self._unknown)

    def optional_map(self, name: str) -> "_Fields | None":
        """Take a map, or return None when it is missing or nil."""
        value = self._take(name, None)
        return None if value is None else _Fields(f"{self._where}.{name}", value, self._unknown)

    def packets(self, name: str) -> tuple[bytes, ...]:
        """Take an array of packets, each of at most 65,536 bytes."""
        value = self._take(name, _REQUIRED)
        if type(value) is not list:
            raise self._error(name, f"is of the type {type(value).__name__}", "an array")
        for packet in value:
            if type(packet) is not bytes or len(packet) not in _PACKET_SIZES:
                raise self._error(name, f"holds a {type(packet).__name__}", "packets of at most 65536 bytes")
        return tuple(value)

    def end(self) -> None:
        """Count the fields that were not taken as unknown."""
        self._unknown.fields += len(self._fields)


def decode_change(record: Record, unknown: Unknown) -> Change | None:
    """Return the change of a record (`state.stream`), or None for a record that is no change in this release.

    A type or a field that this release does not know is counted in `unknown`. Raises SnapshotError when a field is
    missing, or has another type or range.
    """
    change = plain_change(record)
    return change if change is not None else decode_at_length(record, unknown)


def decode_at_length(record: Record, unknown: Unknown) -> Change | None:
    """Like `decode_change`, which this is for every record that is not a usual one."""
    kind, key = record["type"], record["key"]
    retired = record.get("retire") is not None
    decoder = (_RETIRED if retired else _DECODERS).get(kind)
    if decoder is None:
        if kind not in _DECODERS and kind not in _RETIRED:
            unknown.types += 1
        return None
    fields = _Fields(f"record {kind!r}", record, unknown)
    fields.skip("type", "retire")
    fields.octets("key", (0,) if kind in _DEVICE_KINDS else (KEY_SIZE,))
    change = decoder(key, fields)
    fields.end()
    return change


def _decode_keypairs(peer: bytes, fields: _Fields) -> PeerKeypairs:
    older, previous, current, following = (
        _decode_keypair(fields.optional_map(name)) for name in ("older", "previous", "current", "next")
    )
    return PeerKeypairs(peer, previous, current, following, fields.seconds("last_handshake_unix", 0.0), older)


def _decode_keypair(fields: _Fields | None) -> KeypairState | None:
    if fields is None:
        return None
    keypair = KeypairState(
        local_index=fields.integer("local_index", _U32_MAX, minimum=1),
        remote_index=fields.integer("remote_index", _U32_MAX),
        send_key=fields.octets("send_key", (KEY_SIZE,)),
        receive_key=fields.octets("receive_key", (KEY_SIZE,)),
        created_at=fields.seconds("created_at"),
        is_initiator=fields.flag("is_initiator"),
        slot=fields.integer("slot", _U64_MAX),
    )
    fields.end()
    return keypair


def _decode_endpoint(peer: bytes, fields: _Fields) -> PeerEndpoint:
    inner = fields.map("endpoint")
    address = inner.octets("address", _ADDRESS_SIZES)
    endpoint = Endpoint(
        address=address,
        port=inner.integer("port", _PORT_MAX),
        scope_id=inner.integer("scope_id", _U32_MAX, default=0),
        local_address=inner.octets("local_address", (0, len(address)), b""),
        local_interface=inner.integer("local_interface", _U32_MAX, default=0),
    )
    inner.end()
    return PeerEndpoint(peer, endpoint)


def _decode_handshake(peer: bytes, fields: _Fields) -> PeerHandshake:
    return PeerHandshake(
        peer,
        local_index=fields.integer("local_index", _U32_MAX, minimum=1),
        ephemeral_private=fields.octets("ephemeral_private", (KEY_SIZE,)),
        chaining_key=fields.octets("chaining_key", (HASH_SIZE,)),
        hash=fields.octets("hash", (HASH_SIZE,)),
        mac1=fields.octets("mac1", (MAC_SIZE,)),
        started_at=fields.seconds("started_at"),
        sent_at=fields.seconds("sent_at"),
        retry_at=fields.seconds("retry_at"),
    )


def _decode_configured(_: bytes, fields: _Fields) -> ConfiguredEndpoints:
    entries = fields.octets("digests", _CONFIGURED_SIZES)
    starts = range(0, len(entries), _CONFIGURED_SIZE)
    return ConfiguredEndpoints(
        {entries[at : at + KEY_SIZE]: entries[at + KEY_SIZE : at + _CONFIGURED_SIZE] for at in starts}
    )


_Decoder = Callable[[bytes, _Fields], Change]

_DECODERS: dict[str, _Decoder] = {
    "peer": lambda peer, fields: PeerSeen(peer, fields.integer("slot", _U64_MAX)),
    "keypairs": _decode_keypairs,
    "endpoint": _decode_endpoint,
    "timestamp": lambda peer, fields: PeerTimestamp(
        peer, fields.octets("timestamp", (TIMESTAMP_SIZE,)), fields.seconds("received_at")
    ),
    "handshake": _decode_handshake,
    "cookie": lambda peer, fields: PeerCookie(
        peer, fields.octets("cookie", (COOKIE_SIZE,)), fields.seconds("received_at")
    ),
    "staged": lambda peer, fields: PeerStaged(
        peer, fields.packets("packets"), fields.integer("serial", _U32_MAX, default=0)
    ),
    "staged_more": lambda peer, fields: PeerStagedMore(
        peer, fields.packets("packets"), fields.integer("serial", _U32_MAX, minimum=1)
    ),
    "cookie_secret": lambda _, fields: CookieSecret(
        fields.octets("secret", _SECRET_SIZES), fields.seconds("created_at")
    ),
    "configured_endpoints": _decode_configured,
}

# A retirement as a change. A type that is not here is retired only together with its peer's removal, which is enough.
_RETIRED: dict[str, _Decoder] = {
    "peer": lambda peer, _: PeerRemoved(peer),
    "removed": lambda peer, _: PeerRemoved(peer),
    "keypairs": lambda peer, _: PeerKeypairs(peer, None, None, None, 0.0),
    "handshake": lambda peer, _: no_handshake(peer),
    "staged": lambda peer, _: PeerStaged(peer, ()),
    "staged_more": lambda peer, _: PeerStagedMore(peer, ()),
}
