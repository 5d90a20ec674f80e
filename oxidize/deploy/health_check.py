"""Whether a release that has just taken over is good, judged by what was seen before and what is seen since.

The rule: pure: observations go in, reasons against the release come out. What clients do by themselves is no reason,
and neither is what anybody can send without a key: a session may end by age, a trickle may pause, and whoever floods
the port must not be able to keep a release away.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oxidize.deploy.server import Serving
from oxidize.deploy.vitals import PeerVitals, Rates, Vitals, rates
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.protocol.counters import DropReason
from oxidize.text import counted

# --- What counts as a reason ---
FLOW_PACKETS_PER_SEC_MIN = 10.0  # in every sample before: a direction in which packets were flowing
FLOW_SHARE_MIN = 0.1  # of that rate; below it they are not flowing any more
STALL_SECS = 3.0  # for which that must last
TRICKLE_PACKETS_MIN = 20  # to be expected by a trickle of before in all the time of watching: then one at least comes
PEER_PACKETS_MIN = 20  # before the switch: a peer in whose session packets were flowing
PEERS_MIN = 3  # of those; of fewer nobody can tell whether they stopped by themselves
DROPS_MIN = 20  # of one reason, within WINDOW_SECS
WINDOW_SECS = 10.0
DROP_SHARE_MAX = 0.01  # of all that was handled in that time
DROP_GROWTH_MAX = 3.0  # times as many a second as before
# Times the datagrams of before, and FLOOD_PER_SEC more: then a full queue is no fault of the release.
FLOOD_GROWTH = 2.0
FLOOD_PER_SEC = 1000.0
NOT_READY_MAX = 2  # observations in a row
# Observations in a row. In the middle of a reload by somebody else the main process is another one than who answers.
DISAGREEMENTS_MAX = 3
# An age is known to the second, by another clock, and a handshake takes a moment.
SESSION_AGE_MARGIN_SECS = 5.0

# Reasons that only a peer with a session, or this machine itself, can bring about.
OWN_REASONS = frozenset(
    reason.name.lower()
    for reason in (
        DropReason.SOURCE_NOT_ALLOWED,
        DropReason.INNER_MALFORMED,
        DropReason.NO_ROUTE,
        DropReason.NO_ENDPOINT,
        DropReason.STAGED_OVERFLOW,
        DropReason.SEND_FAILED,
        DropReason.NETWORK_WRITE_FAILED,
        DropReason.ROUTE_UNSUPPORTED,
    )
)

Peers = Sequence[PeerVitals]


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at one moment. serving: who serves, None for nobody. vitals: None where nobody listens.

    unready: why /health does not call it ready, "" where it does. main_pid: as the service manager has it, None where
    there is none or it cannot be asked.
    """

    serving: Serving | None
    vitals: Vitals | None
    unready: str = ""
    main_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was seen before the switch, the oldest first; at least one."""

    seen: tuple[Vitals, ...]

    @property
    def last(self) -> Vitals:
        """The latest."""
        return self.seen[-1]

    @property
    def whole(self) -> Rates:
        """The mean rates."""
        return rates(self.seen[0], self.last)

    def flow(self, direction: str, packets_per_sec_min: float) -> float:
        """Return the packets a second in a direction, 0.0 where they were fewer in any sample."""
        each = [getattr(rates(*pair), direction) for pair in zip(self.seen, self.seen[1:], strict=False)]
        is_flow = bool(each) and min(each) >= packets_per_sec_min
        return float(getattr(self.whole, direction)) if is_flow else 0.0

    def per_sec(self, counts: str, name: str) -> float:
        """Return how much one of `totals` or `drops` grew a second."""
        seconds = self.last.at - self.seen[0].at
        return _grown(self.seen[0], self.last, counts, name) / seconds if seconds > 0 else 0.0


class HealthCheck:
    """Judges a release by one observation after the other.

    release_folder: of the release that is to serve. stall_secs: for how long packets may stay away. check_traffic:
    whether what passes is judged at all, and not only who serves and how.
    """

    def __init__(
        self, baseline: Baseline, release_folder: str, *, stall_secs: float = STALL_SECS, check_traffic: bool = True
    ) -> None:
        self._baseline = baseline
        self._release_folder = release_folder
        self._stall_secs = stall_secs
        self._check_traffic = check_traffic
        self._latest = baseline.last
        self._new: Vitals | None = None  # the latest of the release itself
        self._window: deque[Vitals] = deque([baseline.last])
        self._unready = self._disagreements = 0
        self._stalled_since: dict[str, float] = {}

    def observe(self, observation: Observation) -> list[str]:
        """Return what speaks against the release."""
        now = observation.vitals
        if now is None:
            return ["nobody serves any more: the process has ended"]
        reasons = [*self._identity(observation.serving, now), *self._readiness(observation)]
        reasons += self._agreement(observation.serving, now, observation.main_pid)
        reasons += self._errors(now)
        if self._check_traffic:
            reasons += [*self._overflow(now), *self._drops(now), *self._flows(now)]
        self._latest = self._new = now
        return reasons

    @property
    def is_unsettled(self) -> bool:
        """Whether the latest observation speaks against the release where another one has to bear it out."""
        return bool(self._unready or self._disagreements)

    def conclude(self) -> list[str]:
        """Return what speaks against it now that all the time of watching is over."""
        if not self._check_traffic or self._new is None:
            return []
        begin, reasons = self._baseline.last, []
        for direction in ("received", "sent"):
            expected = self._baseline.flow(direction, 1e-9) * (self._new.at - begin.at)
            if expected >= TRICKLE_PACKETS_MIN and not getattr(rates(begin, self._new), direction):
                reasons.append(f"packets {direction}: none since the switch; {expected:,.0f} were to be expected")
        return reasons

    def _agreement(self, serving: Serving | None, now: Vitals, main_pid: int | None) -> list[str]:
        reasons = []
        if serving is None:
            reasons.append(f"pid {now.pid} answers, and is no process that serves")
        elif now.pid != serving.pid:
            reasons.append(f"pid {now.pid} answers; expected {serving.pid}, which serves")
        elif main_pid not in {None, serving.pid}:
            reasons.append(f"the main process of the service is {main_pid}; expected {serving.pid}, which serves")
        self._disagreements = self._disagreements + 1 if reasons else 0
        return reasons if self._disagreements >= DISAGREEMENTS_MAX else []

    def _identity(self, serving: Serving | None, now: Vitals) -> Iterable[str]:
        before = self._baseline.last
        if serving is not None and serving.folder != self._release_folder:
            yield f"{serving.folder or f'pid {serving.pid}'} serves; expected {self._release_folder}"
        if now.generation <= before.generation:
            yield f"generation {now.generation} serves; expected a later one than {before.generation}"
        new = self._new
        if new is not None and (now.generation, now.pid) != (new.generation, new.pid) and not _was_taken_over(new, now):
            yield (
                f"the new process, generation {new.generation}, pid {new.pid}, was replaced by generation "
                f"{now.generation}, pid {now.pid}{_last_way(now)}"
            )

    def _readiness(self, observation: Observation) -> Iterable[str]:
        self._unready = self._unready + 1 if observation.unready else 0
        if self._unready >= NOT_READY_MAX:
            yield f"/health: {observation.unready}; expected it to be ready"

    def _errors(self, now: Vitals) -> Iterable[str]:
        # What its predecessor has logged until the hand-off is not the release's.
        before = now.errors_before if now.errors_before is not None else self._baseline.last.total("errors_logged")
        errors = now.total("errors_logged") - before
        if errors > 0:
            yield f"{counted(errors, 'line')} logged as errors since the switch"

    def _overflow(self, now: Vitals) -> Iterable[str]:
        lost = now.kernel_drops - self._latest.kernel_drops
        seconds = now.at - self._latest.at
        arrived = lost + _grown(self._latest, now, "totals", "received_datagrams")
        usual = FLOOD_GROWTH * self._baseline.per_sec("totals", "received_datagrams") + FLOOD_PER_SEC
        did_before = self._baseline.last.kernel_drops > self._baseline.seen[0].kernel_drops
        if lost > 0 and not did_before and arrived <= usual * seconds:
            yield f"{counted(lost, 'datagram')} dropped by the kernel: the queue of the socket was full"

    def _drops(self, now: Vitals) -> Iterable[str]:
        self._window.append(now)
        while self._window[1].at < now.at - WINDOW_SECS:
            self._window.popleft()
        begin = self._window[0]
        handled = sum(_grown(begin, now, "totals", name) for name in ("received_datagrams", "sent_packets"))
        for reason in OWN_REASONS & now.drops.keys():
            dropped = _grown(begin, now, "drops", reason)
            usual = self._baseline.per_sec("drops", reason) * (now.at - begin.at)
            if dropped >= DROPS_MIN and dropped >= DROP_SHARE_MAX * handled and dropped > DROP_GROWTH_MAX * usual:
                yield f"{counted(dropped, 'packet')} dropped since the switch: {reason.replace('_', ' ')}"

    def _flows(self, now: Vitals) -> Iterable[str]:
        earlier = self._latest
        for direction in ("received", "sent"):
            expected = self._baseline.flow(direction, FLOW_PACKETS_PER_SEC_MIN)
            found = getattr(rates(earlier, now), direction)
            if not expected or found >= FLOW_SHARE_MIN * expected:
                self._stalled_since.pop(direction, None)
                continue
            since = self._stalled_since.setdefault(direction, earlier.at)
            if now.at - since >= self._stall_secs:
                yield (
                    f"packets {direction}: {found:,.0f} a second for {now.at - since:.1f} s, "
                    f"{expected:,.0f} a second before the switch"
                )


def missing_sessions(before: Peers, after: Peers, now_unix: float) -> list[str]:
    """Return the names of peers whose session is gone although it has not ended by age."""
    there = {peer.public_key: peer for peer in after}
    missing = []
    for peer in before:
        ends_at = peer.session_ends_unix or peer.last_handshake_unix + REJECT_AFTER_TIME
        if not peer.has_session or ends_at - SESSION_AGE_MARGIN_SECS <= now_unix:
            continue
        found = there.get(peer.public_key)
        if found is None or not found.has_session:
            missing.append(peer.name or peer.public_key)
    return missing


def silenced_peers(before: tuple[Peers, Peers], after: tuple[Peers, Peers]) -> str:
    """Return a reason where most of the peers from which packets came have sent none since, else "".

    before, after: the peers of a status at the beginning and the end of either time.
    """
    flowing = {key for key, packets in _received(*before).items() if packets >= PEER_PACKETS_MIN}
    silent = [key for key, packets in _received(*after).items() if key in flowing and not packets]
    if len(flowing) < PEERS_MIN or 2 * len(silent) <= len(flowing):
        return ""
    return f"no packets from {len(silent)} of {len(flowing)} peers since the switch that had sent some before"


def _received(earlier: Peers, later: Peers) -> dict[str, int]:
    at_first = {peer.public_key: peer.received_packets for peer in earlier}
    return {
        peer.public_key: peer.received_packets - at_first[peer.public_key]
        for peer in later
        if peer.public_key in at_first
    }


def _grown(before: Vitals, now: Vitals, counts: str, name: str) -> int:
    # What went back is counted anew, by a server without its predecessor's state.
    return max(0, int(getattr(now, counts).get(name, 0)) - int(getattr(before, counts).get(name, 0)))


def _was_taken_over(earlier: Vitals, later: Vitals) -> bool:
    """Tell whether nothing but takeovers lies between: somebody has reloaded."""
    ways = {entry.get("generation"): entry.get("way") for entry in later.takeovers if entry.get("result") == "success"}
    between = range(earlier.generation + 1, later.generation + 1)
    return bool(between) and all(ways.get(generation) == "taken over" for generation in between)


def _last_way(vitals: Vitals) -> str:
    last = vitals.takeovers[-1] if vitals.takeovers else {}
    way = last.get("way") if last.get("generation") == vitals.generation else None
    return f" ({way})" if way else ""
