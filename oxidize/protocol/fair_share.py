"""The fair share: of a socket whose queue overflows, how much of each session's data is received.

The rule: data is dropped only where the kernel drops it anyway, for want of room, or is about to, since a long queue
does not fall; then it is decided whose. Dropped are messages of the sessions that send more than their share, in
proportion and at random: by the kernel before they are queued, or, where it does not or UDP GRO has joined them, as
soon as they are read. So the queue becomes short, and handshakes and the sessions that send less than the share, which
lose nothing, do not wait in it.

The share is that of a max-min allocation of what can be processed, as far as that is known, and of a little more or
less, so that the wait in the queue becomes what is intended, until no session exceeds it.

Sources: R. Pan, L. Breslau, B. Prabhakar, S. Shenker, "Approximate Fairness through Differential Dropping" (shares
from counts of what has arrived); socket(7), SO_MEMINFO.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest
from math import inf
from typing import NamedTuple, TypeVar

# Parts of the receive buffer. From the first on messages are counted by session, which a burst seldom reaches; beyond
# the second datagrams that the kernel drops are for want of room, and not of a flood that is shed.
COUNTED_PART, FULL_PART = 0.25, 0.75
RETURNED_PART = 0.25  # what has been read counts as queued until it is so much (Linux: udp_rmem_release)
SHORT_QUEUE_BYTES = 1024 << 10  # as the kernel accounts it, 2.3 kB for a long datagram; in a small buffer less
PACKET_OVERHEAD_BYTES = 1024  # of it beside a datagram's own bytes, about
STANDING_SECS = 0.015  # a queue that is not short for so long is long: a status takes half of it
# A queue in which messages are counted and that does not fall in this time is no burst, nor what came while no process
# read it: as much comes as can be processed, or more, and all would wait in it until it overflows.
FALLING_SECS = 0.5
TURN_SECS_MAX = 0.004  # a turn of the loop takes 2 ms; in a longer pause it did not read
IDLE_SECS = 0.1  # without a datagram: what was measured before is of no use

# The parts of what can be processed that are admitted until a queue that overflowed is short. Where little more than
# that came, it is of senders that adapt themselves: a sign is enough, and more would end connections.
DRAINED_PART = 0.25
MILD_OVERLOAD, MILDLY_DRAINED_PART = 1.2, 0.8
# Others than sessions are none of their doing: it is tried only where nearly all that is read is their data, and given
# up where the queue is long all the same.
SESSIONS_PART_MIN = 0.9
LONG_SECS_MAX, GIVEN_UP_SECS = 0.5, 10.0
# Then, each time, as much as makes the wait in the queue what is intended, in CORRECTED_SECS: a queue that is never
# empty is what makes batches long. Looked at is the shortest queue of that time, for the kernel gives back portions.
TICK_SECS = 0.008
CHANGE_MIN = 0.05  # of a share, before the kernel is told
WAIT_SECS, CORRECTED_SECS = 0.004, 0.02
ADMITTED_MIN, ADMITTED_MAX = 0.1, 1.1  # of what can be processed
CAPACITY_MIN = 0.3  # of what was processed at first: a server that gets no further is busy with something else
MEASURED_PART = 0.2  # of the last tick, in what can be processed; the rest is what was measured before
GROWTH = 1.02  # of it in a tick in which the queue was empty, so that more could have been processed
# What each session sends is counted in windows: the first is short, as the load is known badly, the later ones long,
# for shares that chance does not decide.
WINDOW_SECS_MIN, WINDOW_SECS_MAX = 0.016, 0.064
ALERT_SECS = 2.0  # after the load has fallen: a queue that is long again is not left to overflow

# In the filter:
SHARE_MIN = 1 / 16  # so that one that is left behind cuts no session off; the rest is dropped when it is read
SESSIONS_MAX = 64  # beside the sources that a filter spares, within the memory that the kernel has for it

_DICE = 4096

Item = TypeVar("Item")


class QueueState(NamedTuple):
    """What the kernel tells of a socket. queued, room: bytes as it accounts them; dropped: datagrams, modulo 2^32."""

    queued: int
    room: int
    dropped: int


def level(counts: Iterable[float], total: float) -> float:
    """Return the limit to which counts are cut so that `total` of them remains, at most the highest of them.

    At least 1: a single message is never too many.
    """
    ordered = sorted(counts)
    left, rest = total, len(ordered)
    for count in ordered:
        if count * rest >= left:
            return max(1.0, left / rest)
        left -= count
        rest -= 1
    return max(1.0, ordered[-1]) if ordered else 1.0


class FairShare:
    """The shares of all sessions, each named by its receiver index, of one socket.

    random_bytes: count -> bytes. look: tells the state of the queue. shed: has the kernel let a part of each named
    session's messages pass, of all others all; returns whether it does. on_begin: called with the time when messages
    begin to be dropped. is_counting: whether messages have to be passed to `admit`, else all are admitted. about_shed:
    how many messages the kernel has dropped for this, about; its reader sets it to 0.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self.look: Callable[[], QueueState] = lambda: QueueState(0, 0, 0)
        self.shed: Callable[[Mapping[int, float]], bool] = lambda _: False
        self.on_begin: Callable[[float], None] = lambda _: None
        self.about_shed = 0
        self._dice = b""
        self._noted_at = self._alert_until = self._given_up_until = -inf
        self._passing: Mapping[int, float] = {}  # the part that the kernel lets pass
        self._reset()

    def begin(self) -> None:
        """Begin to own the queue, of which the kernel sheds nothing."""
        self._passing = {}
        self._alert_until = self._given_up_until = -inf
        self._reset()

    def _reset(self) -> None:
        self._pass({})
        self.is_counting = self.is_dropping = self._is_draining = self._is_refused = False
        self._was_alert = False
        self._long_secs = 0.0  # for which the queue has not been short
        self._queue = QueueState(0, 0, 0)
        self._room = 0
        self._is_known = (
            False  # what the kernel tells of the queue is of datagrams that came since messages are counted
        )
        self._processed_rate = self._capacity = 0.0  # in a second: what was processed at first, what can be
        self._window_secs = WINDOW_SECS_MIN
        self._lowest = self._lowest_before = inf  # bytes in the queue, in FALLING_SECS and in those before
        self._lowest_secs = 0.0
        self._begin_tick()
        self._begin_window()
        self._sent: Mapping[int, float] = {}  # by each session, in the window before
        self._sent_secs = 0.0
        self._limit = inf  # of that

    def _begin_window(self) -> None:
        self._counts: dict[int, float] = {}  # by session: what was read, and dropped by the kernel
        self._read = self._read_bytes = self._read_of_all = 0
        self._counted_secs = 0.0

    def _begin_tick(self) -> None:
        self._shortest = inf  # bytes in the queue
        self._tick_admitted = 0
        self._tick_secs = 0.0

    @property
    def expires_at(self) -> float:
        """When `expire` is due unless a datagram comes; `inf` while the kernel sheds nothing."""
        return self._noted_at + IDLE_SECS if self._passing else inf

    def expire(self, now: float) -> None:
        """Forget everything where no datagram has come for IDLE_SECS."""
        if now >= self._noted_at + IDLE_SECS:
            self._reset()

    # --- Told after each event in which the socket was read ---

    def note(self, now: float, *, is_empty: bool) -> None:
        """Note that the socket was read, and whether it is known to be empty."""
        if is_empty and not self.is_counting:
            return
        elapsed, self._noted_at = now - self._noted_at, now
        if elapsed >= IDLE_SECS:
            self._reset()
        elapsed = min(elapsed, TURN_SECS_MAX)
        queue = QueueState(0, 0, self._queue.dropped) if is_empty else self.look()
        if not self.is_counting:
            self.is_counting = queue.queued > self._counted_from(queue, now) and now >= self._given_up_until
            self._queue, self._room = queue, queue.room
            return
        self._counted_secs += elapsed
        self._long_secs = self._long_secs + elapsed if queue.queued > self._short_bytes else 0.0
        if self.is_dropping:
            self._shortest = min(self._shortest, queue.queued)
            self._tick_secs += elapsed
            self._keep(now)
        elif queue.queued <= self._counted_from(queue, now) / 2:
            self._reset()
        elif self._counted_secs > 0.0 and self._is_too_much(queue, now, elapsed) and self._is_of_sessions():
            self._begin_to_drop(queue, now)

    @property
    def _short_bytes(self) -> float:
        return min(SHORT_QUEUE_BYTES, COUNTED_PART * self._room)

    def _counted_from(self, queue: QueueState, now: float) -> float:
        counted = COUNTED_PART * queue.room
        return min(SHORT_QUEUE_BYTES, counted) if now < self._alert_until else counted

    def _is_of_sessions(self) -> bool:
        """Return whether nearly all that was read is data of sessions."""
        return self._read > 0 and self._read >= SESSIONS_PART_MIN * self._read_of_all

    def _is_too_much(self, queue: QueueState, now: float, elapsed: float) -> bool:
        if now < self._alert_until:
            return self._long_secs >= STANDING_SECS
        if not self._is_known:
            # What overflowed before, as while no process read it, is no sign of what comes now.
            self._is_known = self._read_bytes + self._read * PACKET_OVERHEAD_BYTES > RETURNED_PART * queue.room
            if self._is_known:
                self._begin_window()
                self._queue = queue
            return False
        if queue.queued > FULL_PART * queue.room and queue.dropped != self._queue.dropped:
            return True
        self._lowest = min(self._lowest, queue.queued)
        self._lowest_secs += elapsed
        if self._lowest_secs < FALLING_SECS:
            return False
        falls = self._lowest < self._lowest_before
        self._lowest_before, self._lowest, self._lowest_secs = self._lowest, inf, 0.0
        return not falls

    def _begin_to_drop(self, queue: QueueState, now: float) -> None:
        self._processed_rate = self._read / self._counted_secs
        self._capacity = self._processed_rate
        self._accounted = self._read_bytes / self._read + PACKET_OVERHEAD_BYTES  # bytes of a datagram in the queue
        grown = (queue.queued - self._queue.queued) / self._accounted
        dropped = (queue.dropped - self._queue.dropped) % (1 << 32)
        too_much = 1.0 + max(0.0, grown + dropped) / self._read
        self._sent = {session: count * too_much for session, count in self._counts.items()}
        self._sent_secs = self._counted_secs
        self.is_dropping = self._is_draining = True
        self._was_alert = now < self._alert_until
        self._long_secs = 0.0
        part = DRAINED_PART if too_much > MILD_OVERLOAD else MILDLY_DRAINED_PART
        self._set_rate(part * self._processed_rate)
        self.on_begin(now)

    def _keep(self, now: float) -> None:
        """Change what is admitted, where it is time for that."""
        if self._long_secs >= LONG_SECS_MAX:
            self._given_up_until = now + GIVEN_UP_SECS
            self._reset()
        elif self._is_draining:
            if self._long_secs == 0.0:
                self._end_draining()
        elif self._tick_secs >= TICK_SECS:
            has_ended = self._counted_secs >= self._window_secs
            is_of_sessions = not has_ended or self._is_of_sessions()
            if has_ended:
                self._end_window()
            self._end_tick()
            if not is_of_sessions or (has_ended and self._limit >= max(self._sent.values(), default=0.0)):
                if not self._was_alert:
                    self._alert_until = now + ALERT_SECS
                self._reset()

    def _end_draining(self) -> None:
        """Begin to look at what comes now; what was read until now was sent before."""
        self._is_draining = False
        if not self._is_of_sessions():
            self._reset()
            return
        self._begin_window()
        self._begin_tick()
        self._set_rate(self._capacity)

    def _end_tick(self) -> None:
        """Admit what leads to the intended wait."""
        if self._shortest > 0.0:
            self._capacity += MEASURED_PART * (self._tick_admitted / self._tick_secs - self._capacity)
        else:
            self._capacity *= GROWTH
        self._capacity = max(self._capacity, CAPACITY_MIN * self._processed_rate)
        per_sec = self._accounted * self._capacity  # bytes of the queue
        intended_secs = min(WAIT_SECS, self._short_bytes / 2 / per_sec)
        part = 1.0 + (intended_secs - self._shortest / per_sec) / CORRECTED_SECS
        self._set_rate(min(max(part, ADMITTED_MIN), ADMITTED_MAX) * self._capacity)
        self._begin_tick()

    def _end_window(self) -> None:
        """Use what each session has sent in the window."""
        self.about_shed += round(sum(self._counts.values()) - self._read)
        self._sent, self._sent_secs = self._counts, self._counted_secs
        self._accounted = self._read_bytes / max(1, self._read) + PACKET_OVERHEAD_BYTES
        self._window_secs = min(2 * self._window_secs, WINDOW_SECS_MAX)
        self._begin_window()

    def _set_rate(self, rate: float) -> None:
        """Admit so many messages in a second, of all sessions together."""
        self._limit = level(self._sent.values(), rate * self._sent_secs)
        busiest = nlargest(SESSIONS_MAX, [(sent, one) for one, sent in self._sent.items() if sent > self._limit])
        self._pass({session: max(SHARE_MIN, self._limit / sent) for sent, session in busiest})

    def _pass(self, parts: Mapping[int, float]) -> None:
        before = self._passing
        if parts.keys() == before.keys() and all(abs(parts[one] / before[one] - 1) < CHANGE_MIN for one in parts):
            return
        if not parts or not self._is_refused:
            self._is_refused = not self.shed(parts)
            self._passing = {} if self._is_refused else parts

    # --- Told what was read ---

    def count(self, number: int) -> None:
        """Count datagrams of any kind that were read; data of sessions is passed to `admit` beside that."""
        self._read_of_all += number

    def admit(self, session: int, messages: Sequence[Item], size: int, *, are_joined: bool) -> Sequence[Item]:
        """Return those of a session's messages that are to be processed, in order.

        size: of all, bytes. are_joined: whether GRO has joined them, so that the kernel drops none of them.
        """
        number = len(messages)
        is_thinned = not are_joined and session in self._passing
        passing = self._passing[session] if is_thinned else 1.0
        self._read += number
        self._read_bytes += size
        self._counts[session] = self._counts.get(session, 0.0) + number / passing
        sent = self._sent.get(session, 0.0)
        if self._is_draining:
            passing = 1.0  # what a long queue holds came before the kernel dropped any of it
        admitted = messages
        if self._limit < sent * passing:
            threshold = max(1, round(256 * self._limit / (sent * passing)))
            admitted = [message for message, die in zip(messages, self._throw(number), strict=True) if die < threshold]
        self._tick_admitted += len(admitted)
        return admitted

    def _throw(self, count: int) -> bytes:
        if len(self._dice) < count:
            self._dice = self._random_bytes(_DICE)
        thrown, self._dice = self._dice[:count], self._dice[count:]
        return thrown
