"""The messages of a takeover: string-keyed msgpack maps, one to a datagram.

The rule: a release may add fields, with defaults. It renames, retypes and reuses none, and a reader ignores the ones
that it does not know, so that an old release can take over from a new one (a rollback). A change that must be
understood raises `protocol_min` of HELLO. docs/takeover-protocol.md is the specification, held equal by a test.
Source: the msgpack specification; its string, binary, integer, float, boolean, nil,
array and map families are used, extensions are not.

Decoders raise only DecodeError. Encoders raise StateError, for their input comes from this process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from oxidize.errors import DecodeError, StateError

PROTOCOL = 1  # the version spoken here
PROTOCOL_MIN = 1  # the oldest one that is still spoken

MESSAGE_BYTES_MAX = 65_536  # a socket's default send buffer (212,992) holds three
DEPTH_MAX = 16  # of maps and arrays within one another
REASON_CHARS_MAX = 4_096  # a longer one is cut: reporting a failure must never fail
NAME_CHARS_MAX = 255
FDS_MAX = 512  # of one offer; half of the usual soft limit of open files
VERSIONS_MAX = 256

Opaque = dict[str, Any]  # the host's own, of msgpack's types; tuples arrive as lists


@dataclass(frozen=True, slots=True)
class Hello:
    """Successor: its identity, and the versions of the protocol and of the state that it reads."""

    release: str
    pid: int
    snapshot_versions: tuple[int, ...]
    protocol: int = PROTOCOL
    protocol_min: int = PROTOCOL_MIN


@dataclass(frozen=True, slots=True)
class FdEntry:
    """One descriptor of an offer: its name, what it is, and what must be known to use it (options, framing)."""

    name: str
    kind: str
    options: Opaque = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfferMessage:
    """Predecessor: all that a successor needs. The descriptors of `fds` come, in order, with this and with MoreFds."""

    generation: int
    release: str
    fds: tuple[FdEntry, ...]
    state: Opaque
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class MoreFds:
    """Predecessor: the next descriptors of an offer that has more than one datagram carries."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Successor: the state is restored; `report` has what was restored and what was refused."""

    report: Opaque


@dataclass(frozen=True, slots=True)
class CommitMessage:
    """Predecessor: the successor owns. No process has read since `frozen_at`, in seconds of the common clock."""

    frozen_at: float
    info: Opaque


@dataclass(frozen=True, slots=True)
class Taken:
    """Successor: the first iteration of its loop is done; the predecessor exits."""

    info: Opaque


@dataclass(frozen=True, slots=True)
class Busy:
    """Predecessor: another successor is being served."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Predecessor: the HELLO or the query is refused."""

    reason: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Predecessor: the offer is void, and the predecessor still serves."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Successor: it gave up and never owns."""

    reason: str


