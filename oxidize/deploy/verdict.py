"""Whether a release that has just taken over is good, judged by what was seen before and what is seen since.

The rule: pure: observations go in, reasons against the release come out. What clients do by themselves is no reason:
a session may end by age, a server on the internet is sent rubbish all the time, and a trickle of packets may pause.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oxidize.deploy.vitals import Rates, Vitals, rates
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.text import counted

# --- What counts as a reason ---
FLOW_PACKETS_PER_SEC_MIN = 10.0  # in every sample before: a direction in which packets were flowing
FLOW_SHARE_MIN = 0.1  # of that rate; below it they are not flowing any more
STALL_SECS = 3.0  # for which that must last
DROPS_MIN = 20  # of one reason, since the switch
DROP_SHARE_MAX = 0.01  # of all that was handled since
DROP_GROWTH_MAX = 3.0  # times as many a second as before
NOT_READY_MAX = 2  # observations in a row
# An age is known to the second, by another clock, and a handshake takes a moment.
SESSION_AGE_MARGIN_SECS = 5.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at one moment. vitals: None where nobody listens.

    unready: why /health does not call it ready, "" where it does. main_pid: as the service manager has it, None where
    there is none or it cannot be asked.
    """

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

    def flow(self, direction: str) -> float:
        """Return the packets a second in a direction, 0.0 where they did not flow all the time."""
        each = [getattr(rates(*pair), direction) for pair in zip(self.seen, self.seen[1:], strict=False)]
        is_flow = bool(each) and min(each) >= FLOW_PACKETS_PER_SEC_MIN
        return float(getattr(self.whole, direction)) if is_flow else 0.0

    def drops_per_sec(self, reason: str) -> float:
        """Return how many a second went no further for a reason."""
        seconds = self.last.at - self.seen[0].at
        return _grown(self.seen[0].drops, self.last.drops, reason) / seconds if seconds > 0 else 0.0


class Judge:
    """Judges a release by one observation after the other.

    release_folder: of the release that is to serve. stall_secs: for how long packets may stay away.
    """

    def __init__(
        self, baseline: Baseline, release_folder: str, *, stall_secs: float = STALL_SECS, minds_traffic: bool = True
    ) -> None:
        self._baseline = baseline
        self._release_folder = release_folder
        self._stall_secs = stall_secs
        self._directions = ("received", "sent") if minds_traffic else ()
        self._first: Vitals | None = None
        self._latest: Vitals | None = None
        self._unready = 0
        self._stalled_since: dict[str, float] = {}

    def judge(self, observation: Observation) -> list[str]:
        """Return what speaks against the release."""
        now = observation.vitals
        if now is None:
            return ["nobody serves any more: the process has ended"]
        if self._first is None:
            self._first = now
        reasons = [*self._identity(now, observation.main_pid), *self._readiness(observation)]
        reasons += [*self._errors(now), *self._drops(now), *self._flows(now)]
        self._latest = now
        return reasons

    def _identity(self, now: Vitals, main_pid: int | None) -> Iterable[str]:
        before, first = self._baseline.last, self._first or now
        if now.release_folder != self._release_folder:
            yield f"{now.release_folder} serves; expected {self._release_folder}"
        if now.generation <= before.generation:
            yield f"generation {now.generation} serves; expected a later one than {before.generation}"
        if (now.generation, now.pid) != (first.generation, first.pid):
            how = _last_way(now)
            yield (
                f"the new process, generation {first.generation}, pid {first.pid}, was replaced by generation "
                f"{now.generation}, pid {now.pid}{how}"
            )
        if main_pid not in {None, now.pid}:
            yield f"the main process of the service is {main_pid}; expected {now.pid}, which serves"

    def _readiness(self, observation: Observation) -> Iterable[str]:
        self._unready = self._unready + 1 if observation.unready else 0
        if self._unready >= NOT_READY_MAX:
            yield f"/health: {observation.unready}; expected it to be ready"

    def _errors(self, now: Vitals) -> Iterable[str]:
        errors = now.total("errors_logged") - self._baseline.last.total("errors_logged")
        if errors > 0:
            yield f"{counted(errors, 'line')} logged as errors since the switch"

    def _drops(self, now: Vitals) -> Iterable[str]:
        before = self._baseline
        lost = now.kernel_drops - before.last.kernel_drops
        seconds = now.at - before.last.at
        kernel_before = before.last.kernel_drops - before.seen[0].kernel_drops
        if lost > 0 and not kernel_before:
            yield f"{counted(lost, 'datagram')} dropped by the kernel: the queue of the socket was full"
        handled = sum(_grown(before.last.totals, now.totals, name) for name in ("received_datagrams", "sent_packets"))
        for reason in now.drops:
            dropped = _grown(before.last.drops, now.drops, reason)
            is_much = dropped >= DROPS_MIN and dropped >= DROP_SHARE_MAX * handled
            if is_much and dropped > DROP_GROWTH_MAX * before.drops_per_sec(reason) * seconds:
                yield f"{counted(dropped, 'packet')} dropped since the switch: {reason.replace('_', ' ')}"

    def _flows(self, now: Vitals) -> Iterable[str]:
        earlier = self._latest or self._baseline.last
        for direction in self._directions:
            expected, found = self._baseline.flow(direction), getattr(rates(earlier, now), direction)
            if not expected or found >= FLOW_SHARE_MIN * expected:
                self._stalled_since.pop(direction, None)
                continue
            since = self._stalled_since.setdefault(direction, earlier.at)
            if now.at - since >= self._stall_secs:
                yield (
                    f"packets {direction}: {found:,.0f} a second for {now.at - since:.1f} s, "
                    f"{expected:,.0f} a second before the switch"
                )


def missing_sessions(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], now_unix: float, *, may_leave: bool
) -> list[str]:
    """Return the names of peers whose session is gone although it has not ended by age.

    before, after: the peers of a status. may_leave: peers that are not configured any more are none of them.
    """
    there = {peer["public_key"]: peer for peer in after}
    missing = []
    for peer in before:
        ends_at = peer["last_handshake_unix"] + REJECT_AFTER_TIME - SESSION_AGE_MARGIN_SECS
        if not peer["has_session"] or ends_at <= now_unix:
            continue
        found = there.get(peer["public_key"])
        if not (found["has_session"] if found is not None else may_leave):
            missing.append(str(peer["name"] or peer["public_key"]))
    return missing


def _grown(before: Mapping[str, int], now: Mapping[str, int], name: str) -> int:
    return max(0, now.get(name, 0) - before.get(name, 0))


def _last_way(vitals: Vitals) -> str:
    last = vitals.takeovers[-1] if vitals.takeovers else {}
    way = last.get("way") if last.get("generation") == vitals.generation else None
    return f" ({way})" if way else ""
