"""Keeps what this process has set up in the host's network: compares it with the kernel's state, and puts it back.

The rule: nothing that was set is believed to be set. Every part is compared when this process begins to serve and each
time the kernel tells of a change, in slices between batches of packets. What is missing is put back at once; what could
not be put back is known to /health and the status until it is.

A program that takes something away again and again, such as a network manager of the same interface, is not fought at
its own pace: after REPAIRS_AT_ONCE repairs in a row the next one waits, twice as long each time.
"""

from collections.abc import Callable, Iterator, Sequence
from math import inf

from oxidize import logs
from oxidize.errors import OxidizeError, reason_of
from oxidize.hostnet.part import IncompleteError, Part, Steps, summary_of
from oxidize.protocol.counters import Counters, Total

REPAIRS_AT_ONCE = 3  # of one part, each within QUIET_SECS of the one before
SLOW_SLICE_SECS = 0.002  # after a longer one traffic is served for as long as it took
QUIET_SECS = 30.0  # without a repair, after which a part is no longer contended
DELAY_SECS = 1.0  # before the first repair that waits, and before the first new attempt at one that failed; doubled
DELAY_LIMIT_SECS = 60.0
DOUBLINGS = 6  # of DELAY_SECS until DELAY_LIMIT_SECS; a streak has no limit, and no float holds 2 to its power
REST_SECS = 0.2  # between two comparisons at least, and REST_SHARE times what the last one took
REST_SHARE = 4.0

log = logs.get(__name__)


