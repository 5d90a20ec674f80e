"""The side that takes over: connects, restores, waits for COMMIT, owns.

The rule: until it owns, this side waits, each time with a deadline, for it has nothing else to do. Once it owns it
never waits. Every failure is a TakeoverError with the step and the reason, and leaves the predecessor serving.

    successor = Successor(path, release=..., snapshot_versions=[...])
    offer = successor.connect()             # None: no process serves, and this one holds the lock: start afresh
    ...                                     # restore; read nothing from the descriptors, change nothing about them
    commit = successor.ready({...})         # the predecessor has stopped, or has died
    ...                                     # apply the last of the state, serve
    successor.taken({...})                  # after the first iteration of the loop
    ...                                     # `has_predecessor_ended` when `predecessor_fd` is readable
"""

import logging
import os
import select
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from oxidize.clock import boot_time
from oxidize.errors import Phase, StateError, TakeoverError
from oxidize.takeover.channel import Channel, ChannelBatch, Received, close_fds, connect
from oxidize.takeover.connection import is_authorised
from oxidize.takeover.host import NamedFd, Offer
from oxidize.takeover.machine import (
    DEFAULT_TIMEOUTS,
    Action,
    Do,
    Event,
    Observation,
    SuccessorMachine,
    SuccessorState,
    Timeouts,
)
from oxidize.takeover.messages import (
    RETRY_DELAY,
    Busy,
    CommitMessage,
    Failed,
    Hello,
    Message,
    MoreFds,
    OfferMessage,
    Ready,
    Refused,
    Taken,
    Withdrawn,
    decode,
    encode,
)
from oxidize.takeover.namespaces import network_namespace, time_namespace
from oxidize.takeover.path_lock import PathLock

log = logging.getLogger(__name__)

LOOKS_AWAKE = 150  # for COMMIT, without a pause: some 2 ms, for to be woken takes 0.1 ms, and makes what follows slower
READ_ALONG_SECS = 0.002  # from READY on: from one reading of what the predecessor appends to the next

_EVENTS: Mapping[type, Event] = {
    Busy: Event.BUSY,
    Refused: Event.REFUSED,
    Withdrawn: Event.WITHDRAWN,
    CommitMessage: Event.COMMIT,
}


class Commit(NamedTuple):
    """The moment of ownership. `frozen_at`: since when no process reads, None if the predecessor died instead."""

    info: Mapping[str, Any] = MappingProxyType({})
    frozen_at: float | None = None
    predecessor_died: bool = False


