"""A server's answer to the query "vitals", and the rates between two answers.

The rule: rates come from the server's own clock and totals, which continue across generations, so that a takeover in
between makes no difference. Fields that another release does not send have defaults. Every type and every number of an
answer is checked here, and not where it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from oxidize.errors import DecodeError

_RECEIVED, _SENT = "received_packets", "sent_packets"
_RECEIVED_BYTES, _SENT_BYTES = "received_packet_bytes", "sent_packet_bytes"

COUNT_MAX = (1 << 64) - 1  # a 64-bit counter
PID_MAX = 1 << 22  # PID_MAX_LIMIT of Linux
NUMBER_MAX = 1e11  # of times: seconds since the epoch until the year 5138
SECONDS_MIN = 1e-3  # between two answers, for rates

T = TypeVar("T")
Read = Callable[[object], T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One answer to the query "vitals".

    at: seconds of CLOCK_BOOTTIME. state: as in /health. release_folder: where the process was started from.
    sessions: peers with a live session. totals, drops: by the lower-case names of `Total` and `DropReason`.
    kernel_drops: datagrams lost because the socket's queue was full. takeovers: the last ones, oldest first.
    metrics_listen: "host:port" of /health, None if there is none. errors_before: the total "errors_logged" at the time
    when this generation began to serve; None if the release does not send it.
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
        """Parse an answer; raises DecodeError if it is invalid."""
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
        """Return a total by its name; 0 if this server does not have it."""
        return self.totals.get(name, 0)

    @property
    def blackout_ms(self) -> float | None:
        """Milliseconds without a reader in the takeover that made this generation; None if there was none."""
        for entry in reversed(self.takeovers):
            if entry.get("result") == "success":
                return entry.get("blackout_ms") if entry.get("generation") == self.generation else None
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerVitals:
    """A peer in the answer to the query "status".

    last_handshake_unix, session_ends_unix: seconds since the epoch, 0.0 for never, and if the release does not send it.
    received_packets: total of inner packets.
    """

    name: str
    public_key: str
    has_session: bool
    last_handshake_unix: float
    session_ends_unix: float
    received_packets: int

    @classmethod
    def all_of(cls, answer: Mapping[str, Any]) -> "tuple[PeerVitals, ...]":
        """Parse the peers of an answer; raises DecodeError if it is invalid."""
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
    """Traffic through the tunnels per second: inner packets and their bytes, received and sent."""

    received: float
    sent: float
    received_bytes: float
    sent_bytes: float


def rates(earlier: Vitals, later: Vitals) -> Rates:
    """Return the rates between two answers; zero if they are less than SECONDS_MIN apart."""
    seconds = later.at - earlier.at

    def rate(name: str) -> float:
        # Totals that went back are those of a server without its predecessor's state.
        return max(0, later.total(name) - earlier.total(name)) / seconds if seconds >= SECONDS_MIN else 0.0

    return Rates(rate(_RECEIVED), rate(_SENT), rate(_RECEIVED_BYTES), rate(_SENT_BYTES))


class _WrongError(Exception):
    """A value has the wrong type or range; the text names the expected one."""


_NEEDED: Any = object()


def _field(answer: Mapping[str, Any], name: str, read: Read[T], default: Any = _NEEDED) -> T | Any:
    """Return a field parsed by `read`. With a default it may be missing; with the default None it may be null."""
    if name not in answer:
        if default is _NEEDED:
            raise DecodeError(f"the server's vitals cannot be read: {name!r} is missing")
        return default
    value = answer[name]
    if value is None and default is None:
        return None
    try:
        return read(value)
    except _WrongError as wrong:
        raise DecodeError(f"the server's vitals cannot be read: {name}: expected a {wrong}") from wrong


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
        raise _WrongError(f"number of at most {NUMBER_MAX:g}")
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
_MAY_BE_NONE = frozenset({"blackout_ms"})  # unknown after the death of the predecessor


def _takeovers(value: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list | tuple):
        raise _WrongError("list of takeovers")
    return tuple(_takeover(entry) for entry in value)


def _takeover(entry: object) -> dict[str, Any]:
    """Return the known fields of an entry."""
    if not isinstance(entry, Mapping):
        raise _WrongError("list of takeovers, each a map")
    try:
        return {
            name: None if entry[name] is None and name in _MAY_BE_NONE else read(entry[name])
            for name, read in _OF_TAKEOVER.items()
            if name in entry
        }
    except _WrongError as wrong:
        raise _WrongError(f"list of takeovers; a field of one is not a {wrong}") from wrong