class _Kept:
    """A part and what is known of it.

    missing: why it is not complete, None if it is. streak: repairs or failures in a row. not_before: when the next
    repair may take place.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.missing: str | None = None
        self.streak = 0
        self.repaired_at = -inf
        self.not_before = -inf
        self.is_contended = False


class NetworkKeeper:
    """Compares parts with the kernel's state, as a `Timed` of the loop, while this process owns.

    is_owner: whether it does. report: called after a change of `missing`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        counters: Counters,
        clock: Callable[[], float],
        is_owner: Callable[[], bool],
        report: Callable[[], None],
    ) -> None:
        self._kept = [_Kept(part) for part in parts]
        self._counters = counters
        self._clock = clock
        self._is_owner = is_owner
        self._report = report
        self._due_at: float | None = None
        self._rests_until = -inf
        self._steps: Iterator[float] | None = None
        self._is_stale = False  # the kernel told of a change during a comparison

    @property
    def missing(self) -> list[str]:
        """What could not be put back, or waits for that: a line for each part that is not complete."""
        return [kept.missing for kept in self._kept if kept.missing is not None]

    def settle(self, part: Part, *, is_repair: bool) -> Iterator[float]:
        """Bring a part to what the settings say; yields the seconds after which the next slice is due.

        is_repair: whether the same was set before, so that every difference is a loss.
        """
        for kept in self._kept:
            if kept.part is part:
                yield from self._paced(self._compare(kept, is_repair=is_repair))

    def begin(self) -> None:
        """Compare everything soon: nothing says what has happened until now."""
        self._due_at = self._clock()

    def stop(self) -> None:
        """Forget a comparison that is under way; a successor makes its own."""
        self._steps, self._due_at = None, None

    def note_change(self, now: float) -> None:
        """Compare everything, for the kernel tells of a change somewhere in the network."""
        if self._steps is not None:
            self._is_stale = True
        else:
            due = max(now, self._rests_until)
            self._due_at = due if self._due_at is None else min(due, self._due_at)

    # --- Called by the loop ---

    def next_deadline(self) -> float | None:
        """Return when the next slice or comparison is due."""
        return self._due_at if self._is_owner() else None

    def handle_timeout(self, now: float) -> None:
        """Do one slice of a comparison."""
        if self._due_at is None or now < self._due_at or not self._is_owner():
            return
        if self._steps is None:
            self._steps = self._paced(self._compare_all(now))
        pause = next(self._steps, None)
        if pause is not None:
            self._due_at = self._clock() + pause

    def _paced(self, steps: Iterator[float]) -> Iterator[float]:
        """Yield the pauses of steps, longer after slow slices: of two in a row traffic would see the sum."""
        began_at = self._clock()
        for pause in steps:
            took = self._clock() - began_at
            yield max(pause, took) if took > SLOW_SLICE_SECS else pause
            began_at = self._clock()

    def _compare_all(self, began_at: float) -> Iterator[float]:
        self._is_stale = False
        for kept in self._kept:
            yield from self._compare(kept, is_repair=True)
        now = self._clock()
        self._rests_until = rest = now + max(REST_SECS, REST_SHARE * (now - began_at))
        waiting = [kept.not_before for kept in self._kept if kept.missing is not None]
        if self._is_stale:
            waiting.append(rest)
        self._steps = None
        self._due_at = max(rest, min(waiting)) if waiting else None

    # --- One part ---

    def _compare(self, kept: _Kept, *, is_repair: bool) -> Steps[None]:
        """Compare a part, and put it right unless its repair has to wait."""
        may_repair = not is_repair or self._clock() >= kept.not_before
        try:
            changes = yield from kept.part.compare(repair=may_repair)
        except OxidizeError as error:
            if isinstance(error, IncompleteError):
                self._note_changes(kept, error.changes, is_repair=is_repair and may_repair)
            self._fail(kept, reason_of(error))
            return
        except Exception as error:  # noqa: BLE001 - the process serves: not even a lack of descriptors may end it
            self._fail(kept, logs.redact_text(reason_of(error)))
            return
        if not changes:
            self._complete(kept)
        elif may_repair:
            self._note_changes(kept, changes, is_repair=is_repair)
            self._complete(kept)
            if is_repair:
                self._note_repair(kept)
        else:
            self._lack(kept, changes)

    def _note_changes(self, kept: _Kept, changes: Sequence[str], *, is_repair: bool) -> None:
        if not changes:
            return
        text = summary_of(changes)
        if not is_repair:
            log.info("set", part=kept.part.name, changes=text)
            return
        self._counters[Total.NETWORK_REPAIRS] += 1
        if not kept.is_contended:
            log.warning("put back what was missing", part=kept.part.name, missing=text)

    def _note_repair(self, kept: _Kept) -> None:
        now = self._clock()
        kept.streak = kept.streak + 1 if now < kept.repaired_at + QUIET_SECS + self._delay(kept) else 1
        kept.repaired_at = now
        if kept.streak < REPAIRS_AT_ONCE:
            kept.is_contended = False
            return
        kept.not_before = now + self._delay(kept)
        if not kept.is_contended:
            kept.is_contended = True
            log.error(
                "another program takes it away again and again: put back with growing pauses from now on",
                part=kept.part.name,
                remedy="exclude the interface from the program that manages the network here",
            )

    def _delay(self, kept: _Kept) -> float:
        doublings = kept.streak - REPAIRS_AT_ONCE
        if doublings < 0:
            return 0.0
        return min(DELAY_LIMIT_SECS, DELAY_SECS * 2.0 ** min(doublings, DOUBLINGS))

    def _fail(self, kept: _Kept, reason: str) -> None:
        now = self._clock()
        is_new = kept.missing is None
        kept.streak = kept.streak + 1 if not is_new else REPAIRS_AT_ONCE
        kept.not_before = now + self._delay(kept)
        if is_new:
            log.error("serving without all of its settings", part=kept.part.name, reason=reason)
        self._set_missing(kept, reason)

    def _lack(self, kept: _Kept, changes: Sequence[str]) -> None:
        """Note that a part is not complete, and that its repair waits; one that failed is told already, with why."""
        if kept.missing is None or kept.is_contended:
            self._set_missing(kept, f"{kept.part.name}: taken away again and again, missing now: {summary_of(changes)}")

    def _complete(self, kept: _Kept) -> None:
        if kept.missing is not None:
            if not kept.is_contended:
                kept.not_before = -inf  # what failed before says nothing of the next loss
                log.info("complete again", part=kept.part.name)
            self._set_missing(kept, None)

    def _set_missing(self, kept: _Kept, missing: str | None) -> None:
        has_changed = kept.missing != missing
        kept.missing = missing
        if has_changed:
            self._report()
