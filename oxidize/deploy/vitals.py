"""A server's answer to the query "vitals", and the rates between two answers.

The rule: rates come from the server's own clock and totals, which continue across generations, so that a takeover in
between makes no difference. Fields that another release does not send have defaults. Every type and every number of an
answer is checked here, and not where it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field, StrictBool, TypeAdapter, ValidationError

from oxidize.errors import DecodeError

_RECEIVED, _SENT = "received_packets", "sent_packets"
_RECEIVED_BYTES, _SENT_BYTES = "received_packet_bytes", "sent_packet_bytes"

COUNT_MAX = (1 << 64) - 1  # a 64-bit counter
PID_MAX = 1 << 22  # PID_MAX_LIMIT of Linux
NUMBER_MAX = 1e11  # of times: seconds since the epoch until the year 5138
SECONDS_MIN = 1e-3  # between two answers, for rates

T = TypeVar("T")
Count = Annotated[int, Field(strict=True, ge=0, le=COUNT_MAX)]
Pid = Annotated[int, Field(strict=True, gt=0, le=PID_MAX)]
Number = Annotated[float, Field(strict=True, ge=0, le=NUMBER_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """One entry of a server's takeover history; fields that this kind of entry lacks have their defaults.

    way: of a success. reason: of a failure. generation: the one that serves after it. blackout_ms: None if it is
    unknown, after the death of the predecessor.
    """

    at_unix: Number = 0.0
    result: str = ""
    way: str = ""
    reason: str = ""
    generation: Count | None = None
    release: str | None = None
    sessions: Count | None = None
    blackout_ms: Number | None = None

    @property
    def succeeded(self) -> bool:
        """Whether another generation serves since."""
        return self.result == "success"

    @property
    def what(self) -> str:
        """The way of a success or the reason of a failure, on one line."""
        return " ".join((self.way if self.succeeded else self.reason).split())

    @property
    def generations(self) -> str:
        """The generations before and after."""
        if self.generation is None:
            return "-"
        if not self.succeeded:
            return f"{self.generation} stays"
        # A generation's number is its predecessor's plus one; the first has no predecessor.
        return f"{self.generation - 1} -> {self.generation}" if self.generation > 1 else str(self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One answer to the query "vitals".

    at: seconds of CLOCK_BOOTTIME. state: as in /health. release_folder: where the process was started from.
    sessions: peers with a live session. totals, drops: by the lower-case names of `Total` and `DropReason`.
    kernel_drops: datagrams lost because the socket's queue was full, and those that were shed (the total
    "shed_datagrams"). takeovers: the last ones, oldest first.
    metrics_listen: "host:port" of /health, None if there is none. errors_before: the total "errors_logged" at the time
    when this generation began to serve; None if the release does not send it.
    """

    at: Annotated[Number, Field(alias="at_boot_secs")]
    state: str
    generation: Count
    release: str
    release_folder: str = ""
    pid: Pid
    uptime_secs: Number
    sessions: Count
    peers: Annotated[Count, Field(alias="peers_configured")]
    totals: Mapping[str, Count]
    drops: Mapping[str, Count]
    kernel_drops: Count
    takeovers: tuple[Takeover, ...] = ()
    metrics_listen: str | None = None
    errors_before: Count | None = None

    @classmethod
    def of(cls, answer: object) -> "Vitals":
        """Parse an answer; raises DecodeError if it is invalid."""
        return _parsed(_VITALS, "vitals", answer)

    def total(self, name: str) -> int:
        """Return a total by its name; 0 if this server does not have it."""
        return self.totals.get(name, 0)

    @property
    def blackout_ms(self) -> float | None:
        """Milliseconds without a reader in the takeover that made this generation; None if there was none."""
        for entry in reversed(self.takeovers):
            if entry.succeeded:
                return entry.blackout_ms if entry.generation == self.generation else None
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerVitals:
    """A peer in the answer to the query "status".

    last_handshake_unix, session_ends_unix: seconds since the epoch, 0.0 for never, and if the release does not send it.
    received_packets: total of inner packets.
    """

    name: str
    public_key: str
    has_session: StrictBool
    last_handshake_unix: Number
    session_ends_unix: Number = 0.0
    received_packets: Count

    @classmethod
    def all_of(cls, answer: object) -> "tuple[PeerVitals, ...]":
        """Parse the peers of an answer; raises DecodeError if it is invalid."""
        return _parsed(_STATUS, "status", answer).peers


@dataclass(frozen=True, slots=True)
class _Status:
    peers: tuple[PeerVitals, ...]


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


_VITALS = TypeAdapter(Vitals)
_STATUS = TypeAdapter(_Status)


def _parsed(adapter: TypeAdapter[T], what: str, answer: object) -> T:
    try:
        return adapter.validate_python(answer)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, wrong["loc"]))
        expected = wrong["msg"].removeprefix("Input should be ")
        reason = f"{name!r} is missing" if wrong["type"] == "missing" else f"{name or what}: expected {expected}"
        raise DecodeError(f"the server's {what} cannot be read: {reason}") from error
