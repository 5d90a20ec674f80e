"""The messages of a takeover: string-keyed msgpack maps, one to a datagram.

The rule: a release may add fields, with defaults. It renames, retypes and reuses none, and a reader ignores the ones
that it does not know, so that an old release can take over from a new one (a rollback). A change that must be
understood raises `protocol_min` of HELLO. docs/takeover-protocol.md is the specification, held equal by a test.
Source: the msgpack specification; its string, binary, integer, float, boolean, nil, array and map families are used,
extensions are not.

Decoders raise only DecodeError. Encoders raise StateError, for their input comes from this process.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import msgpack

from oxidize.errors import DecodeError, StateError

PROTOCOL = 1  # the version spoken here
PROTOCOL_MIN = 1  # the oldest one that is still spoken

MESSAGE_BYTES_MAX = 65_536  # a socket's default send buffer (212,992) holds three
DEPTH_MAX = 16  # of maps and arrays within one another
REASON_BYTES_MAX = 4_096  # in UTF-8; a longer one is cut: reporting a failure must never fail
NAME_CHARS_MAX = 255
FDS_MAX = 512  # of one offer; half of the usual soft limit of open files
VERSIONS_MAX = 256  # and abilities

CONNECT_ATTEMPTS_MAX = 5  # connections lost before an answer: each was to a process that had just handed over
RETRY_DELAY = 0.05  # seconds before connecting again; a new owner listens before the old one stops

Opaque = dict[str, Any]  # the host's own, of msgpack's types; tuples arrive as lists


class Hello(NamedTuple):
    """Successor: its identity, and the versions of the protocol and of the state that it reads.

    network_namespace, time_namespace: as in `takeover.namespaces`, "" where unknown. abilities: what else of the host's
    it understands, by names of the host.
    """

    release: str
    pid: int
    snapshot_versions: tuple[int, ...]
    protocol: int = PROTOCOL
    protocol_min: int = PROTOCOL_MIN
    network_namespace: str = ""
    time_namespace: str = ""
    abilities: tuple[str, ...] = ()


class FdEntry(NamedTuple):
    """One descriptor of an offer: its name, what it is, and what must be known to use it (options, framing)."""

    name: str
    kind: str
    options: Opaque


class OfferMessage(NamedTuple):
    """Predecessor: all that a successor needs. The descriptors of `fds` come, in order, with this and with MoreFds."""

    generation: int
    release: str
    fds: tuple[FdEntry, ...]
    state: Opaque
    protocol: int = PROTOCOL


class MoreFds(NamedTuple):
    """Predecessor: the next descriptors of an offer that has more than one datagram carries."""


class Ready(NamedTuple):
    """Successor: the state is restored; `report` has what was restored and what was refused."""

    report: Opaque


class CommitMessage(NamedTuple):
    """Predecessor: the successor owns. No process has read since `frozen_at`, in seconds of the common clock."""

    frozen_at: float
    info: Opaque


class Taken(NamedTuple):
    """Successor: the first iteration of its loop is done; the predecessor exits."""

    info: Opaque


class Busy(NamedTuple):
    """Predecessor: another successor is being served."""

    reason: str


class Refused(NamedTuple):
    """Predecessor: the HELLO or the query is refused."""

    reason: str


class Withdrawn(NamedTuple):
    """Predecessor: the offer is void, and the predecessor still serves."""

    reason: str


class Failed(NamedTuple):
    """Successor: it gave up and never owns."""

    reason: str


class Query(NamedTuple):
    """Any authorised process: a question to the host."""

    name: str


class Reply(NamedTuple):
    """Predecessor: the answer is the content of the memfd in this datagram, from its first byte to its last.

    The descriptors of `fds` follow it in order, in the same datagram.
    """

    fds: tuple[FdEntry, ...] = ()


Message = (
    Hello | OfferMessage | MoreFds | Ready | CommitMessage | Taken | Busy | Refused | Withdrawn | Failed | Query | Reply
)


_TYPES: Mapping[str, type[Any]] = {
    "hello": Hello,
    "offer": OfferMessage,
    "more_fds": MoreFds,
    "ready": Ready,
    "commit": CommitMessage,
    "taken": Taken,
    "busy": Busy,
    "refused": Refused,
    "withdrawn": Withdrawn,
    "failed": Failed,
    "query": Query,
    "reply": Reply,
}
# By message: the fields that the first releases did not send, and what is read in their place.
_OLDER: Mapping[str, Opaque] = {"hello": {"network_namespace": "", "time_namespace": ""}, "reply": {"fds": []}}
_NAMES: Mapping[type, str] = {kind: name for name, kind in _TYPES.items()}


def fit_reason(reason: str) -> str:
    """Return a reason that can be sent and recorded: UTF-8 of REASON_BYTES_MAX bytes at most, without a divided one."""
    # It may hold surrogates, from file names that are not UTF-8.
    return reason.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")


# --- Reading: a wrong value raises a DecodeError that names the message and the field ---


def _typed(where: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise DecodeError(f"{where} is a {type(value).__name__}; expected {kind.__name__}")
    return value


def _text(where: str, value: Any) -> str:
    text: str = _typed(where, value, str)
    if len(text) > NAME_CHARS_MAX:
        raise DecodeError(f"{where} has {len(text)} characters; expected at most {NAME_CHARS_MAX}")
    return text


def _reason(where: str, value: Any) -> str:
    """Return a reason, cut where it is too long: the first releases counted characters."""
    return fit_reason(_typed(where, value, str))


def _time(where: str, value: Any) -> float:
    if type(value) is not float or not isfinite(value) or value < 0:
        raise DecodeError(f"{where} is {value!r:.80}; expected a time in seconds")
    return value


def _integer(where: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise DecodeError(f"{where} is {value!r:.80}; expected a non-negative integer")
    return value


def _integers(where: str, value: Any) -> tuple[int, ...]:
    values = _typed(where, value, list)
    if len(values) > VERSIONS_MAX or not all(type(each) is int for each in values):
        raise DecodeError(f"{where} is no list of at most {VERSIONS_MAX} integers")
    return tuple(values)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = _typed(where, value, list)
    if len(values) > VERSIONS_MAX:
        raise DecodeError(f"{where} has {len(values)} strings; expected at most {VERSIONS_MAX}")
    return tuple(_text(where, each) for each in values)


def _entries(where: str, value: Any) -> tuple[FdEntry, ...]:
    values = _typed(where, value, list)
    if len(values) > FDS_MAX:
        raise DecodeError(f"{where} names {len(values)} descriptors; expected at most {FDS_MAX}")
    for each in values:
        if not isinstance(each, dict):
            raise DecodeError(f"{where} has a {type(each).__name__}; expected maps")
    return tuple(_read(FdEntry, where, each) for each in values)


_opaque = partial(_typed, kind=dict)

# The name of a field, in any message, and the function that reads it.
_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "release": _text,
    "pid": _integer,
    "snapshot_versions": _integers,
    "protocol": _integer,
    "protocol_min": _integer,
    "network_namespace": _text,
    "time_namespace": _text,
    "abilities": _texts,
    "generation": _integer,
    "fds": _entries,
    "kind": _text,
    "options": _opaque,
    "state": _opaque,
    "report": _opaque,
    "frozen_at": _time,
    "info": _opaque,
    "reason": _reason,
    "name": _text,
}


def _read(kind: type[Any], of: str, fields: Mapping[str, Any]) -> Any:
    return kind(**{key: _READERS[key](f"{of}.{key}", fields.get(key)) for key in kind._fields})


def encode(message: Message) -> bytes:
    """Encode a message, its reason cut to REASON_BYTES_MAX.

    Raises StateError if a value is not of msgpack's types or the message exceeds MESSAGE_BYTES_MAX.
    """
    name = _NAMES[type(message)]
    fields: Opaque = {"type": name}
    for key in message._fields:
        value = getattr(message, key)
        if key == "fds":
            value = [{"name": each.name, "kind": each.kind, "options": each.options} for each in value]
        elif key == "reason":
            value = fit_reason(value)
        fields[key] = value
    problem = _find_alien(fields)
    if problem:
        raise StateError(f"a {name} message cannot be encoded: {problem}")
    try:
        data: bytes = msgpack.packb(fields)
    except (ValueError, OverflowError, TypeError) as error:
        raise StateError(f"a {name} message cannot be encoded: {error}") from error
    if len(data) > MESSAGE_BYTES_MAX:
        raise StateError(f"a {name} message of {len(data)} bytes; expected at most {MESSAGE_BYTES_MAX}: shorten it")
    return data


def decode(data: bytes) -> Message:
    """Decode a message; raises DecodeError for bytes that are none."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise DecodeError(f"a message of {len(data)} bytes; expected at most {MESSAGE_BYTES_MAX}")
    try:
        fields = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, OverflowError, msgpack.UnpackException, RecursionError) as error:
        raise DecodeError(f"{len(data)} bytes that are no msgpack map: {type(error).__name__}: {error}") from error
    if not isinstance(fields, dict):
        raise DecodeError(f"a message is a {type(fields).__name__}; expected a map")
    problem = _find_alien(fields)
    if problem:
        raise DecodeError(f"a message of other types: {problem}")
    name = fields.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise DecodeError(f"a message of type {name!r:.80}; expected one of {', '.join(_TYPES)}")
    message: Message = _read(_TYPES[name], name, {**_OLDER.get(name, {}), **fields})
    return message


def _find_alien(value: Any) -> str:
    """Return the first value of a tree that msgpack cannot carry, or ""; not recursive, for the tree may be hostile."""
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        each, depth = todo.pop()
        if depth > DEPTH_MAX:
            return f"nested more than {DEPTH_MAX} deep"
        if isinstance(each, dict):
            for key in each:
                if not isinstance(key, str):
                    return f"a key is {key!r:.80}, expected a string"
            todo.extend((inner, depth + 1) for inner in each.values())
        elif isinstance(each, list | tuple) and type(each) in {list, tuple}:
            todo.extend((inner, depth + 1) for inner in each)
        elif each is not None and type(each) not in {bool, int, float, str, bytes}:
            return f"a {type(each).__name__}, expected a map, list, string, bytes, number, boolean or None"
    return ""
