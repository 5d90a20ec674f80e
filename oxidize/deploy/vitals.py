"""What a server tells of itself at one moment, and what lies between two such moments.

The rule: rates come from the server's own clock and totals, which run on across generations, so that one that was
replaced in between changes nothing. Fields that another release does not send have defaults. What a server says is
believed in nothing but its meaning: every type and every number is checked, here and not where it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from oxidize.errors import DecodeError

_RECEIVED, _SENT = "received_packets", "sent_packets"
_RECEIVED_BYTES, _SENT_BYTES = "received_packet_bytes", "sent_packet_bytes"

COUNT_MAX = (1 << 64) - 1  # a word
PID_MAX = 1 << 22  # PID_MAX_LIMIT of Linux
NUMBER_MAX = 1e11  # of times: seconds since the epoch until the year 5138
SECONDS_MIN = 1e-3  # between two moments that there are rates of

T = TypeVar("T")
Read = Callable[[object], T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One answer to the query "vitals".

    at: seconds of CLOCK_BOOTTIME. state: as /health says it. release_folder: where the process was started from.
    sessions: peers with a session that is alive. totals, drops: by the lower-case names of `Total` and `DropReason`.
    kernel_drops: datagrams lost because the socket's queue was full. takeovers: the last ones, oldest first.
    metrics_listen: where /health is answered, "host:port", None for nowhere. errors_before: the total "errors_logged"
    as it was when this generation began to serve; None where the release does not say.
    """

    at: float
    state: str
    generation: int
    release: str
    release_folder: str
    pid: int
    uptime_secs: float
    sessions: int
    peers: int
    totals: Mapping[str, int]
    drops: Mapping[str, int]
    kernel_drops: int
    takeovers: tuple[Mapping[str, Any], ...]
    metrics_listen: str | None
    errors_before: int | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Vitals":
        """Read an answer; raises DecodeError where it is none."""
        if not isinstance(answer, Mapping):
            raise DecodeError(f"the server's vitals cannot be read: a {type(answer).__name__}, expected a map")
        return cls(
            at=_field(answer, "at_boot_secs", _number),
            state=_field(answer, "state", _text),
            generation=_field(answer, "generation", _count),
            release=_field(answer, "release", _text),
            release_folder=_field(answer, "release_folder", _text, ""),
            pid=_field(answer, "pid", _pid),
            uptime_secs=_field(answer, "uptime_secs", _number),
            sessions=_field(answer, "sessions", _count),
            peers=_field(answer, "peers_configured", _count),
            totals=_field(answer, "totals", _counts),
            drops=_field(answer, "drops", _counts),
            kernel_drops=_field(answer, "kernel_drops", _count),
            takeovers=_field(answer, "takeovers", _takeovers, ()),
            metrics_listen=_field(answer, "metrics_listen", _text, None),
            errors_before=_field(answer, "errors_before", _count, None),
        )

    def total(self, name: str) -> int:
        """Return a total by its name; 0 for one that this server does not have."""
        return self.totals.get(name, 0)

    @property
    def blackout_ms(self) -> float | None:
        """Milliseconds without a reader in the takeover that made this generation; None without one."""
        for entry in reversed(self.takeovers):
            if entry.get("result") == "success":
                return entry.get("blackout_ms") if entry.get("generation") == self.generation else None
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerVitals:
    """A peer in the answer to the query "status".

    last_handshake_unix, session_ends_unix: seconds since the epoch, 0.0 for never, and for a release that does not say.
    received_packets: inner packets, in all.
    """

    name: str
    public_key: str
    has_session: bool
    last_handshake_unix: float
    session_ends_unix: float
    received_packets: int

    @classmethod
    def all_of(cls, answer: Mapping[str, Any]) -> "tuple[PeerVitals, ...]":
        """Read the peers of an answer; raises DecodeError where it is none."""
        peers = answer.get("peers") if isinstance(answer, Mapping) else None
        if not isinstance(peers, list) or not all(isinstance(peer, Mapping) for peer in peers):
            raise DecodeError("the server's status cannot be read: it has no list of peers")
        return tuple(cls._of(peer) for peer in peers)

    @classmethod
    def _of(cls, peer: Mapping[str, Any]) -> "PeerVitals":
        return cls(
            name=_field(peer, "name", _text),
            public_key=_field(peer, "public_key", _text),
            has_session=_field(peer, "has_session", _flag),
            last_handshake_unix=_field(peer, "last_handshake_unix", _number),
            session_ends_unix=_field(peer, "session_ends_unix", _number, 0.0),
            received_packets=_field(peer, "received_packets", _count),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What passed through the tunnels, a second: inner packets, and their bytes, received and sent."""

    received: float
    sent: float
    received_bytes: float
    sent_bytes: float

    @property
    def packets(self) -> float:
        """Both ways."""
        return self.received + self.sent


def rates(earlier: Vitals, later: Vitals) -> Rates:
    """Return the rates between two moments; zero where hardly any time lies between them."""
    seconds = later.at - earlier.at

    def rate(name: str) -> float:
        # Totals that went back are those of a server without its predecessor's state.
        return max(0, later.total(name) - earlier.total(name)) / seconds if seconds >= SECONDS_MIN else 0.0

    return Rates(rate(_RECEIVED), rate(_SENT), rate(_RECEIVED_BYTES), rate(_SENT_BYTES))


class _WrongError(Exception):
    """A value is not what it is to be; the text says what that is."""


_NEEDED: Any = object()


def _field(answer: Mapping[str, Any], name: str, read: Read[T], default: Any = _NEEDED) -> T | Any:
    """Return a field as `read` has it; with a default it may be missing, and where that is None be null."""
    if name not in answer:
        if default is _NEEDED:
            raise DecodeError(f"the server's vitals cannot be read: they have no {name!r}")
        return default
    value = answer[name]
    if value is None and default is None:
        return None
    try:
        return read(value)
    except _WrongError as wrong:
        raise DecodeError(f"the server's vitals cannot be read: {name} is no {wrong}") from wrong


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise _WrongError("boolean")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise _WrongError("text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise _WrongError("count")
    return value


def _pid(value: object) -> int:
    if not 0 < _count(value) <= PID_MAX:
        raise _WrongError("process number")
    return _count(value)


def _number(value: object) -> float:
    if type(value) not in {int, float} or not 0 <= value <= NUMBER_MAX:  # type: ignore[operator]
        raise _WrongError("number of a size that makes sense")
    return float(value)  # type: ignore[arg-type]


def _counts(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise _WrongError("map of counts")
    return {_text(name): _count(number) for name, number in value.items()}


_OF_TAKEOVER: dict[str, Read[Any]] = {
    "at_unix": _number,
    "result": _text,
    "way": _text,
    "reason": _text,
    "release": _text,
    "generation": _count,
    "sessions": _count,
    "blackout_ms": _number,
}
_MAY_BE_NONE = frozenset({"blackout_ms"})  # after a death nobody knows since when nobody read


def _takeovers(value: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list | tuple):
        raise _WrongError("list of takeovers")
    return tuple(_takeover(entry) for entry in value)


def _takeover(entry: object) -> dict[str, Any]:
    """Return those fields of an entry that have a meaning here."""
    if not isinstance(entry, Mapping):
        raise _WrongError("list of takeovers: one of them is no map")
    try:
        return {
            name: None if entry[name] is None and name in _MAY_BE_NONE else read(entry[name])
            for name, read in _OF_TAKEOVER.items()
            if name in entry
        }
    except _WrongError as wrong:
        raise _WrongError(f"list of takeovers: in one of them something is no {wrong}") from wrong
