"""The history that `oxidize watch` shows: a sample for each poll, and the takeovers in the order seen.

The rule: no clock and no terminal; times come with the samples, in seconds since the epoch. A poll without an answer is
a sample too: the gap is what the operator wants to see.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

from oxidize.deploy.vitals import Rates, Takeover, Vitals, rates

SAMPLES_MAX = 1_000  # more columns than a terminal has
TAKEOVERS_MAX = 100  # more lines than one has
BLOCKS = "▁▂▃▄▅▆▇"  # without the full block, so that adjacent lines stay apart
ASCII_BLOCKS = "_.:-=+#"
GAP = " "


def sparkline(values: Sequence[float | None], width: int, blocks: str = BLOCKS) -> str:
    """Return the last `width` values as one character each, right-aligned; the largest of them has the highest block.

    The lowest block stands only for zero, a gap for None.
    """
    shown = values[-width:] if width > 0 else ()
    highest = max((value for value in shown if value is not None), default=0.0)
    levels = len(blocks) - 1

    def character(value: float | None) -> str:
        if value is None:
            return GAP
        return blocks[max(ceil(value / highest * levels), 1)] if value > 0 else blocks[0]

    return "".join(map(character, shown)).rjust(max(width, 0))


@dataclass(frozen=True, slots=True)
class Sample:
    """One poll. vitals: None without an answer; then `reason` may say why.

    flow, drops_rate: per second since the last answer; None if there is none. takeovers: new ones, oldest first.
    away_secs: time since the last answer, if the previous poll had none; else 0.0.
    """

    at_unix: float
    vitals: Vitals | None
    reason: str | None = None
    flow: Rates | None = None
    drops_rate: float | None = None
    takeovers: tuple[Takeover, ...] = ()
    away_secs: float = 0.0
    is_loss: bool = False  # the first poll without an answer

    @property
    def is_return(self) -> bool:
        """Whether this is the first answer after a loss."""
        return self.vitals is not None and self.away_secs > 0


class History:
    """The last samples, and the takeovers newest first, including those before the first poll."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self.takeovers: deque[Takeover] = deque(maxlen=TAKEOVERS_MAX)
        self.last_vitals: Vitals | None = None
        self.answered_unix = 0.0  # when the last answer came

    def add(self, at_unix: float, vitals: Vitals | None, reason: str | None = None) -> Sample:
        """Append the sample of a poll and return it."""
        was_away = bool(self.samples) and self.samples[-1].vitals is None
        away_secs = max(at_unix - self.answered_unix, 0.0) if was_away else 0.0
        if vitals is None:
            sample = Sample(at_unix, None, reason, away_secs=away_secs, is_loss=not was_away)
        else:
            earlier = self.last_vitals
            sample = Sample(
                at_unix,
                vitals,
                flow=rates(earlier, vitals) if earlier is not None else None,
                drops_rate=_drops_rate(earlier, vitals) if earlier is not None else None,
                takeovers=tuple(self._new_takeovers(at_unix, earlier, vitals)),
                away_secs=away_secs,
            )
            self.last_vitals, self.answered_unix = vitals, at_unix
        self.samples.append(sample)
        return sample

    def _new_takeovers(self, at_unix: float, earlier: Vitals | None, vitals: Vitals) -> Iterator[Takeover]:
        """Record the new takeovers, and yield those that happened since the first poll."""
        known = set(self.takeovers)
        new = [found for found in vitals.takeovers if found not in known]
        if earlier is not None and vitals.pid != earlier.pid and not any(found.succeeded for found in new):
            new.append(
                Takeover(
                    at_unix=at_unix,
                    result="success",
                    way="started without sessions" if vitals.generation == 1 else "replaced",
                    generation=vitals.generation,
                    release=vitals.release,
                    sessions=vitals.sessions,
                )
            )
        self.takeovers.extendleft(new)
        if earlier is not None:
            yield from new

    def last(self, width: int) -> list[Sample]:
        """Return the last `width` samples, or as many as there are, oldest first."""
        return list(islice(self.samples, max(len(self.samples) - max(width, 0), 0), None))


def _drops_rate(earlier: Vitals, later: Vitals) -> float:
    """Return the drops per second, for all reasons and in the kernel's queue."""
    seconds = later.at - earlier.at
    # Counters that went back are those of a server without its predecessor's state, or of another socket.
    dropped = max(sum(later.drops.values()) - sum(earlier.drops.values()), 0)
    overflowed = max(later.kernel_drops - earlier.kernel_drops, 0)
    return (dropped + overflowed) / seconds if seconds > 0 else 0.0
