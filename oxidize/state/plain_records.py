"""The records that a server has of every peer, decoded at a third of the cost where nothing about them is unusual.

The rule: what is decoded here is what `state.records` decodes, which is asked for everything else: a field that is
missing, unknown or of another type or range is its business alone. With a hundred thousand peers these four records are
most of what a restore reads.
"""

from collections.abc import Callable
from math import inf
from operator import itemgetter
from typing import Any

from oxidize.protocol.changes import Change, KeypairState, PeerEndpoint, PeerKeypairs, PeerSeen, PeerTimestamp
from oxidize.protocol.constants import KEY_SIZE, TIMESTAMP_SIZE
from oxidize.protocol.endpoint import Endpoint
from oxidize.state.stream import Record

_U32_MAX = (1 << 32) - 1
_U64_MAX = (1 << 64) - 1
_PORT_MAX = (1 << 16) - 1

_RECORD_FIELDS = 2  # of every record: type and key
_KEYPAIR = itemgetter(
    "local_index", "remote_index", "send_key", "receive_key", "created_at", "is_initiator", "slot"
)  # in the order of `KeypairState`
_KEYPAIR_FIELDS = 7
_ENDPOINT = itemgetter(*Endpoint._fields)


class _UnusualError(Exception):
    """A record is left to `state.records`."""


def plain_change(record: Record) -> Change | None:
    """Return the change of a record whose fields are the usual ones, None for any other."""
    decode = _DECODERS.get(record["type"])
    if decode is None or len(record["key"]) != KEY_SIZE:
        return None
    try:
        return decode(record["key"], record)
    except (KeyError, _UnusualError):
        return None


def _peer(peer: bytes, record: Record) -> PeerSeen:
    slot = record["slot"]
    if len(record) == _RECORD_FIELDS + 1 and type(slot) is int and 0 <= slot <= _U64_MAX:
        return PeerSeen(peer, slot)
    raise _UnusualError


def _keypairs(peer: bytes, record: Record) -> PeerKeypairs:
    at = record["last_handshake_unix"]
    if len(record) == _RECORD_FIELDS + 4 and type(at) is float and 0 <= at < inf:
        previous, current, following = record["previous"], record["current"], record["next"]
        return PeerKeypairs(peer, _keypair(previous), _keypair(current), _keypair(following), at)
    raise _UnusualError


def _keypair(fields: Any) -> KeypairState | None:
    if fields is None:
        return None
    if type(fields) is dict and len(fields) == _KEYPAIR_FIELDS:
        local, remote, send_key, receive_key, created_at, is_initiator, slot = values = _KEYPAIR(fields)
        if (
            type(local) is type(remote) is type(slot) is int
            and 0 < local <= _U32_MAX
            and 0 <= remote <= _U32_MAX
            and 0 <= slot <= _U64_MAX
            and type(send_key) is type(receive_key) is bytes
            and len(send_key) == len(receive_key) == KEY_SIZE
            and type(created_at) is float
            and 0 <= created_at < inf
            and type(is_initiator) is bool
        ):
            return KeypairState(*values)
    raise _UnusualError


def _endpoint(peer: bytes, record: Record) -> PeerEndpoint:
    fields = record["endpoint"]
    if len(record) == _RECORD_FIELDS + 1 and type(fields) is dict and len(fields) == len(Endpoint._fields):
        address, port, scope_id, local_address, local_interface = values = _ENDPOINT(fields)
        if (
            type(address) is type(local_address) is bytes
            and len(address) in (4, 16)
            and len(local_address) in (0, len(address))
            and type(port) is type(scope_id) is type(local_interface) is int
            and 0 <= port <= _PORT_MAX
            and 0 <= scope_id <= _U32_MAX
            and 0 <= local_interface <= _U32_MAX
        ):
            return PeerEndpoint(peer, Endpoint(*values))
    raise _UnusualError


def _timestamp(peer: bytes, record: Record) -> PeerTimestamp:
    timestamp, at = record["timestamp"], record["received_at"]
    if (
        len(record) == _RECORD_FIELDS + 2
        and type(timestamp) is bytes
        and len(timestamp) == TIMESTAMP_SIZE
        and type(at) is float
        and 0 <= at < inf
    ):
        return PeerTimestamp(peer, timestamp, at)
    raise _UnusualError


_DECODERS: dict[str, Callable[[bytes, Record], Change]] = {
    "peer": _peer,
    "keypairs": _keypairs,
    "endpoint": _endpoint,
    "timestamp": _timestamp,
}
