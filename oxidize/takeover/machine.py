"""Who owns the sockets: both roles of a takeover as transition tables, pure.

The rule: at every instant at most one side owns. The predecessor gives ownership up before it says COMMIT and takes it
back only when the successor is certainly dead (its pidfd says so, pidfd_open(2)); the successor owns from COMMIT, or
from the certain death of a predecessor that made an offer and never withdrew it. A closed connection proves neither.

Theory. Both processes hold the same descriptors and the same state, so neither needs the other in order to serve: what
changes hands is the permission. Three things can be seen of a peer, and they prove different things. A message says
what the peer intends. The end of the connection (CLOSED) proves nothing: a process may close its socket and live. The
end of the process (GONE) proves that it will never read or write again. Silence proves nothing either, so a deadline
never moves ownership: before COMMIT it makes a side give up; after COMMIT it makes the predecessor kill the successor
and wait for its death.

Predecessor. It owns in LISTENING, RESTORING (the successor holds the offer, and inherits if this process dies) and
WITHDRAWING (the offer is void; the end of the process that holds it is awaited before another one is served). FREEZING
lasts from READY until the host has stopped reading. From COMMITTED on the successor owns or is about to. TAKEN leads
to DONE. Everything else leads through ENDING (the successor failed, or closed the connection) or KILLING to a certain
death, and only then back to LISTENING. Death beats messages here: whatever a dead successor was ready for or had taken,
this process lives and no other one serves. Only the reason in its FAILED still counts.

Successor. It owns in OWNING, TAKEN_SENT and DONE. From RESTORING on it holds everything, and touches nothing. If the
predecessor dies it inherits (INHERITING, or OWNING at once where READY was sent), for an offer that was never withdrawn
is the last thing that a dead process said. Messages beat death here: a COMMIT or WITHDRAWN that was sent before the
death decides. LOST is a connection that ended without either. The pidfd settles it: if the predecessor is dead this
process owns, and if it still lives at the deadline this process fails. FAILED is final: this process said, or was told,
that it never owns, and a COMMIT that crossed on the way is void.

No message is a bug. Each event of a peer has a transition in each state with a peer, at least as a breach (VIOLATION),
so that nothing a peer sends can end the process that serves.

A shell reports what it saw (`observe`) and carries out the actions that the machine returns, in order. It must ask
whether its peer is dead *before* it empties the channel: then what it reads is all that the peer ever sent. Both come
before a deadline, and a wait begins when the shell has sent what the peer is to answer (`sent`): a side that was itself
stopped for a while never mistakes its own pause for its peer's. All times are seconds of one clock.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto, unique
from typing import NamedTuple

from oxidize.errors import Phase, StateError
from oxidize.takeover.deadline import Deadline
from oxidize.takeover.messages import CONNECT_ATTEMPTS_MAX


class Timeouts(NamedTuple):
    """Every deadline of a takeover, in seconds; tests make them short."""

    # The predecessor's
    hello: float = 5.0  # from accept to HELLO or a query
    restore: float = 30.0  # from OFFER to READY; a coordinator waits as long for the successor to be prepared
    taken: float = 5.0  # from COMMIT to TAKEN: the longest time without a reader, whatever the successor does
    kill: float = 5.0  # from one SIGKILL to the next
    exit_grace: float = 1.0  # for a successor that failed after COMMIT: it ends, and reports the reason to the operator
    withdrawn_exit: float = 5.0  # for a successor whose offer was withdrawn; one that hangs holds the session keys
    # The successor's
    offer: float = 5.0  # from connecting to OFFER
    commit: float = 10.0  # from READY to COMMIT: one iteration of the predecessor's loop, on a loaded machine
    death: float = 5.0  # the kernel closes a dying process's files a little before its pidfd reports the death
    predecessor_exit: float = 60.0  # from TAKEN to the predecessor's end; longer than any drain


DEFAULT_TIMEOUTS = Timeouts()


@unique
class Event(Enum):
    """What can happen to either side. The second group is what its own process does."""

    HELLO = auto()
    OFFER = auto()
    BUSY = auto()
    REFUSED = auto()
    WITHDRAWN = auto()
    READY = auto()
    FAILED = auto()
    COMMIT = auto()
    TAKEN = auto()
    VIOLATION = auto()  # bytes that are no message, or a message that the state has no transition for
    CLOSED = auto()  # the connection ended; its process may live
    GONE = auto()  # the process is certainly dead
    DEADLINE = auto()

    CONNECTED = auto()
    NO_LISTENER = auto()  # no process listens
    EXHAUSTED = auto()  # CLOSED or GONE before OFFER, CONNECT_ATTEMPTS_MAX times
    WITHDRAW = auto()
    FROZEN = auto()
    FREEZE_FAILED = auto()
    RESTORED = auto()
    FAIL = auto()
    TAKE = auto()


# One of these in a state without a transition for it is a breach of protocol; any other such event is a bug here.
_FROM_PEER = frozenset(
    {Event.HELLO, Event.OFFER, Event.BUSY, Event.REFUSED, Event.WITHDRAWN, Event.READY, Event.FAILED, Event.COMMIT}
    | {Event.TAKEN}
)


@unique
class Do(Enum):
    """What a machine tells its shell to do."""

    # The predecessor
    SEND_OFFER = auto()
    SEND_BUSY = auto()
    FREEZE = auto()  # then report `frozen` or `freeze_failed`
    SEND_COMMIT = auto()
    SEND_WITHDRAWN = auto()
    FORGET_OFFER = auto()  # the successor will never own; this process never stopped serving
    THAW = auto()
    KILL_SUCCESSOR = auto()
    RELEASE = auto()  # close the connection: another successor may connect
    FINISH = auto()  # the successor owns: exit
    # The successor
    CONNECT = auto()  # then report `connected` or `no_listener`
    SEND_HELLO = auto()
    SEND_READY = auto()
    SEND_FAILED = auto()
    OWN = auto()  # by COMMIT
    INHERIT = auto()  # by the predecessor's death: there is no COMMIT
    SEND_TAKEN = auto()
    KILL_PREDECESSOR = auto()
    FAIL = auto()
    DONE = auto()  # the predecessor has ended


class Action(NamedTuple):
    """One thing to do; `reason` says why if it is due to a failure."""

    do: Do
    reason: str = ""


@unique
class PredecessorState(Enum):
    """The states of the predecessor."""

    LISTENING = auto()  # serves; no successor
    RESTORING = auto()  # serves; the successor has the offer
    WITHDRAWING = auto()  # serves; the offer is void, the successor's end is awaited
    FREEZING = auto()  # stops serving; COMMIT not sent
    COMMITTED = auto()  # the successor owns, or is about to
    ENDING = auto()  # the successor failed after COMMIT, its end is awaited
    KILLING = auto()  # the successor was killed after COMMIT, its end is awaited
    DONE = auto()  # the successor owns for good


@unique
class SuccessorState(Enum):
    """The states of the successor."""

    CONNECTING = auto()
    HELLO_SENT = auto()
    RESTORING = auto()  # has the offer; the predecessor serves
    INHERITING = auto()  # as RESTORING, but the predecessor is dead
    READY_SENT = auto()
    LOST = auto()  # the connection ended without a message: is the predecessor dead?
    OWNING = auto()
    TAKEN_SENT = auto()  # owns; the predecessor is about to exit
    DONE = auto()  # owns alone
    ABSENT = auto()  # no process listened: there is nothing to take over
    FAILED = auto()  # never owns


_P, _S, _E = PredecessorState, SuccessorState, Event

PREDECESSOR_TABLE: Mapping[tuple[PredecessorState, Event], tuple[PredecessorState, tuple[Do, ...]]] = {
    (_P.LISTENING, _E.HELLO): (_P.RESTORING, (Do.SEND_OFFER,)),
    (_P.RESTORING, _E.READY): (_P.FREEZING, (Do.FREEZE,)),
    (_P.RESTORING, _E.FAILED): (_P.LISTENING, (Do.FORGET_OFFER, Do.RELEASE)),
    (_P.RESTORING, _E.CLOSED): (_P.LISTENING, (Do.FORGET_OFFER, Do.RELEASE)),
    (_P.RESTORING, _E.GONE): (_P.LISTENING, (Do.FORGET_OFFER, Do.RELEASE)),
    # WITHDRAWN goes first: once the offer is forgotten, the state may change under a successor that still trusts it.
    (_P.RESTORING, _E.VIOLATION): (_P.WITHDRAWING, (Do.SEND_WITHDRAWN, Do.FORGET_OFFER)),
    (_P.RESTORING, _E.DEADLINE): (_P.WITHDRAWING, (Do.SEND_WITHDRAWN, Do.FORGET_OFFER)),
    (_P.RESTORING, _E.WITHDRAW): (_P.WITHDRAWING, (Do.SEND_WITHDRAWN, Do.FORGET_OFFER)),
    (_P.WITHDRAWING, _E.FAILED): (_P.LISTENING, (Do.RELEASE,)),
    (_P.WITHDRAWING, _E.CLOSED): (_P.LISTENING, (Do.RELEASE,)),
    (_P.WITHDRAWING, _E.GONE): (_P.LISTENING, (Do.RELEASE,)),
    # READY crossed WITHDRAWN on the way.
    **{(_P.WITHDRAWING, event): (_P.WITHDRAWING, ()) for event in (_E.READY, _E.VIOLATION, _E.WITHDRAW)},
    (_P.WITHDRAWING, _E.DEADLINE): (_P.WITHDRAWING, (Do.KILL_SUCCESSOR,)),
    (_P.FREEZING, _E.FROZEN): (_P.COMMITTED, (Do.SEND_COMMIT,)),
    (_P.FREEZING, _E.FREEZE_FAILED): (_P.WITHDRAWING, (Do.SEND_WITHDRAWN, Do.THAW)),
    # One call of the host: it is followed by COMMIT or WITHDRAWN, and a successor that failed meanwhile ends after it.
    **{(_P.FREEZING, event): (_P.FREEZING, ()) for event in (_E.FAILED, _E.CLOSED, _E.GONE, _E.VIOLATION)},
    (_P.COMMITTED, _E.TAKEN): (_P.DONE, (Do.FINISH,)),
    (_P.COMMITTED, _E.FAILED): (_P.ENDING, ()),
    (_P.COMMITTED, _E.CLOSED): (_P.ENDING, ()),
    (_P.COMMITTED, _E.VIOLATION): (_P.ENDING, ()),
    (_P.COMMITTED, _E.GONE): (_P.LISTENING, (Do.THAW, Do.RELEASE)),
    (_P.COMMITTED, _E.DEADLINE): (_P.KILLING, (Do.KILL_SUCCESSOR,)),
    # TAKEN from a process that failed: neither can be trusted.
    **{(_P.ENDING, event): (_P.ENDING, ()) for event in (_E.CLOSED, _E.FAILED, _E.TAKEN, _E.VIOLATION)},
    (_P.ENDING, _E.GONE): (_P.LISTENING, (Do.THAW, Do.RELEASE)),
    (_P.ENDING, _E.DEADLINE): (_P.KILLING, (Do.KILL_SUCCESSOR,)),
    # TAKEN is too late: the signal cannot be taken back.
    **{(_P.KILLING, event): (_P.KILLING, ()) for event in (_E.CLOSED, _E.FAILED, _E.TAKEN, _E.VIOLATION)},
    (_P.KILLING, _E.GONE): (_P.LISTENING, (Do.THAW, Do.RELEASE)),
    (_P.KILLING, _E.DEADLINE): (_P.KILLING, (Do.KILL_SUCCESSOR,)),
    # After TAKEN a dead successor is the supervisor's to restart.
    **{(_P.DONE, event): (_P.DONE, ()) for event in (_E.CLOSED, _E.GONE, _E.VIOLATION)},
}

SUCCESSOR_TABLE: Mapping[tuple[SuccessorState, Event], tuple[SuccessorState, tuple[Do, ...]]] = {
    (_S.CONNECTING, _E.CONNECTED): (_S.HELLO_SENT, (Do.SEND_HELLO,)),
    (_S.CONNECTING, _E.NO_LISTENER): (_S.ABSENT, ()),
    (_S.CONNECTING, _E.FAIL): (_S.FAILED, (Do.FAIL,)),
    (_S.HELLO_SENT, _E.OFFER): (_S.RESTORING, ()),
    (_S.HELLO_SENT, _E.BUSY): (_S.FAILED, (Do.FAIL,)),
    (_S.HELLO_SENT, _E.REFUSED): (_S.FAILED, (Do.FAIL,)),
    (_S.HELLO_SENT, _E.WITHDRAWN): (_S.FAILED, (Do.FAIL,)),  # not all of the descriptors could be sent
    (_S.HELLO_SENT, _E.CLOSED): (_S.CONNECTING, (Do.CONNECT,)),
    (_S.HELLO_SENT, _E.GONE): (_S.CONNECTING, (Do.CONNECT,)),
    (_S.HELLO_SENT, _E.EXHAUSTED): (_S.FAILED, (Do.FAIL,)),
    (_S.HELLO_SENT, _E.VIOLATION): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.HELLO_SENT, _E.DEADLINE): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.HELLO_SENT, _E.FAIL): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.RESTORING, _E.RESTORED): (_S.READY_SENT, (Do.SEND_READY,)),
    (_S.RESTORING, _E.WITHDRAWN): (_S.FAILED, (Do.FAIL,)),
    (_S.RESTORING, _E.GONE): (_S.INHERITING, ()),
    (_S.RESTORING, _E.CLOSED): (_S.RESTORING, ()),  # observed again, and acted on, after READY
    (_S.RESTORING, _E.VIOLATION): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.RESTORING, _E.FAIL): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.INHERITING, _E.RESTORED): (_S.OWNING, (Do.INHERIT,)),
    (_S.INHERITING, _E.GONE): (_S.INHERITING, ()),
    (_S.INHERITING, _E.VIOLATION): (_S.INHERITING, ()),  # not from the predecessor: all that it ever sent was read
    (_S.INHERITING, _E.FAIL): (_S.FAILED, (Do.FAIL,)),
    (_S.READY_SENT, _E.COMMIT): (_S.OWNING, (Do.OWN,)),
    (_S.READY_SENT, _E.GONE): (_S.OWNING, (Do.INHERIT,)),
    (_S.READY_SENT, _E.WITHDRAWN): (_S.FAILED, (Do.FAIL,)),
    (_S.READY_SENT, _E.CLOSED): (_S.LOST, ()),
    (_S.READY_SENT, _E.VIOLATION): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.READY_SENT, _E.DEADLINE): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.READY_SENT, _E.FAIL): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),
    (_S.LOST, _E.CLOSED): (_S.LOST, ()),
    (_S.LOST, _E.GONE): (_S.OWNING, (Do.INHERIT,)),
    (_S.LOST, _E.DEADLINE): (_S.FAILED, (Do.FAIL,)),
    (_S.LOST, _E.FAIL): (_S.FAILED, (Do.FAIL,)),
    # A predecessor that is heard after the end of its connection lives, and what it meant by the end is unknown.
    (_S.LOST, _E.WITHDRAWN): (_S.FAILED, (Do.FAIL,)),
    (_S.LOST, _E.VIOLATION): (_S.FAILED, (Do.FAIL,)),
    (_S.OWNING, _E.TAKE): (_S.TAKEN_SENT, (Do.SEND_TAKEN,)),
    (_S.OWNING, _E.FAIL): (_S.FAILED, (Do.SEND_FAILED, Do.FAIL)),  # the predecessor thaws when this process has ended
    **{(_S.OWNING, event): (_S.OWNING, ()) for event in (_E.CLOSED, _E.GONE, _E.VIOLATION)},
    (_S.TAKEN_SENT, _E.CLOSED): (_S.TAKEN_SENT, ()),
    (_S.TAKEN_SENT, _E.VIOLATION): (_S.TAKEN_SENT, ()),
    (_S.TAKEN_SENT, _E.GONE): (_S.DONE, (Do.DONE,)),
    # Safe: while this process lives, a predecessor that said COMMIT does not thaw.
    (_S.TAKEN_SENT, _E.DEADLINE): (_S.TAKEN_SENT, (Do.KILL_PREDECESSOR,)),
    **{(_S.DONE, event): (_S.DONE, ()) for event in (_E.CLOSED, _E.GONE, _E.VIOLATION)},
    (_S.FAILED, _E.CLOSED): (_S.FAILED, ()),
    (_S.FAILED, _E.GONE): (_S.FAILED, ()),
    (_S.FAILED, _E.FAIL): (_S.FAILED, ()),
    # This process never owns, and one side has told the other: what crossed on the way, even COMMIT, is void.
    **{(_S.FAILED, event): (_S.FAILED, ()) for event in (*_FROM_PEER, _E.VIOLATION)},
}

_TIMEOUTS: Mapping[PredecessorState | SuccessorState, Callable[[Timeouts], float]] = {
    _P.RESTORING: lambda timeouts: timeouts.restore,
    _P.WITHDRAWING: lambda timeouts: timeouts.withdrawn_exit,
    _P.COMMITTED: lambda timeouts: timeouts.taken,
    _P.ENDING: lambda timeouts: timeouts.exit_grace,
    _P.KILLING: lambda timeouts: timeouts.kill,
    _S.HELLO_SENT: lambda timeouts: timeouts.offer,
    _S.READY_SENT: lambda timeouts: timeouts.commit,
    _S.LOST: lambda timeouts: timeouts.death,
    _S.TAKEN_SENT: lambda timeouts: timeouts.predecessor_exit,
}

_PHASES: Mapping[SuccessorState, Phase] = {
    _S.CONNECTING: Phase.CONNECTING,
    _S.HELLO_SENT: Phase.AWAITING_OFFER,
    _S.RESTORING: Phase.RESTORING,
    _S.INHERITING: Phase.INHERITING,
    _S.READY_SENT: Phase.AWAITING_COMMIT,
    _S.LOST: Phase.AWAITING_DEATH,
    _S.OWNING: Phase.OWNING,
}

Observation = tuple[Event, str]  # a message as an event, and the reason that came with it or ""


class PredecessorMachine:
    """The side that serves. Its shell calls `hello`, `observe`, `withdraw`, `frozen` and `freeze_failed`."""

    def __init__(self, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.state = PredecessorState.LISTENING
        self._timeouts = timeouts
        self._deadline = Deadline()
        self._reason = ""  # the first failure: those that follow from it explain less

    @property
    def owns(self) -> bool:
        """Return whether this process is the one that reads and sends."""
        return self.state in {_P.LISTENING, _P.RESTORING, _P.WITHDRAWING}

    def is_engaged(self) -> bool:
        """Return whether there is a successor."""
        return self.state is not _P.LISTENING

    def next_deadline(self) -> float | None:
        """Return when `observe` is due although nothing happened, or None."""
        return self._deadline.at

    def sent(self, now: float) -> None:
        """Report that OFFER, COMMIT or WITHDRAWN has been sent: the wait for the answer begins now."""
        self._deadline.restart(now)

    def hello(self, now: float) -> tuple[Action, ...]:
        """Accept a HELLO, or return SEND_BUSY if there is a successor already."""
        if self.is_engaged():
            return (Action(Do.SEND_BUSY, f"another successor is being served ({self.state.name.lower()})"),)
        return self._step(Event.HELLO, now)

    def observe(self, seen: Iterable[Observation], *, closed: bool, gone: bool, now: float) -> tuple[Action, ...]:
        """Apply one observation of the successor: its messages in order, and whether connection and process ended."""
        seen = list(seen)
        if not self.is_engaged():
            return ()
        if gone:
            # Whatever a dead process was ready for or had taken, this one lives: only its reason still counts.
            seen = [(event, reason) for event, reason in seen if event is Event.FAILED]
        elif closed or any(event is Event.FAILED for event, _ in seen):
            seen = [(event, reason) for event, reason in seen if event is not Event.READY]
        else:
            # COMMIT answers READY: a successor that says more before it breaks the protocol, and must not own.
            hasty = (Event.VIOLATION, "the successor did not wait for the answer to READY")
            seen = [hasty if each[0] is Event.READY else each for each in seen[:-1]] + seen[-1:]
        actions: list[Action] = []
        for event, reason in seen:
            actions += self._step(event, now, reason)
            if not self.is_engaged():
                return tuple(actions)
        if gone:
            actions += self._step(Event.GONE, now)
        elif closed:
            actions += self._step(Event.CLOSED, now)
        if self._deadline.has_passed(now):
            actions += self._step(Event.DEADLINE, now)
        return tuple(actions)

    def withdraw(self, reason: str, now: float) -> tuple[Action, ...]:
        """Take the offer back; raises StateError unless an offer is open and COMMIT not sent."""
        return self._step(Event.WITHDRAW, now, reason)

    def frozen(self, now: float) -> tuple[Action, ...]:
        """Report that FREEZE was carried out: this process no longer owns."""
        return self._step(Event.FROZEN, now)

    def freeze_failed(self, reason: str, now: float) -> tuple[Action, ...]:
        """Report that FREEZE could not be carried out."""
        return self._step(Event.FREEZE_FAILED, now, reason)

    def _step(self, event: Event, now: float, reason: str = "") -> tuple[Action, ...]:
        """Pass one event through the table: the only place where the state changes."""
        before = self.state
        entry = PREDECESSOR_TABLE.get((before, event))
        if entry is None and event in _FROM_PEER:
            event, reason = Event.VIOLATION, f"the successor said {event.name} while {_words(before)}"
            entry = PREDECESSOR_TABLE.get((before, event))
        if entry is None:
            raise StateError(f"{event.name} has no transition from state {before.name} of a predecessor; this is a bug")
        self._reason = self._reason or reason or self._explain(event)
        self.state, to_do = entry
        actions = tuple(Action(do, self._reason) for do in to_do)
        if self.state is not before or event is Event.DEADLINE:
            timeout = _TIMEOUTS.get(self.state)
            self._deadline.start(None if timeout is None else timeout(self._timeouts), now)
        if self.state in {_P.LISTENING, _P.RESTORING}:
            self._reason = ""
        return actions

    def _explain(self, event: Event) -> str:
        where = _words(self.state)
        match event:
            case Event.CLOSED:
                return f"the successor closed the connection while {where}"
            case Event.GONE:
                return f"the successor ended while {where}"
            case Event.DEADLINE if self.state is _P.RESTORING:
                return f"the successor did not say READY within {self._timeouts.restore:g} s"
            case Event.DEADLINE if self.state is _P.COMMITTED:
                return f"the successor did not say TAKEN within {self._timeouts.taken:g} s of COMMIT, and was killed"
            case _:
                return ""


class SuccessorMachine:
    """The side that takes over. Its shell calls `observe`, and a method for each step of its own."""

    def __init__(self, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.state = SuccessorState.CONNECTING
        self.phase = Phase.CONNECTING  # the last step that was reached before a failure
        self.reason = ""
        self._timeouts = timeouts
        self._deadline = Deadline()
        self._attempts = 0

    @property
    def owns(self) -> bool:
        """Return whether this process is the one that reads and sends."""
        return self.state in {_S.OWNING, _S.TAKEN_SENT, _S.DONE}

    def next_deadline(self) -> float | None:
        """Return when `observe` is due although nothing happened, or None."""
        return self._deadline.at

    def sent(self, now: float) -> None:
        """Report that HELLO, READY or TAKEN has been sent: the wait for the answer begins now."""
        self._deadline.restart(now)

    def connected(self, now: float) -> tuple[Action, ...]:
        """Report that CONNECT reached a process."""
        self._attempts += 1
        return self._step(Event.CONNECTED, now)

    def no_listener(self, now: float) -> tuple[Action, ...]:
        """Report that no process listens."""
        return self._step(Event.NO_LISTENER, now)

    def restored(self, now: float) -> tuple[Action, ...]:
        """Report that the state is restored; raises StateError in any state but RESTORING or INHERITING."""
        return self._step(Event.RESTORED, now)

    def take(self, now: float) -> tuple[Action, ...]:
        """Report that the first iteration of the owner's loop is done; raises StateError unless this process owns."""
        return self._step(Event.TAKE, now)

    def fail(self, reason: str, now: float) -> tuple[Action, ...]:
        """Give up, before TAKEN; raises StateError afterwards."""
        return self._step(Event.FAIL, now, reason)

    def observe(self, seen: Sequence[Observation], *, closed: bool, gone: bool, now: float) -> tuple[Action, ...]:
        """Apply one observation of the predecessor: its messages in order, and whether connection and process ended."""
        actions: list[Action] = []
        if self.state in {_S.CONNECTING, _S.ABSENT}:
            return ()  # there is no predecessor to observe
        for event, reason in seen:
            actions += self._step(event, now, reason)
        if gone or closed:
            event = Event.GONE if gone else Event.CLOSED
            if self.state is _S.HELLO_SENT and self._attempts >= CONNECT_ATTEMPTS_MAX:
                event = Event.EXHAUSTED
            if (self.state, event) in SUCCESSOR_TABLE:  # else a message above ended it, or there was no CONNECTED
                actions += self._step(event, now)
        if self._deadline.has_passed(now):
            actions += self._step(Event.DEADLINE, now)
        return tuple(actions)

    def _step(self, event: Event, now: float, reason: str = "") -> tuple[Action, ...]:
        """Pass one event through the table: the only place where the state changes."""
        before = self.state
        entry = SUCCESSOR_TABLE.get((before, event))
        if entry is None and event in _FROM_PEER:
            event, reason = Event.VIOLATION, f"the predecessor said {event.name} while {_words(before)}"
            entry = SUCCESSOR_TABLE.get((before, event))
        if entry is None:
            raise StateError(f"{event.name} has no transition from state {before.name} of a successor; this is a bug")
        self.state, to_do = entry
        if self.state is _S.FAILED and before is not _S.FAILED:
            self.reason = reason or self._explain(event)
        elif self.state is not _S.FAILED:
            self.phase = _PHASES.get(self.state, self.phase)
        if self.state is not before or event is Event.DEADLINE:
            timeout = _TIMEOUTS.get(self.state)
            self._deadline.start(None if timeout is None else timeout(self._timeouts), now)
        return tuple(Action(do, self.reason) for do in to_do)

    def _explain(self, event: Event) -> str:
        match event, self.phase:
            case Event.EXHAUSTED, _:
                return f"the predecessor closed the connection before OFFER, {self._attempts} times"
            case Event.DEADLINE, Phase.AWAITING_OFFER:
                return f"the predecessor made no OFFER within {self._timeouts.offer:g} s: does it hang?"
            case Event.DEADLINE, Phase.AWAITING_COMMIT:
                return f"the predecessor did not COMMIT within {self._timeouts.commit:g} s: does it hang?"
            case Event.DEADLINE, Phase.AWAITING_DEATH:
                return "the predecessor closed the connection and lives: it still serves"
            case _:
                return f"{event.name.lower()} while {_words(self.state)}"


def _words(state: PredecessorState | SuccessorState) -> str:
    return state.name.lower().replace("_", " ")
