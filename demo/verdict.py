"""The verdict: pure arithmetic on what the clients saw.

Rule: no number comes from the server, except the blackout of a reload, which it reports and which decides nothing. A
request is lost if it got no reply. A reply is a duplicate if its request was answered before, or if its seal reuses a
counter. A session is lost if a client made another handshake before a rekey was due (WireGuard paper, section 6.2:
after REKEY_AFTER_TIME). The only loss that passes is the one batch that a process held when SIGKILL ended it.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, unique
from itertools import pairwise

from demo.records import Kind, Record
from oxidize.protocol.constants import BATCH_PACKETS_MAX, REKEY_AFTER_TIME
from oxidize.protocol.counters import DropReason

OVERDUE_SECS = 1.0  # while running, a request without a reply for this long is shown as lost so far

# A request in the killed process's hand was sent before the kill. The margin covers the time between the reading of the
# clock here and the signal's effect; the reach covers how long a request may have waited in the kernel's queue before.
KILL_MARGIN_SECS = 0.05
KILL_REACH_SECS = 1.0

# The silence is measured from a little before a replacement until a little after it, when a backlog is processed.
GAP_BEFORE_SECS = 0.05
GAP_AFTER_SECS = 0.25


@unique
class Action(Enum):
    """The kinds of action on the server."""

    RELOAD = "reload"
    REFUSED = "refused release"
    KILL = "kill -9"


@dataclass(frozen=True, slots=True)
class Replacement:
    """One action on the server, from `started_at` until the server served again at `ended_at`.

    succeeded: whether it ended as intended; for a broken release: it was refused and the old process still serves.
    blackout_ms: reported by the server, after a kill measured from outside; None if there was none. detail: one line
    for the operator.
    serving_at: when the new process began to serve, or answered first after a kill; None if there is no new process.
    """

    action: Action
    started_at: float
    ended_at: float
    succeeded: bool
    blackout_ms: float | None
    detail: str
    serving_at: float | None = None


class Tally:
    """Counters and times from the records, as the verdict and the chart need them."""

    def __init__(self) -> None:
        self.sent = 0
        self.replies = 0
        self.duplicated = 0
        self.reordered = 0
        self.corrupted = 0
        self.unreachable = 0
        self.dropped: Counter[DropReason] = Counter()  # datagrams that the clients' devices refused
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.last_sent_at = 0.0
        self.waiting: dict[tuple[int, int], float] = {}  # (client, number) -> sent at, oldest first
        self.handshakes: dict[int, list[float]] = {}  # by client: when each handshake was complete
        self.received_at: list[float] = []  # of each request's first reply
        self.sent_at: list[float] = []  # of the requests in `received_at`, in the same order
        self._answered: set[tuple[int, int]] = set()
        self._highest: dict[int, int] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Count records; a reply may precede the record of its request."""
        for record in records:
            match record.kind:
                case Kind.SENT:
                    self.sent += 1
                    self.last_sent_at = max(self.last_sent_at, record.at)
                    key = record.client, record.number
                    if key not in self._answered:
                        self.waiting[key] = record.at
                case Kind.REPLY:
                    self._add_reply(record)
                case Kind.CORRUPTED:
                    self.corrupted += 1
                case Kind.HANDSHAKE:
                    self.handshakes.setdefault(record.client, []).append(record.at)
                case Kind.DROPPED:
                    self._add_drop(record.number)
                case Kind.UNREACHABLE:
                    self.unreachable += 1
                case Kind.STARTED:
                    self.started_at = record.at
                case Kind.FINISHED:
                    self.finished_at = record.at

    def _add_reply(self, record: Record) -> None:
        key = record.client, record.number
        if key in self._answered:
            self.duplicated += 1
            return
        self._answered.add(key)
        self.waiting.pop(key, None)
        self.replies += 1
        self.received_at.append(record.at)
        self.sent_at.append(record.sent_at)
        if record.number < self._highest.get(record.client, -1):
            self.reordered += 1
        else:
            self._highest[record.client] = record.number

    def _add_drop(self, reason: int) -> None:
        if reason == DropReason.REPLAYED_COUNTER:
            self.duplicated += 1  # sealed twice with one counter: refused by the client, but sent
        else:
            self.dropped[DropReason(reason)] += 1

    @property
    def handshakes_total(self) -> int:
        """The number of handshakes that all clients together completed."""
        return sum(map(len, self.handshakes.values()))

    def overdue(self, now: float) -> int:
        """Return how many requests have had no reply for OVERDUE_SECS at `now`."""
        count = 0
        for sent_at in self.waiting.values():  # in the order of sending
            if sent_at > now - OVERDUE_SECS:
                break
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class Judged:
    """A replacement with the clients' longest silence in ms and the requests lost in the killed process's batch."""

    replacement: Replacement
    gap_ms: float
    lost: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a run; `reasons` lists why it failed and is empty if it passed."""

    sent: int
    replies: int
    lost: int
    lost_in_hand: int
    duplicated: int
    reordered: int
    corrupted: int
    clients: int
    handshakes: int
    sessions_lost: int
    latency_median_ms: float
    latency_max_ms: float
    replacements: tuple[Judged, ...]
    reasons: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the promise was kept."""
        return not self.reasons


