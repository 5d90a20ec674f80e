"""Health check of a release that has just taken over: the server's condition now against a baseline of before.

The rule: pure: observations go in, reasons against the release come out. What clients do by themselves is no reason,
and neither is what can be sent without a key: a session may end by age, a low rate may pause, and a flood of the port
must not be able to prevent a release.
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
FLOW_PACKETS_PER_SEC_MIN = 10.0  # in every sample of the baseline: packets were flowing in this direction
FLOW_SHARE_MIN = 0.1  # of that rate; below it they have stopped flowing
STALL_SECS = 3.0  # how long that must last
TRICKLE_PACKETS_MIN = 20  # expected at a low rate during the whole watch: then at least one must arrive
PEER_PACKETS_MIN = 20  # before the switch: packets were flowing in this peer's session
PEERS_MIN = 3  # such peers; fewer may have stopped by themselves
DROPS_MIN = 20  # of one reason, within WINDOW_SECS
WINDOW_SECS = 10.0
DROP_SHARE_MAX = 0.01  # of all packets handled in that time
DROP_GROWTH_MAX = 3.0  # times the rate of before
# Above this multiple of the datagrams of before, plus FLOOD_PER_SEC, a full queue is not the release's fault.
FLOOD_GROWTH = 2.0
FLOOD_PER_SEC = 1000.0
NOT_READY_MAX = 2  # observations in a row
# Observations in a row. During a reload by another operator the main process is not the one that answers.
DISAGREEMENTS_MAX = 3
# Ages are whole seconds of another clock, and a handshake takes a moment.
SESSION_AGE_MARGIN_SECS = 5.0

# Drop reasons that only a peer with a session, or this machine itself, can cause.
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
    """The server at one moment. serving: None if no process serves. vitals: None if no process listens.

    unready: why /health does not report it as ready, "" if it does. main_pid: from the service manager, None if
    there is none or it does not answer.
    """

    serving: Serving | None
    vitals: Vitals | None
    unready: str = ""
    main_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """Vitals before the switch, oldest first; at least one."""

    seen: tuple[Vitals, ...]

    @property
    def last(self) -> Vitals:
        """The latest vitals."""
        return self.seen[-1]

    @property
    def whole(self) -> Rates:
        """The mean rates of the whole baseline."""
        return rates(self.seen[0], self.last)

    def flow(self, direction: str, packets_per_sec_min: float) -> float:
        """Return the packets per second in a direction, 0.0 if they were below the minimum in any sample."""
        each = [getattr(rates(*pair), direction) for pair in zip(self.seen, self.seen[1:], strict=False)]
        is_flow = bool(each) and min(each) >= packets_per_sec_min
        return float(getattr(self.whole, direction)) if is_flow else 0.0

    def per_sec(self, counts: str, name: str) -> float:
        """Return the growth per second of one of the `totals` or `drops`."""
        seconds = self.last.at - self.seen[0].at
        return _grown(self.seen[0], self.last, counts, name) / seconds if seconds > 0 else 0.0


class HealthCheck:
    """Checks a release, one observation after the other.

    release_folder: of the release that must serve. stall_secs: how long packets may be missing. check_traffic: whether
    traffic is checked, and not only which process serves and how.
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
        """Return the reasons against the release."""
        now = observation.vitals
        if now is None:
            return ["no server is running: the process has ended"]
        reasons = [*self._identity(observation.serving, now), *self._readiness(observation)]
        reasons += self._agreement(observation.serving, now, observation.main_pid)
        reasons += self._errors(now)
        if self._check_traffic:
            reasons += [*self._overflow(now), *self._drops(now), *self._flows(now)]
        self._latest = self._new = now
        return reasons

    @property
    def is_unsettled(self) -> bool:
        """Whether the latest observation has a reason against the release that the next ones have to confirm."""
        return bool(self._unready or self._disagreements)

    def conclude(self) -> list[str]:
        """Return the reasons against the release at the end of the watch."""
        if not self._check_traffic or self._new is None:
            return []
        begin, reasons = self._baseline.last, []
        for direction in ("received", "sent"):
            expected = self._baseline.flow(direction, 1e-9) * (self._new.at - begin.at)
            if expected >= TRICKLE_PACKETS_MIN and not getattr(rates(begin, self._new), direction):
                reasons.append(f"packets {direction}: none since the switch; expected {expected:,.0f}")
        return reasons

    def _agreement(self, serving: Serving | None, now: Vitals, main_pid: int | None) -> list[str]:
        reasons = []
        if serving is None:
            reasons.append(f"pid {now.pid} answers, but no process serves")
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
        # Errors that the predecessor logged until the hand-off are not the release's.
        before = now.errors_before if now.errors_before is not None else self._baseline.last.total("errors_logged")
        errors = now.total("errors_logged") - before
        if errors > 0:
            yield f"{counted(errors, 'line')} logged as errors since the switch"

    def _overflow(self, now: Vitals) -> Iterable[str]:
        if _grown(self._latest, now, "totals", "shed_datagrams") > 0:
            return  # too much comes, of which the kernel drops a part at the server's request
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
    """Return the names of peers whose session is gone but had not reached its end by age."""
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
    """Return a reason if most of the peers that were sending packets have sent none since the switch, else "".

    before, after: the peers of a status at the beginning and the end of each period.
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
    # A counter that went back belongs to a server without its predecessor's state.
    return max(0, int(getattr(now, counts).get(name, 0)) - int(getattr(before, counts).get(name, 0)))


def _was_taken_over(earlier: Vitals, later: Vitals) -> bool:
    """Return whether only takeovers lie between the two: another operator has reloaded."""
    ways = {takeover.generation: takeover.way for takeover in later.takeovers if takeover.succeeded}
    between = range(earlier.generation + 1, later.generation + 1)
    return bool(between) and all(ways.get(generation) == "taken over" for generation in between)


def _last_way(vitals: Vitals) -> str:
    last = vitals.takeovers[-1] if vitals.takeovers else None
    return f" ({last.way})" if last is not None and last.way and last.generation == vitals.generation else ""
