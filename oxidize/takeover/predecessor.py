"""The side that serves: makes a server replaceable, driven by the server's own loop.

The rule: nothing here waits. The loop reports a readable descriptor or a passed deadline. Every observation of the
successor goes through the machine, whose actions are carried out in order. A failure before COMMIT leaves the host
serving; after COMMIT the host serves again only once the machine knows that the successor is dead.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oxidize.clock import boot_time
from oxidize.errors import Phase, StateError, TakeoverError, reason_of
from oxidize.takeover.acceptor import Acceptor, Register, Unregister
from oxidize.takeover.channel import FDS_PER_MESSAGE_MAX, Channel, ChannelBatch, close_unasked
from oxidize.takeover.host import Offer, TakeoverHost
from oxidize.takeover.listener import Listener
from oxidize.takeover.machine import (
    DEFAULT_TIMEOUTS,
    Action,
    Do,
    Event,
    Observation,
    PredecessorMachine,
    PredecessorState,
    Timeouts,
)
from oxidize.takeover.messages import (
    FDS_MAX,
    Busy,
    CommitMessage,
    Failed,
    FdEntry,
    Hello,
    MoreFds,
    OfferMessage,
    Ready,
    Refused,
    Taken,
    Withdrawn,
    encode,
    fit_reason,
)
from oxidize.takeover.path_lock import PathLock

READY_CHECK_SECS = 0.002  # from one question whether the host may freeze to the next

log = logging.getLogger(__name__)

_EVENTS: Mapping[type, Event] = {
    Hello: Event.HELLO,
    Ready: Event.READY,
    Taken: Event.TAKEN,
    Failed: Event.FAILED,
}


class Predecessor:
    """The server's side of a takeover. It is driven by readable descriptors, `handle_timeout` and `close`.

    register(fd, on_readable) and unregister(fd) are the loop's, level-triggered. clock: seconds of the clock that the
    successor uses too. held: a HELLO waits for `release`, because the host's own predecessor has not ended yet and at
    most two generations exist. lock: of the path, the caller's, which it holds; released for the successor.
    """

    def __init__(
        self,
        listener: Listener,
        host: TakeoverHost,
        *,
        release: str,
        register: Register,
        unregister: Unregister,
        clock: Callable[[], float] = boot_time,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        held: bool = False,
        lock: PathLock | None = None,
    ) -> None:
        self._host = host
        self._lock = lock
        self._release = release
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self._machine = PredecessorMachine(timeouts)
        self._successor: Channel | None = None
        self._watched: set[int] = set()  # descriptors of the successor that are registered
        self._offer: tuple[OfferMessage, list[int]] | None = None
        self._commit: bytes | None = None  # the message, encoded
        self._ready_check_at: float | None = None  # when a READY that is held back is looked at again
        self._report: dict[str, Any] = {}
        self._taken: dict[str, Any] = {}
        self._acceptor = Acceptor(
            listener,
            admit=self._admit,
            answer=host.answer,
            register=register,
            unregister=unregister,
            clock=clock,
            timeout=timeouts.hello,
            held=held,
            lock=lock,
        )

    @property
    def owns(self) -> bool:
        """Return whether this process is the one that reads and sends."""
        return self._machine.owns

    @property
    def state(self) -> str:
        """The state of the machine in lower case, "listening" if no takeover is in progress; for people."""
        return self._machine.state.name.lower()

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is due, or None."""
        deadlines = (self._machine.next_deadline(), self._acceptor.next_deadline(), self._ready_check_at)
        return min([each for each in deadlines if each is not None], default=None)

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that has passed at `now`, on the clock's time; an early call has no effect."""
        self._acceptor.handle_timeout(now, may_bind=self._machine.owns)
        if any(due is not None and now >= due for due in (self._machine.next_deadline(), self._ready_check_at)):
            self._observe(self._successor)

    def release(self) -> None:
        """Admit the HELLO that was held back, and all further ones."""
        self._acceptor.release()

    def withdraw(self, reason: str) -> None:
        """Withdraw an open offer; no effect if there is none or COMMIT was sent."""
        if self._machine.is_engaged() and self._machine.owns:
            self._run(self._machine.withdraw(reason, self._clock()))

    def close(self) -> None:
        """Leave the loop: withdraw an open offer and stop listening; idempotent.

        After COMMIT the successor's connection is closed without a message: it owns, or inherits when this one ends.
        """
        self.withdraw("the server is stopping")
        self._acceptor.close("the server is stopping")
        self._drop_successor()

    # --- The successor ---

    def _admit(self, channel: Channel, hello: Hello) -> Busy | Refused | None:
        pid = channel.peer.pid
        if self._machine.is_engaged():
            (busy,) = self._machine.hello(self._clock())
            return Busy(busy.reason)
        try:
            offer = self._host.offer(hello)
            try:
                self._offer = _pack(offer, self._release)
            except StateError as error:
                self._forget_offer(str(error))
                raise
        except Exception as error:  # noqa: BLE001 - the boundary: a failed offer must leave the host serving
            log.warning("takeover: refused pid %d, release %s: %s", pid, hello.release, reason_of(error))
            return Refused(reason_of(error))
        try:
            for fd in (channel.fileno(), channel.peer.fileno()):
                self._register(fd, lambda: self._observe(channel))
                self._watched.add(fd)
        except OSError as error:  # ENOSPC, ENOMEM: epoll_ctl(2)
            self._stop_watching(*self._watched)
            reason = f"the successor cannot be watched: {error}"
            self._forget_offer(reason)
            return Refused(reason)
        log.info("takeover: pid %d, release %s, is the successor", pid, hello.release)
        self._successor = channel
        self._report, self._taken = {}, {}
        self._run(self._machine.hello(self._clock()))
        return None

    def _observe(self, channel: Channel | None) -> None:
        """Pass all that the successor did to the machine, and carry out the answer."""
        if channel is None or channel is not self._successor:
            return  # an event of the same batch in which it was dropped
        gone = channel.peer.is_dead()  # before the channel is emptied: what is read is then all that it ever sent
        batch = channel.receive_all()
        if batch.closed:
            self._stop_watching(channel.fileno())  # the end of it would wake the loop for ever; the pidfd stays watched
        seen = self._without_held_ready(self._translate(batch), is_ended=batch.closed or gone)
        self._run(self._machine.observe(seen, closed=batch.closed, gone=gone, now=self._clock()))

    def _without_held_ready(self, seen: list[Observation], *, is_ended: bool) -> list[Observation]:
        """Hold READY back, and return nothing, while the host has to do something before it may freeze.

        So the machine sees READY later, and everything else in time. READY is not held beyond its own deadline.
        """
        if self._ready_check_at is not None:
            seen.insert(0, (Event.READY, ""))
        self._ready_check_at = None
        now, deadline = self._clock(), self._machine.next_deadline()
        if is_ended or seen != [(Event.READY, "")] or self._machine.state is not PredecessorState.RESTORING:
            return seen
        # Asked past the deadline too: by the first question the host learns what the successor reads.
        if self._host.may_freeze(self._report) or deadline is None or now >= deadline:
            return seen
        self._ready_check_at = now + READY_CHECK_SECS
        return []

    def _translate(self, batch: ChannelBatch) -> list[Observation]:
        seen: list[Observation] = []
        for received in batch.received:
            close_unasked(received.fds)
            message = received.message
            event = _EVENTS.get(type(message), Event.VIOLATION)
            reason = f"the successor said {type(message).__name__}" if event is Event.VIOLATION else ""
            match message:
                case Failed(text):
                    reason = text or "the successor failed and gave no reason"
                case Ready(report):
                    self._report = report
                case Taken(info):
                    self._taken = info
            seen.append((event, reason))
        if batch.violation:
            seen.append((Event.VIOLATION, f"the successor sent what is no message: {batch.violation}"))
        return seen

    def _run(self, actions: Sequence[Action]) -> None:
        todo = deque(actions)
        while todo:
            todo.extend(self._carry_out(todo.popleft()))
        if actions and self._machine.owns:
            self._acceptor.ensure_bound()  # a successor that had bound the path already may have died

    def _carry_out(self, action: Action) -> Sequence[Action]:
        """Do one thing; return the actions that follow from its outcome."""
        match action.do:
            case Do.SEND_OFFER:
                return self._send_offer()
            case Do.FREEZE:
                return self._freeze()
            case Do.SEND_COMMIT:
                return self._send_commit()
            case Do.SEND_WITHDRAWN:
                self._send_withdrawn(action.reason)
            case Do.FORGET_OFFER:
                log.warning("takeover: failed, still serving: %s", action.reason)
                self._forget_offer(action.reason)
            case Do.THAW:
                self._thaw(action.reason)
            case Do.KILL_SUCCESSOR:
                sent = self._successor is not None and self._successor.peer.kill()
                log.error("takeover: %s the successor: %s", "killed" if sent else "cannot kill", action.reason)
            case Do.RELEASE:
                self._drop_successor()
            case Do.FINISH:
                self._finish()
            case other:
                raise StateError(f"{other.name} is no action of a predecessor; this is a bug")
        return ()

    def _send_offer(self) -> Sequence[Action]:
        if self._offer is None or self._successor is None:
            raise StateError("SEND_OFFER without an offer; this is a bug")
        message, fds = self._offer
        self._offer = None
        try:
            self._successor.send(message, fds[:FDS_PER_MESSAGE_MAX])
            for start in range(FDS_PER_MESSAGE_MAX, len(fds), FDS_PER_MESSAGE_MAX):
                self._successor.send(MoreFds(), fds[start : start + FDS_PER_MESSAGE_MAX])
        except OSError as error:
            return self._machine.withdraw(f"the offer could not be sent: {error}", self._clock())
        self._machine.sent(self._clock())
        return ()

    def _freeze(self) -> Sequence[Action]:
        encode(CommitMessage(self._clock(), {}))  # the first time takes longer, and no process reads meanwhile
        frozen_at = self._clock()
        try:
            self._commit = encode(CommitMessage(frozen_at, self._host.freeze(self._report)))  # failing is harmless yet
        except Exception as error:  # noqa: BLE001 - the boundary: a failed freeze must leave the host serving
            return self._machine.freeze_failed(f"the freeze failed: {reason_of(error)}", self._clock())
        if self._lock is not None:
            self._lock.release()
        return self._machine.frozen(self._clock())

    def _thaw(self, reason: str) -> None:
        """Serve again; raises TakeoverError, which ends this process, where a third process serves by now."""
        if self._lock is not None and not self._lock.take_if_possible():
            raise TakeoverError(
                Phase.OWNING, f"{reason}; and {self._lock.holder()} serves, for it holds {self._lock.path}"
            )
        log.error("takeover: failed after the freeze, serving again: %s", reason)
        self._host.thaw(fit_reason(reason))

    def _send_commit(self) -> Sequence[Action]:
        if self._commit is None or self._successor is None:
            raise StateError("SEND_COMMIT without a freeze; this is a bug")
        try:
            self._successor.send_encoded(self._commit)
        except OSError:
            # It closed its end, so it never owns while this process lives; its death decides the rest.
            return self._machine.observe((), closed=True, gone=False, now=self._clock())
        self._machine.sent(self._clock())
        return ()

    def _send_withdrawn(self, reason: str) -> None:
        if self._successor is None:
            return
        try:
            self._successor.send(Withdrawn(reason))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it closed its end: it gave up
        except OSError:
            # A process that cannot be told that the offer is void must not live to act on it.
            self._successor.peer.kill()
        self._machine.sent(self._clock())

    def _forget_offer(self, reason: str) -> None:
        self._offer = None
        try:
            self._host.offer_withdrawn(fit_reason(reason))
        except Exception:  # the boundary: the host must keep serving, whatever its own code does here
            log.exception("takeover: the host could not withdraw its offer")

    def _finish(self) -> None:
        # The connection stays open until this process ends, so that its end means the end of the process.
        self._stop_watching(*self._watched)
        self._acceptor.close(None)  # a process that waits there reaches the new owner when it connects again
        self._host.finish(self._taken)

    def _stop_watching(self, *fds: int) -> None:
        for fd in self._watched.intersection(fds):
            self._watched.remove(fd)
            self._unregister(fd)

    def _drop_successor(self) -> None:
        self._stop_watching(*self._watched)
        self._ready_check_at = None
        if self._successor is not None:
            self._successor.close()
            self._successor = None


def _pack(offer: Offer, release: str) -> tuple[OfferMessage, list[int]]:
    """Return the message and the descriptors of an offer; raises StateError if it cannot be sent."""
    if len(offer.fds) > FDS_MAX:
        raise StateError(f"an offer of {len(offer.fds)} descriptors; expected at most {FDS_MAX}")
    names = [each.name for each in offer.fds]
    if len(set(names)) < len(names):
        raise StateError(f"an offer with two descriptors of one name: {sorted(names)}; expected each once")
    entries = tuple(FdEntry(each.name, each.kind, dict(each.options)) for each in offer.fds)
    message = OfferMessage(offer.generation, release, entries, offer.state)
    encode(message)
    return message, [each.fd for each in offer.fds]