class Successor:
    """One attempt to take over. The process that calls `connect` must be the one that will serve.

    clock: seconds of the clock that the predecessor uses too. snapshot_versions: the formats of the state that this
    release reads. abilities: what else of the host's it understands, by names of the host. lock: of the path, the
    caller's, which `connect` and `ready` take where this process may serve; with None the caller prevents two
    simultaneous starts.
    """

    def __init__(
        self,
        path: Path,
        *,
        release: str,
        snapshot_versions: Sequence[int],
        abilities: Sequence[str] = (),
        lock: PathLock | None = None,
        clock: Callable[[], float] = boot_time,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._path = path
        self.lock = lock
        self._hello = Hello(
            release,
            os.getpid(),
            tuple(snapshot_versions),
            network_namespace=network_namespace(),
            time_namespace=time_namespace(),
            abilities=tuple(abilities),
        )
        self._clock = clock
        self._timeouts = timeouts
        self._machine = SuccessorMachine(timeouts)
        self._channel: Channel | None = None
        self._is_channel_closed = False  # by the other side
        self._offer_message: OfferMessage | None = None
        self._fds: list[int] = []  # until they are handed to the host
        self._commit = Commit()
        self._report: dict[str, Any] = {}
        self._info: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def owns(self) -> bool:
        """Return whether this process is the one that reads and sends."""
        return self._machine.owns

    @property
    def predecessor_fd(self) -> int:
        """The predecessor's pidfd: readable once it is dead. Valid from `connect` to `close`."""
        return self._connected().peer.fileno()

    def fileno(self) -> int:
        """Return the connection's descriptor, readable when `check` has something to read."""
        return self._connected().fileno()

    def connect(self) -> Offer | None:
        """Return the offer, whose descriptors are the caller's from now on, or None if no process listens.

        The caller then holds the lock, where it can be had. Where another process does, it may be about to listen, or
        to end: this one looks for it again until the deadline of an offer. Raises TakeoverError if the process that
        listens makes no offer, or if none listens and another one holds the lock.
        """
        deadline = self._clock() + self._timeouts.offer
        self._try()
        is_alone = self.lock is None or self.lock.is_held
        while self._machine.state is SuccessorState.ABSENT and self.lock is not None and not is_alone:
            is_alone = self.lock.take_if_possible()
            if not is_alone:
                if self._clock() >= deadline:
                    raise TakeoverError(
                        Phase.CONNECTING,
                        f"no process listens at {self._path}, but {self.lock.holder()} holds {self.lock.path}: it "
                        "starts, ends or hangs; try again, or end it",
                    )
                select.select([], [], [], RETRY_DELAY)
            # The lock is not enough: a process that has served since the last look listens, and may hold none.
            self._machine = SuccessorMachine(self._timeouts)
            self._try()
        if self._machine.state is SuccessorState.ABSENT or self._offer_message is None:
            return None
        if self.lock is not None:
            self.lock.release()  # it is that of the process that listens
        fds, self._fds = self._fds, []
        message = self._offer_message
        named = (NamedFd(each.name, fd, each.kind, each.options) for each, fd in zip(message.fds, fds, strict=True))
        pid = self._connected().peer.pid
        return Offer(message.generation, tuple(named), message.state, message.release, pid)

    def _try(self) -> None:
        """Look once for a process that listens, and wait for its answer; raises TakeoverError if that is no offer."""
        self._reach()
        while self._machine.state is SuccessorState.HELLO_SENT:
            self._wait()
            self._observe()
        self._raise_if_failed()

    def check(self) -> bool:
        """Return whether the predecessor lives, without waiting; for use during a long restore, before `ready`.

        Raises TakeoverError if it has withdrawn its offer.
        """
        self._observe()
        self._raise_if_failed()
        return self._machine.state is not SuccessorState.INHERITING

    def ready(self, report: dict[str, Any], read_along: Callable[[], object] | None = None) -> Commit:
        """Report that the state is restored and wait until this process owns.

        read_along: called while it waits, to read what the predecessor appends; what is left is read when it owns.

        Raises TakeoverError if it never will: another process serves, and this one must end. Raises StateError, with
        nothing sent, if the report cannot be encoded or this is a fork of the process that connected.
        """
        if os.getpid() != self._hello.pid:
            raise StateError(
                f"ready() in process {os.getpid()}; expected {self._hello.pid}, which is the one it watches"
            )
        encode(Ready(report))
        self._report = report
        self._prepare_to_own()
        self._observe()
        self._raise_if_failed()
        self._run(self._machine.restored(self._clock()))
        for _ in range(LOOKS_AWAKE):
            if self._machine.state is SuccessorState.READY_SENT:
                self._observe()
        while self._machine.state in {SuccessorState.READY_SENT, SuccessorState.LOST}:
            self._wait(None if read_along is None else READ_ALONG_SECS)
            self._observe()
            if read_along is not None and self._machine.state is SuccessorState.READY_SENT:
                read_along()
        self._raise_if_failed()
        if self.lock is not None and not self.lock.take_if_possible():
            raise TakeoverError(Phase.OWNING, f"{self.lock.holder()} holds {self.lock.path}, and so serves already")
        return self._commit

    def _prepare_to_own(self) -> None:
        """Do before READY what else would take longer after COMMIT, when no process reads."""
        decode(encode(CommitMessage(self._clock(), {})))  # for the first time
        if self.lock is not None:
            self.lock.prepare()

    def has_inherited(self) -> bool:
        """Return whether the predecessor is dead, and this process the only one that can serve; before `ready`.

        Waits where the connection has ended, for the kernel closes a dying process's files a little before its pidfd
        reports the death. Raises TakeoverError as `check` does.
        """
        if self.check() and self._is_channel_closed:
            poll = select.poll()
            poll.register(self.predecessor_fd, select.POLLIN)
            poll.poll(self._timeouts.death * 1000)
        return not self.check()

    def taken(self, info: dict[str, Any]) -> None:
        """Report that this process serves, so that the predecessor exits; does not wait."""
        encode(Taken(info))
        self._info = info
        self._run(self._machine.take(self._clock()))

    def failed(self, reason: str) -> None:
        """Give up, and send the predecessor the reason; idempotent.

        After `ready` the predecessor serves again only when this process has ended. Raises StateError after `taken`.
        """
        self._run(self._machine.fail(reason, self._clock()))

    def next_deadline(self) -> float | None:
        """Return when `has_predecessor_ended` is due although nothing is readable, or None."""
        return self._machine.next_deadline()

    def has_predecessor_ended(self) -> bool:
        """Return whether the predecessor has ended, without waiting; after `taken`. One that does not end is killed."""
        if self._machine.owns and self._machine.state is not SuccessorState.DONE:
            self._observe()
        return self._machine.state is SuccessorState.DONE

    def is_predecessor_dead(self) -> bool:
        """Return whether the predecessor is certainly dead at this moment; for an owner, whose state that changes not.

        Valid from `connect` to `close`.
        """
        return self._connected().peer.is_dead()

    def close(self) -> None:
        """Close the connection and every descriptor that no `connect` returned; idempotent."""
        close_fds(self._fds)
        self._fds = []
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connected(self) -> Channel:
        if self._channel is None:
            raise StateError("there is no connection; expected connect() before, and close() after")
        return self._channel

    def _raise_if_failed(self) -> None:
        if self._machine.state is SuccessorState.FAILED:
            raise TakeoverError(self._machine.phase, self._machine.reason)

    # --- Observing the predecessor ---

    def _wait(self, secs_max: float | None = None) -> None:
        """Block until there is something to observe, or until the deadline, but no longer than `secs_max`."""
        channel = self._connected()
        poll = select.poll()
        poll.register(channel.peer.fileno(), select.POLLIN)
        if not self._is_channel_closed:
            poll.register(channel.fileno(), select.POLLIN)
        deadline = self._machine.next_deadline()
        if deadline is None:
            raise StateError(f"waiting in {self._machine.state.name} without a deadline; this is a bug")
        secs = max(0.0, deadline - self._clock())
        poll.poll(min(secs, secs if secs_max is None else secs_max) * 1000 + 1)

    def _observe(self) -> None:
        channel = self._channel
        if channel is None:
            return
        gone = channel.peer.is_dead()  # before the channel is emptied: what is read is then all that it ever sent
        batch = channel.receive_all()
        self._is_channel_closed = batch.closed
        self._run(self._machine.observe(self._translate(batch), closed=batch.closed, gone=gone, now=self._clock()))

    def _translate(self, batch: ChannelBatch) -> list[Observation]:
        seen: list[Observation] = []
        for received in batch.received:
            message = received.message
            if isinstance(message, OfferMessage | MoreFds):
                seen += self._collect(message, received)
                continue
            close_fds(received.fds)
            if isinstance(message, CommitMessage):
                self._commit = Commit(message.info, message.frozen_at)
            seen.append(_event_of(message))
        if batch.violation:
            seen.append((Event.VIOLATION, f"the predecessor sent what is no message: {batch.violation}"))
        return seen

    def _collect(self, message: OfferMessage | MoreFds, received: Received) -> list[Observation]:
        """Collect the descriptors of an offer, which counts once all have come."""
        is_first = isinstance(message, OfferMessage)
        if self._machine.state is not SuccessorState.HELLO_SENT or is_first is (self._offer_message is not None):
            close_fds(received.fds)
            return [(Event.VIOLATION, "the predecessor sent a second offer, or descriptors without one")]
        self._fds += received.fds
        if isinstance(message, OfferMessage):
            self._offer_message = message
        expected = 0 if self._offer_message is None else len(self._offer_message.fds)
        if len(self._fds) > expected:
            return [(Event.VIOLATION, f"the offer came with {len(self._fds)} descriptors; expected {expected}")]
        return [(Event.OFFER, "")] if len(self._fds) == expected else []

    # --- Carrying out ---

    def _run(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        match action.do:
            case Do.CONNECT:
                self.close()
                self._offer_message = None
                select.select([], [], [], RETRY_DELAY)
                self._reach()
            case Do.SEND_HELLO:
                self._send(self._hello)
            case Do.SEND_READY:
                self._send(Ready(self._report))
            case Do.SEND_FAILED:
                self._send(Failed(action.reason))
            case Do.SEND_TAKEN:
                self._send(Taken(self._info))
            case Do.INHERIT:
                self._commit = Commit(predecessor_died=True)
            case Do.KILL_PREDECESSOR:
                sent = self._connected().peer.kill()
                log.error("takeover: the predecessor does not exit; %s", "killed" if sent else "cannot kill it")
            case Do.FAIL:
                self.close()
            case Do.OWN | Do.DONE:
                pass
            case other:
                raise StateError(f"{other.name} is no action of a successor; this is a bug")

    def _reach(self) -> None:
        try:
            self._channel = connect(self._path, self._timeouts.offer)
        except TakeoverError as error:
            self._run(self._machine.fail(error.reason, self._clock()))
            return
        self._is_channel_closed = False
        if self._channel is None:
            self._run(self._machine.no_listener(self._clock()))
            return
        peer = self._channel.peer
        if not is_authorised(peer.uid, os.geteuid()):
            reason = (
                f"pid {peer.pid} at {self._path} is of uid {peer.uid}; expected uid {os.geteuid()}: start it as that"
            )
            self._run(self._machine.fail(reason, self._clock()))
            return
        self._run(self._machine.connected(self._clock()))

    def _send(self, message: Message) -> None:
        try:
            self._connected().send(message)
        except OSError as error:
            # The next observation shows the state of the other side.
            log.debug("takeover: %s could not be sent: %s", type(message).__name__, error)
        self._machine.sent(self._clock())


def _event_of(message: Message) -> Observation:
    event = _EVENTS.get(type(message))
    if event is None:
        return Event.VIOLATION, f"the predecessor said {type(message).__name__}"
    match message:
        case Busy(reason) | Refused(reason) | Withdrawn(reason):
            return event, reason or f"the predecessor said {event.name} and gave no reason"
        case _:
            return event, ""
