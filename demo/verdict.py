"""The verdict: pure arithmetic on what the clients saw.

Rule: no number here comes from the server, except the blackout that it reports itself, and that decides nothing. A
request is lost when no reply ever came; a reply is duplicated when its request was answered before, or when it was
sealed with a counter that was used before; a session is lost when a client shook hands again although no rekey was due
(WireGuard paper, section 6.2: after REKEY_AFTER_TIME). The only loss that passes is the one batch in the hand of a
process killed by SIGKILL (design: the promise, 4).
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

# A request in the killed process's hand was sent before the kill. The margin covers the time between our reading the
# clock and the signal's effect; the reach covers how long a request may have waited in the kernel's queue before it.
KILL_MARGIN_SECS = 0.05
KILL_REACH_SECS = 1.0

# Silence is looked for from a little before a replacement until a little after it: a backlog is worked off meanwhile.
GAP_BEFORE_SECS = 0.05
GAP_AFTER_SECS = 0.25


@unique
class Action(Enum):
    """What was done to the server."""

    RELOAD = "reload"
    REFUSED = "refused release"
    KILL = "kill -9"


@dataclass(frozen=True, slots=True)
class Replacement:
    """One thing done to the server, from `started_at` until the server was serving again at `ended_at`.

    succeeded: it ended as intended; for a release that cannot start that means refused, the old process serving on.
    blackout_ms: as the server or the holder reports it, None where there was none. detail: one line for the reader.
    serving_at: when the process that answers since then said that it was ready; None where none took over.
    """

    action: Action
    started_at: float
    ended_at: float
    succeeded: bool
    blackout_ms: float | None
    detail: str
    serving_at: float | None = None


class Tally:
    """Counts records as they come; keeps what the verdict and the plot need."""

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
        self.handshakes: dict[int, list[float]] = {}  # by client, when each was seen complete
        self.received_at: list[float] = []  # of every first reply, with
        self.sent_at: list[float] = []  # when its request was sent
        self._answered: set[tuple[int, int]] = set()
        self._highest: dict[int, int] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Count these records; a reply may come before the record of its request."""
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
            self.duplicated += 1  # sealed twice with one counter: it never reached the inside, but it was sent
        else:
            self.dropped[DropReason(reason)] += 1

    @property
    def handshakes_total(self) -> int:
        """Handshakes that all clients together completed."""
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
    """A replacement with what the clients saw of it: their longest silence in ms, and the requests lost in its hand."""

    replacement: Replacement
    gap_ms: float
    lost: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that is shown at the end; `reasons` says why it failed, empty when it did not."""

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
    """Return the longest time in seconds without a reply between `begin` and `end`; `received_at` is sorted."""
    inside = received_at[bisect_left(received_at, begin) : bisect_right(received_at, end)]
    return max(later - earlier for earlier, later in pairwise([begin, *inside, max(begin, end)]))


def silence_ms(received_at: Sequence[float], replacement: Replacement, last_sent_at: float) -> float:
    """Return the longest silence that the clients heard around a replacement, ms; `received_at` is sorted."""
    # The end of the run is no silence: nothing more was asked for.
    end = min(replacement.ended_at + GAP_AFTER_SECS, max([last_sent_at, *received_at[-1:]]))
    return longest_gap(received_at, replacement.started_at - GAP_BEFORE_SECS, end) * 1e3


def early_handshakes(times: Sequence[float]) -> int:
    """Return how many handshakes of one client came before a rekey was due: each of them is a session lost."""
    return sum(later - earlier < REKEY_AFTER_TIME for earlier, later in pairwise(times))


def judge(tally: Tally, replacements: Sequence[Replacement], clients: int, planned: int) -> Verdict:
    """Return the verdict on a finished run with `clients` clients and `planned` things to be done to the server."""
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
    """Return the positions in `lost_at` of what a killed process may have had in its hand, at most one batch."""
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
        reasons.append("no reply ever came: expected one for each request")
    if lost:
        reasons.append(f"{lost} requests lost beyond the batch in a killed process's hand: expected none")
    if tally.duplicated:
        reasons.append(f"{tally.duplicated} replies came twice: expected none")
    if tally.corrupted:
        reasons.append(f"{tally.corrupted} packets came that no request explains: expected none")
    for drop, count in tally.dropped.items():
        reasons.append(f"clients refused {count} datagrams ({drop.name.lower()}): expected none")
    if sessions_lost:
        reasons.append(f"{sessions_lost} sessions lost, their clients shook hands again: expected none")
    if len(tally.handshakes) < clients:
        reasons.append(f"{clients - len(tally.handshakes)} of {clients} clients never had a session")
    if tally.unreachable:
        reasons.append(f"the port was unreachable {tally.unreachable} times: expected a process to hold it always")
    if tally.finished_at is None:
        reasons.append("the clients ended before their schedule did")
    for item in judged:
        if not item.replacement.succeeded:
            reasons.append(f"{item.replacement.action.value} did not end as intended: {item.replacement.detail}")
    if len(judged) < planned:
        reasons.append(f"only {len(judged)} of {planned} replacements were made: the run was too short for them")
    return reasons