@dataclass(frozen=True, slots=True)
class Query:
    """Any authorised process: a question to the host."""

    name: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Predecessor: the answer is the content of the memfd in this datagram, from its first byte to its last.

    The descriptors of `fds` follow it in order, in the same datagram.
    """

    fds: tuple[FdEntry, ...] = ()


Message = (
    Hello | OfferMessage | MoreFds | Ready | CommitMessage | Taken | Busy | Refused | Withdrawn | Failed | Query | Reply
)


class _Fields:
    """A decoded map, read field by field; a wrong type raises a DecodeError that names the field."""

    def __init__(self, of: str, fields: Mapping[str, Any]) -> None:
        self._of = of
        self._fields = fields

    def text(self, key: str, chars_max: int = NAME_CHARS_MAX) -> str:
        value = self._get(key, str)
        if len(value) > chars_max:
            raise DecodeError(f"{self._of}.{key} has {len(value)} characters; expected at most {chars_max}")
        return str(value)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._fields.get(key, default)
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise DecodeError(f"{self._of}.{key} is {value!r:.80}; expected a non-negative integer")
        return value

    def seconds(self, key: str) -> float:
        return float(self._get(key, float))

    def opaque(self, key: str) -> Opaque:
        return dict(self._get(key, dict))

    def integers(self, key: str) -> tuple[int, ...]:
        values = self._get(key, list)
        if len(values) > VERSIONS_MAX or not all(type(value) is int for value in values):
            raise DecodeError(f"{self._of}.{key} is no list of at most {VERSIONS_MAX} integers")
        return tuple(values)

    def entries(self, key: str, *, may_be_missing: bool = False) -> tuple[FdEntry, ...]:
        if may_be_missing and key not in self._fields:
            return ()
        values = self._get(key, list)
        if len(values) > FDS_MAX:
            raise DecodeError(f"{self._of}.{key} names {len(values)} descriptors; expected at most {FDS_MAX}")
        entries = []
        for value in values:
            if not isinstance(value, dict):
                raise DecodeError(f"{self._of}.{key} has a {type(value).__name__}; expected maps")
            each = _Fields(f"{self._of}.{key}", value)
            entries.append(FdEntry(each.text("name"), each.text("kind"), each.opaque("options")))
        return tuple(entries)

    def _get(self, key: str, kind: type) -> Any:
        value = self._fields.get(key)
        if type(value) is not kind:
            raise DecodeError(f"{self._of}.{key} is a {type(value).__name__}; expected {kind.__name__}")
        return value


def _hello(fields: _Fields) -> Hello:
    return Hello(
        release=fields.text("release"),
        pid=fields.integer("pid"),
        snapshot_versions=fields.integers("snapshot_versions"),
        protocol=fields.integer("protocol"),
        protocol_min=fields.integer("protocol_min"),
    )


def _offer(fields: _Fields) -> OfferMessage:
    return OfferMessage(
        generation=fields.integer("generation"),
        release=fields.text("release"),
        fds=fields.entries("fds"),
        state=fields.opaque("state"),
        protocol=fields.integer("protocol"),
    )


# Wire name -> the dataclass, whose fields are written, and the function that reads them.
_TYPES: Mapping[str, tuple[type, Callable[[_Fields], Message]]] = {
    "hello": (Hello, _hello),
    "offer": (OfferMessage, _offer),
    "more_fds": (MoreFds, lambda _: MoreFds()),
    "ready": (Ready, lambda fields: Ready(fields.opaque("report"))),
    "commit": (CommitMessage, lambda fields: CommitMessage(fields.seconds("frozen_at"), fields.opaque("info"))),
    "taken": (Taken, lambda fields: Taken(fields.opaque("info"))),
    "busy": (Busy, lambda fields: Busy(fields.text("reason", REASON_CHARS_MAX))),
    "refused": (Refused, lambda fields: Refused(fields.text("reason", REASON_CHARS_MAX))),
    "withdrawn": (Withdrawn, lambda fields: Withdrawn(fields.text("reason", REASON_CHARS_MAX))),
    "failed": (Failed, lambda fields: Failed(fields.text("reason", REASON_CHARS_MAX))),
    "query": (Query, lambda fields: Query(fields.text("name"))),
    "reply": (Reply, lambda fields: Reply(fields.entries("fds", may_be_missing=True))),
}
_NAMES: Mapping[type, str] = {kind: name for name, (kind, _) in _TYPES.items()}


def encode(message: Message) -> bytes:
    """Encode a message, its reason cut to REASON_CHARS_MAX.

    Raises StateError if a value is not of msgpack's types or the message exceeds MESSAGE_BYTES_MAX.
    """
    name = _NAMES[type(message)]
    fields: Opaque = {"type": name}
    for key in message.__dataclass_fields__:
        value = getattr(message, key)
        if key == "fds":
            value = [{"name": each.name, "kind": each.kind, "options": each.options} for each in value]
        elif key == "reason":
            # It may hold surrogates, from file names that are not UTF-8.
            value = value[:REASON_CHARS_MAX].encode("utf-8", "replace").decode()
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
    return _TYPES[name][1](_Fields(name, fields))


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
