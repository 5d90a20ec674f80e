"""What a server tells of itself at one moment, and what lies between two such moments.

The rule: rates come from the server's own clock and totals, which run on across generations, so that one that was
replaced in between changes nothing. Fields that another release does not send have defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oxidize.errors import DecodeError

_RECEIVED, _SENT = "received_packets", "sent_packets"
_RECEIVED_BYTES, _SENT_BYTES = "received_packet_bytes", "sent_packet_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One answer to the query "vitals".

    at: seconds of CLOCK_BOOTTIME. state: as /health says it. release_folder: where the process was started from.
    sessions: peers with a session that is alive. totals, drops: by the lower-case names of `Total` and `DropReason`.
    kernel_drops: datagrams lost because the socket's queue was full. takeovers: the last ones, oldest first.
    metrics_listen: where /health is answered, "host:port", None for nowhere.
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
        try:
            return cls(
                at=float(answer["at_boot_secs"]),
                state=str(answer["state"]),
                generation=int(answer["generation"]),
                release=str(answer["release"]),
                release_folder=str(answer.get("release_folder", "")),
                pid=int(answer["pid"]),
                uptime_secs=float(answer["uptime_secs"]),
                sessions=int(answer["sessions"]),
                peers=int(answer["peers_configured"]),
                totals=dict(answer["totals"]),
                drops=dict(answer["drops"]),
                kernel_drops=int(answer["kernel_drops"]),
                takeovers=tuple(answer.get("takeovers", ())),
                metrics_listen=answer.get("metrics_listen"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"the server's vitals cannot be read: {error!r}") from error

    def total(self, name: str) -> int:
        """Return a total by its name; 0 for one that this server does not have."""
        return self.totals.get(name, 0)

    @property
    def blackout_ms(self) -> float | None:
        """Milliseconds without a reader in the takeover that made this generation; None without one."""
        for entry in reversed(self.takeovers):
            if entry.get("result") == "success":
                blackout = entry.get("blackout_ms") if entry.get("generation") == self.generation else None
                return float(blackout) if blackout is not None else None
        return None


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
    """Return the rates between two moments; zero where no time lies between them."""
    seconds = later.at - earlier.at

    def rate(name: str) -> float:
        # Totals that went back are those of a server without its predecessor's state.
        return max(0, later.total(name) - earlier.total(name)) / seconds if seconds > 0 else 0.0

    return Rates(rate(_RECEIVED), rate(_SENT), rate(_RECEIVED_BYTES), rate(_SENT_BYTES))