def longest_gap(received_at: Sequence[float], begin: float, end: float) -> float:
    """Return the longest time without a reply between `begin` and `end`, seconds; `received_at` is sorted."""
    inside = received_at[bisect_left(received_at, begin) : bisect_right(received_at, end)]
    return max(later - earlier for earlier, later in pairwise([begin, *inside, max(begin, end)]))


def silence_ms(received_at: Sequence[float], replacement: Replacement, last_sent_at: float) -> float:
    """Return the longest time without a reply around a replacement, ms; `received_at` is sorted."""
    # The time after the last request does not count as silence.
    end = min(replacement.ended_at + GAP_AFTER_SECS, max([last_sent_at, *received_at[-1:]]))
    return longest_gap(received_at, replacement.started_at - GAP_BEFORE_SECS, end) * 1e3


def early_handshakes(times: Sequence[float]) -> int:
    """Return how many of one client's handshakes came before a rekey was due; each is a lost session."""
    return sum(later - earlier < REKEY_AFTER_TIME for earlier, later in pairwise(times))


def judge(tally: Tally, replacements: Sequence[Replacement], clients: int, planned: int) -> Verdict:
    """Return the verdict on a finished run with `clients` clients and `planned` actions on the server."""
    received = sorted(tally.received_at)
    lost_at = sorted(tally.waiting.values())
    judged: list[Judged] = []
    excused: set[int] = set()
    for replacement in replacements:
        in_hand = _lost_in_hand(replacement, lost_at) - excused
        excused |= in_hand
        judged.append(Judged(replacement, silence_ms(received, replacement, tally.last_sent_at), len(in_hand)))
    latencies = sorted((r - s) * 1e3 for r, s in zip(tally.received_at, tally.sent_at, strict=True))
    sessions_lost = sum(map(early_handshakes, tally.handshakes.values()))
    return Verdict(
        sent=tally.sent,
        replies=tally.replies,
        lost=len(lost_at),
        lost_in_hand=len(excused),
        duplicated=tally.duplicated,
        reordered=tally.reordered,
        corrupted=tally.corrupted,
        clients=clients,
        handshakes=tally.handshakes_total,
        sessions_lost=sessions_lost,
        latency_median_ms=latencies[len(latencies) // 2] if latencies else 0.0,
        latency_max_ms=latencies[-1] if latencies else 0.0,
        replacements=tuple(judged),
        reasons=tuple(_reasons(tally, judged, len(lost_at) - len(excused), sessions_lost, clients, planned)),
    )


def _lost_in_hand(replacement: Replacement, lost_at: Sequence[float]) -> set[int]:
    """Return the positions in `lost_at` of the requests that a killed process may have held: at most one batch."""
    if replacement.action is not Action.KILL:
        return set()
    begin = replacement.started_at - KILL_REACH_SECS
    end = replacement.started_at + KILL_MARGIN_SECS
    positions = [i for i, at in enumerate(lost_at) if begin <= at <= end]
    return set(positions[-BATCH_PACKETS_MAX:])


def _reasons(
    tally: Tally, judged: Sequence[Judged], lost: int, sessions_lost: int, clients: int, planned: int
) -> list[str]:
    reasons = []
    if not tally.replies:
        reasons.append("no reply arrived: expected one for each request")
    if lost:
        reasons.append(f"{lost} requests lost beyond a killed process's batch: expected none")
    if tally.duplicated:
        reasons.append(f"{tally.duplicated} replies arrived twice: expected none")
    if tally.corrupted:
        reasons.append(f"{tally.corrupted} packets answer no request: expected none")
    for drop, count in tally.dropped.items():
        reasons.append(f"clients refused {count} datagrams ({drop.name.lower()}): expected none")
    if sessions_lost:
        reasons.append(f"{sessions_lost} sessions lost (another handshake before a rekey was due): expected none")
    if len(tally.handshakes) < clients:
        reasons.append(f"{clients - len(tally.handshakes)} of {clients} clients never had a session")
    if tally.unreachable:
        reasons.append(f"the port was unreachable {tally.unreachable} times: expected it to be bound at all times")
    if tally.finished_at is None:
        reasons.append("the clients ended before their schedule did")
    for item in judged:
        if not item.replacement.succeeded:
            reasons.append(f"{item.replacement.action.value} did not end as intended: {item.replacement.detail}")
    if len(judged) < planned:
        reasons.append(f"only {len(judged)} of {planned} actions took place: the run was too short")
    return reasons
