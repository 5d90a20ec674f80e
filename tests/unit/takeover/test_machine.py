"""The transitions of both sides of a takeover, and what must hold for the tables as a whole."""

from itertools import product

import pytest

from oxidize.errors import Phase, StateError
from oxidize.takeover.machine import (
    PREDECESSOR_TABLE,
    SUCCESSOR_TABLE,
    Action,
    Do,
    Event,
    Observation,
    PredecessorMachine,
    PredecessorState,
    SuccessorMachine,
    SuccessorState,
    Timeouts,
)
from oxidize.takeover.messages import CONNECT_ATTEMPTS_MAX

P, S, E = PredecessorState, SuccessorState, Event
READY, TAKEN = (E.READY, ""), (E.TAKEN, "")
FAILED: Observation = (E.FAILED, "no memory")
TIMES = Timeouts()


def names(actions: tuple[Action, ...]) -> list[str]:
    return [each.do.name for each in actions]


def predecessor(state: PredecessorState, now: float = 0.0) -> PredecessorMachine:
    """Return a machine that reached a state through its own transitions, at `now`."""
    machine = PredecessorMachine()
    if state is P.LISTENING:
        return machine
    assert names(machine.hello(now)) == ["SEND_OFFER"]
    if state is P.WITHDRAWING:
        machine.withdraw("enough", now)
    elif state is not P.RESTORING:
        assert names(machine.observe([READY], closed=False, gone=False, now=now)) == ["FREEZE"]
        if state is not P.FREEZING:
            assert names(machine.frozen(now)) == ["SEND_COMMIT"]
    if state is P.DONE:
        machine.observe([TAKEN], closed=False, gone=False, now=now)
    elif state is P.ENDING:
        machine.observe([], closed=True, gone=False, now=now)
    elif state is P.KILLING:
        machine.observe([], closed=False, gone=False, now=now + TIMES.taken)
    assert machine.state is state
    return machine


def successor(state: SuccessorState, now: float = 0.0) -> SuccessorMachine:
    machine = SuccessorMachine()
    if state is S.CONNECTING:
        return machine
    if state is S.ABSENT:
        machine.no_listener(now)
        return machine
    assert names(machine.connected(now)) == ["SEND_HELLO"]
    if state is S.FAILED:
        machine.fail("no", now)
    elif state is not S.HELLO_SENT:
        machine.observe([(E.OFFER, "")], closed=False, gone=False, now=now)
        if state is S.INHERITING:
            machine.observe([], closed=True, gone=True, now=now)
        elif state is not S.RESTORING:
            assert names(machine.restored(now)) == ["SEND_READY"]
    if state is S.LOST:
        machine.observe([], closed=True, gone=False, now=now)
    elif state in {S.OWNING, S.TAKEN_SENT, S.DONE}:
        assert names(machine.observe([(E.COMMIT, "")], closed=False, gone=False, now=now)) == ["OWN"]
        if state is not S.OWNING:
            assert names(machine.take(now)) == ["SEND_TAKEN"]
        if state is S.DONE:
            machine.observe([], closed=True, gone=True, now=now)
    assert machine.state is state
    return machine


@pytest.mark.parametrize("state", P)
def test_every_predecessor_state_can_be_reached(state: PredecessorState) -> None:
    assert predecessor(state).owns is (state in {P.LISTENING, P.RESTORING, P.WITHDRAWING})


@pytest.mark.parametrize("state", S)
def test_every_successor_state_can_be_reached(state: SuccessorState) -> None:
    assert successor(state).owns is (state in {S.OWNING, S.TAKEN_SENT, S.DONE})


@pytest.mark.parametrize(
    ("state", "seen", "closed", "gone", "after", "actions"),
    [
        (P.LISTENING, [], False, False, P.LISTENING, []),
        (P.RESTORING, [READY], False, False, P.FREEZING, ["FREEZE"]),
        (P.RESTORING, [FAILED], False, False, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.RESTORING, [FAILED], True, False, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.RESTORING, [], True, False, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.RESTORING, [], True, True, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.RESTORING, [TAKEN], False, False, P.WITHDRAWING, ["SEND_WITHDRAWN", "FORGET_OFFER"]),
        (P.RESTORING, [(E.HELLO, "")], False, False, P.WITHDRAWING, ["SEND_WITHDRAWN", "FORGET_OFFER"]),
        (P.RESTORING, [(E.VIOLATION, "noise")], False, False, P.WITHDRAWING, ["SEND_WITHDRAWN", "FORGET_OFFER"]),
        # Ready, but the same observation shows the end: a freeze would be for nothing.
        (P.RESTORING, [READY, FAILED], False, False, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.RESTORING, [READY], True, False, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.RESTORING, [READY], False, True, P.LISTENING, ["FORGET_OFFER", "RELEASE"]),
        (P.WITHDRAWING, [READY], False, False, P.WITHDRAWING, []),
        (P.WITHDRAWING, [FAILED], True, False, P.LISTENING, ["RELEASE"]),
        (P.WITHDRAWING, [], True, False, P.LISTENING, ["RELEASE"]),
        (P.WITHDRAWING, [], False, True, P.LISTENING, ["RELEASE"]),
        (P.COMMITTED, [TAKEN], False, False, P.DONE, ["FINISH"]),
        (P.COMMITTED, [TAKEN], True, False, P.DONE, ["FINISH"]),
        (P.COMMITTED, [TAKEN], True, True, P.LISTENING, ["THAW", "RELEASE"]),
        (P.COMMITTED, [FAILED], False, False, P.ENDING, []),
        (P.COMMITTED, [], True, False, P.ENDING, []),
        (P.COMMITTED, [READY], False, False, P.ENDING, []),
        (P.COMMITTED, [], True, True, P.LISTENING, ["THAW", "RELEASE"]),
        (P.ENDING, [TAKEN], True, False, P.ENDING, []),
        (P.ENDING, [], True, True, P.LISTENING, ["THAW", "RELEASE"]),
        (P.KILLING, [TAKEN], False, False, P.KILLING, []),
        (P.KILLING, [TAKEN], True, False, P.KILLING, []),
        (P.KILLING, [TAKEN], True, True, P.LISTENING, ["THAW", "RELEASE"]),
        (P.DONE, [], True, True, P.DONE, []),
        (P.DONE, [FAILED], True, True, P.DONE, []),
    ],
)
def test_a_predecessor_acts_on_an_observation(
    state: PredecessorState,
    seen: list[Observation],
    closed: bool,
    gone: bool,
    after: PredecessorState,
    actions: list[str],
) -> None:
    machine = predecessor(state)
    assert names(machine.observe(seen, closed=closed, gone=gone, now=0.1)) == actions
    assert machine.state is after


@pytest.mark.parametrize(
    ("state", "wait", "after", "actions"),
    [
        (P.RESTORING, TIMES.restore, P.WITHDRAWING, ["SEND_WITHDRAWN", "FORGET_OFFER"]),
        (P.WITHDRAWING, TIMES.withdrawn_exit, P.WITHDRAWING, ["KILL_SUCCESSOR"]),
        (P.COMMITTED, TIMES.taken, P.KILLING, ["KILL_SUCCESSOR"]),
        (P.ENDING, TIMES.exit_grace, P.KILLING, ["KILL_SUCCESSOR"]),
    ],
)
def test_every_wait_of_a_predecessor_ends(
    state: PredecessorState, wait: float, after: PredecessorState, actions: list[str]
) -> None:
    machine = predecessor(state, now=100.0)
    assert machine.next_deadline() == 100.0 + wait
    assert machine.observe([], closed=False, gone=False, now=100.0 + wait - 0.001) == ()
    assert names(machine.observe([], closed=False, gone=False, now=100.0 + wait)) == actions
    assert machine.state is after
    deadline = machine.next_deadline()
    assert deadline is not None
    assert deadline > 100.0 + wait


def test_sigkill_is_repeated_until_the_successor_is_dead() -> None:
    machine = predecessor(P.KILLING)
    for _ in range(3):
        deadline = machine.next_deadline()
        assert deadline is not None
        assert names(machine.observe([], closed=False, gone=False, now=deadline)) == ["KILL_SUCCESSOR"]


@pytest.mark.parametrize("state", [P.LISTENING, P.DONE])
def test_a_predecessor_at_rest_has_no_deadline(state: PredecessorState) -> None:
    assert predecessor(state).next_deadline() is None


def test_taken_counts_before_a_deadline_that_passed_while_the_predecessor_itself_was_stopped() -> None:
    machine = predecessor(P.COMMITTED)
    assert names(machine.observe([TAKEN], closed=False, gone=False, now=900.0)) == ["FINISH"]


def test_ready_counts_before_a_deadline_that_has_passed() -> None:
    machine = predecessor(P.RESTORING)
    assert names(machine.observe([READY], closed=False, gone=False, now=900.0)) == ["FREEZE"]


def test_a_failed_freeze_withdraws_before_it_thaws() -> None:
    machine = predecessor(P.FREEZING)
    actions = machine.freeze_failed("disk on fire", 1.0)
    assert actions == (Action(Do.SEND_WITHDRAWN, "disk on fire"), Action(Do.THAW, "disk on fire"))
    assert machine.owns


@pytest.mark.parametrize("state", [each for each in P if each is not P.LISTENING])
def test_a_rival_is_answered_busy_and_changes_nothing(state: PredecessorState) -> None:
    machine = predecessor(state)
    deadline = machine.next_deadline()
    assert names(machine.hello(1.0)) == ["SEND_BUSY"]
    assert (machine.state, machine.next_deadline()) == (state, deadline)


def test_the_first_reason_of_a_failure_is_reported() -> None:
    machine = predecessor(P.COMMITTED)
    machine.observe([FAILED], closed=True, gone=False, now=0.1)
    actions = machine.observe([], closed=True, gone=True, now=0.2)
    assert actions[0] == Action(Do.THAW, "no memory")
    machine.hello(1.0)
    assert machine.observe([], closed=True, gone=False, now=1.1)[0].reason != "no memory"


def test_the_reason_of_a_dead_successor_is_reported() -> None:
    machine = predecessor(P.COMMITTED)
    assert machine.observe([FAILED], closed=True, gone=True, now=0.1)[0] == Action(Do.THAW, "no memory")


@pytest.mark.parametrize("state", [P.LISTENING, P.COMMITTED, P.ENDING, P.KILLING, P.DONE])
def test_an_offer_cannot_be_withdrawn_after_commit(state: PredecessorState) -> None:
    with pytest.raises(StateError, match="WITHDRAW"):
        predecessor(state).withdraw("stop", 0.0)


@pytest.mark.parametrize(
    ("state", "seen", "closed", "gone", "after", "actions"),
    [
        (S.HELLO_SENT, [(E.OFFER, "")], False, False, S.RESTORING, []),
        (S.HELLO_SENT, [(E.BUSY, "b")], True, False, S.FAILED, ["FAIL"]),
        (S.HELLO_SENT, [(E.REFUSED, "r")], True, False, S.FAILED, ["FAIL"]),
        (S.HELLO_SENT, [(E.WITHDRAWN, "w")], False, False, S.FAILED, ["FAIL"]),
        (S.HELLO_SENT, [(E.COMMIT, "")], False, False, S.FAILED, ["SEND_FAILED", "FAIL"]),
        (S.HELLO_SENT, [], True, False, S.CONNECTING, ["CONNECT"]),
        (S.HELLO_SENT, [], True, True, S.CONNECTING, ["CONNECT"]),
        (S.HELLO_SENT, [(E.OFFER, "")], True, True, S.INHERITING, []),
        (S.HELLO_SENT, [(E.OFFER, ""), (E.WITHDRAWN, "w")], True, True, S.FAILED, ["FAIL"]),
        (S.RESTORING, [], True, False, S.RESTORING, []),
        (S.RESTORING, [], True, True, S.INHERITING, []),
        (S.RESTORING, [(E.WITHDRAWN, "w")], True, True, S.FAILED, ["FAIL"]),
        (S.RESTORING, [(E.COMMIT, "")], False, False, S.FAILED, ["SEND_FAILED", "FAIL"]),
        (S.INHERITING, [], True, True, S.INHERITING, []),
        (S.READY_SENT, [(E.COMMIT, "")], False, False, S.OWNING, ["OWN"]),
        (S.READY_SENT, [(E.COMMIT, "")], True, True, S.OWNING, ["OWN"]),
        (S.READY_SENT, [], True, True, S.OWNING, ["INHERIT"]),
        (S.READY_SENT, [], True, False, S.LOST, []),
        (S.READY_SENT, [(E.WITHDRAWN, "w")], True, True, S.FAILED, ["FAIL"]),
        (S.READY_SENT, [(E.VIOLATION, "v")], False, False, S.FAILED, ["SEND_FAILED", "FAIL"]),
        (S.LOST, [], True, False, S.LOST, []),
        (S.LOST, [], True, True, S.OWNING, ["INHERIT"]),
        (S.OWNING, [], True, True, S.OWNING, []),
        (S.TAKEN_SENT, [], True, False, S.TAKEN_SENT, []),
        (S.TAKEN_SENT, [], True, True, S.DONE, ["DONE"]),
        (S.FAILED, [(E.COMMIT, "")], True, True, S.FAILED, []),
    ],
)
def test_a_successor_acts_on_an_observation(
    state: SuccessorState,
    seen: list[Observation],
    closed: bool,
    gone: bool,
    after: SuccessorState,
    actions: list[str],
) -> None:
    machine = successor(state)
    assert names(machine.observe(seen, closed=closed, gone=gone, now=0.1)) == actions
    assert machine.state is after


@pytest.mark.parametrize(
    ("state", "wait", "after", "actions", "reason"),
    [
        (S.HELLO_SENT, TIMES.offer, S.FAILED, ["SEND_FAILED", "FAIL"], "no OFFER"),
        (S.READY_SENT, TIMES.commit, S.FAILED, ["SEND_FAILED", "FAIL"], "not COMMIT"),
        (S.LOST, TIMES.death, S.FAILED, ["FAIL"], "still serves"),
        (S.TAKEN_SENT, TIMES.predecessor_exit, S.TAKEN_SENT, ["KILL_PREDECESSOR"], ""),
    ],
)
def test_every_wait_of_a_successor_ends(
    state: SuccessorState, wait: float, after: SuccessorState, actions: list[str], reason: str
) -> None:
    machine = successor(state, now=100.0)
    assert machine.next_deadline() == 100.0 + wait
    assert machine.observe([], closed=False, gone=False, now=100.0 + wait - 0.001) == ()
    assert names(machine.observe([], closed=False, gone=False, now=100.0 + wait)) == actions
    assert machine.state is after
    assert reason in machine.reason


def test_commit_counts_before_a_deadline_that_passed_while_the_successor_itself_was_stopped() -> None:
    machine = successor(S.READY_SENT)
    assert names(machine.observe([(E.COMMIT, "")], closed=False, gone=False, now=900.0)) == ["OWN"]


def test_a_successor_reconnects_a_few_times_before_the_offer() -> None:
    machine = SuccessorMachine()
    for _ in range(CONNECT_ATTEMPTS_MAX - 1):
        machine.connected(0.0)
        assert names(machine.observe([], closed=True, gone=False, now=0.0)) == ["CONNECT"]
    machine.connected(0.0)
    assert names(machine.observe([], closed=True, gone=False, now=0.0)) == ["FAIL"]
    assert str(CONNECT_ATTEMPTS_MAX) in machine.reason


def test_a_successor_that_inherits_owns_once_it_has_restored() -> None:
    machine = successor(S.INHERITING)
    assert not machine.owns
    assert names(machine.restored(1.0)) == ["INHERIT"]
    assert machine.owns


def test_a_failure_of_a_successor_names_the_step_and_the_reason() -> None:
    machine = successor(S.READY_SENT)
    machine.observe([(E.WITHDRAWN, "the server is stopping")], closed=True, gone=False, now=1.0)
    assert (machine.phase, machine.reason) == (Phase.AWAITING_COMMIT, "the server is stopping")


@pytest.mark.parametrize("state", [S.RESTORING, S.READY_SENT, S.OWNING])
def test_a_successor_that_gives_up_says_so_and_never_owns(state: SuccessorState) -> None:
    machine = successor(state)
    assert machine.fail("no memory", 1.0) == (Action(Do.SEND_FAILED, "no memory"), Action(Do.FAIL, "no memory"))
    assert not machine.owns
    assert machine.fail("again", 1.0) == ()


@pytest.mark.parametrize("state", [S.TAKEN_SENT, S.DONE, S.ABSENT])
def test_a_successor_cannot_give_up_after_taken(state: SuccessorState) -> None:
    with pytest.raises(StateError, match="FAIL"):
        successor(state).fail("too late", 1.0)


def test_a_call_in_the_wrong_state_is_a_state_error() -> None:
    with pytest.raises(StateError, match="RESTORED"):
        SuccessorMachine().restored(0.0)
    with pytest.raises(StateError, match="TAKE"):
        successor(S.RESTORING).take(0.0)
    with pytest.raises(StateError, match="FROZEN"):
        predecessor(P.RESTORING).frozen(0.0)


# --- The tables as a whole ---


def owning(state: PredecessorState | SuccessorState) -> bool:
    return state in {P.LISTENING, P.RESTORING, P.WITHDRAWING, S.OWNING, S.TAKEN_SENT, S.DONE}


def test_a_predecessor_owns_again_only_after_a_certain_death_or_a_failed_freeze() -> None:
    back = {
        (before, event) for (before, event), (after, _) in PREDECESSOR_TABLE.items() if owning(after) > owning(before)
    }
    assert {event for _, event in back} == {E.GONE, E.FREEZE_FAILED}
    assert back == {key for key, (_, to_do) in PREDECESSOR_TABLE.items() if Do.THAW in to_do}


def test_a_successor_owns_only_by_commit_or_a_certain_death() -> None:
    own = {(before, event) for (before, event), (after, _) in SUCCESSOR_TABLE.items() if owning(after) > owning(before)}
    assert own == {
        (S.READY_SENT, E.COMMIT),
        (S.READY_SENT, E.GONE),
        (S.LOST, E.GONE),
        (S.INHERITING, E.RESTORED),
    }
    assert own == {key for key, (_, to_do) in SUCCESSOR_TABLE.items() if {Do.OWN, Do.INHERIT} & set(to_do)}


def test_an_offer_is_withdrawn_before_it_is_forgotten() -> None:
    for (_, event), (_, to_do) in PREDECESSOR_TABLE.items():
        if Do.FORGET_OFFER in to_do and event not in {E.FAILED, E.CLOSED, E.GONE}:
            assert to_do.index(Do.SEND_WITHDRAWN) < to_do.index(Do.FORGET_OFFER)


PEER_EVENTS = (E.HELLO, E.OFFER, E.BUSY, E.REFUSED, E.WITHDRAWN, E.READY, E.FAILED, E.COMMIT, E.TAKEN, E.VIOLATION)


FLAGS = ((False, False), (True, False), (True, True), (False, True))  # closed, gone
SEQUENCES = [each for length in range(4) for each in product(PEER_EVENTS, repeat=length)]


def looks_of(sequence: tuple[Event, ...], separate: bool) -> list[list[Observation]]:
    """Return the messages as one look, or as a look each."""
    said: list[Observation] = [(event, "r") for event in sequence]
    return [[each] for each in said] if separate and said else [said]


@pytest.mark.parametrize("state", P)
@pytest.mark.parametrize("separate", [False, True])
def test_whatever_a_successor_sends_the_predecessor_answers_it(state: PredecessorState, separate: bool) -> None:
    for sequence, (closed, gone) in product(SEQUENCES, FLAGS):
        machine = predecessor(state)
        looks = looks_of(sequence, separate)
        for number, seen in enumerate(looks, 1):
            is_last = number == len(looks)
            owned, was_done = machine.owns, machine.state is P.DONE
            done = names(machine.observe(seen, closed=closed and is_last, gone=gone and is_last, now=0.1))
            assert owned or not machine.owns or (gone and is_last), (state, sequence)
            assert machine.state is P.DONE or not was_done
            if "FREEZE" in done:
                assert done == ["FREEZE"]  # the shell freezes in the middle of its actions: none may follow
                assert seen == [READY] or seen == [(E.READY, "r")]
                assert names(machine.frozen(0.1)) == ["SEND_COMMIT"]


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("separate", [False, True])
def test_whatever_a_predecessor_sends_the_successor_answers_it(state: SuccessorState, separate: bool) -> None:
    for sequence, (closed, gone) in product(SEQUENCES, FLAGS):
        machine = successor(state)
        looks = looks_of(sequence, separate)
        for number, seen in enumerate(looks, 1):
            is_last = number == len(looks)
            owned, failed = machine.owns, machine.state is S.FAILED
            machine.observe(seen, closed=closed and is_last, gone=gone and is_last, now=0.1)
            assert machine.owns or not owned, (state, sequence)
            assert not (failed and machine.owns)
            if machine.owns and not owned:
                assert E.COMMIT in sequence or gone
        if E.WITHDRAWN in sequence and not owning(state):
            commit_before = E.COMMIT in sequence[: sequence.index(E.WITHDRAWN)]
            assert not machine.owns or commit_before, (state, sequence)


@pytest.mark.parametrize("more", [[READY], [TAKEN], [(E.VIOLATION, "noise")], [(E.HELLO, "")]])
def test_ready_and_more_in_one_look_withdraws_the_offer(more: list[Observation]) -> None:
    machine = predecessor(P.RESTORING)
    actions = machine.observe([READY, *more], closed=False, gone=False, now=0.1)
    assert names(actions) == ["SEND_WITHDRAWN", "FORGET_OFFER"]
    assert "did not wait for the answer" in actions[0].reason
    assert machine.owns


def test_what_a_successor_sends_during_the_freeze_is_told_at_the_thaw() -> None:
    machine = predecessor(P.FREEZING)
    assert machine.observe([FAILED], closed=False, gone=False, now=0.1) == ()
    assert names(machine.frozen(0.2)) == ["SEND_COMMIT"]
    assert machine.observe([], closed=True, gone=True, now=0.3)[0] == Action(Do.THAW, "no memory")


@pytest.mark.parametrize("said", [E.WITHDRAWN, E.COMMIT, E.READY])
def test_a_predecessor_that_is_heard_after_the_end_of_its_connection_is_not_inherited_from(said: Event) -> None:
    machine = successor(S.LOST)
    machine.observe([(said, "still here")], closed=True, gone=True, now=0.1)
    assert not machine.owns
    assert machine.state is S.FAILED


# --- A pause of this process is not the silence of the other one ---


def test_the_wait_for_taken_begins_when_commit_has_been_sent() -> None:
    machine = predecessor(P.COMMITTED, now=100.0)
    machine.sent(103.0)  # stopped for 3 s between the freeze and the message
    assert machine.next_deadline() == 103.0 + TIMES.taken
    assert machine.observe([], closed=False, gone=False, now=100.0 + TIMES.taken) == ()


def test_the_wait_for_commit_begins_when_ready_has_been_sent() -> None:
    machine = successor(S.READY_SENT, now=100.0)
    machine.sent(103.0)
    assert machine.next_deadline() == 103.0 + TIMES.commit


def test_sent_begins_no_wait_where_there_is_none() -> None:
    resting, alone = predecessor(P.DONE), successor(S.OWNING)
    resting.sent(1.0)
    alone.sent(1.0)
    assert resting.next_deadline() is alone.next_deadline() is None


WAITING = [P.RESTORING, P.WITHDRAWING, P.COMMITTED, P.ENDING, P.KILLING]


@pytest.mark.parametrize("state", WAITING)
def test_a_predecessor_that_was_itself_suspended_gives_the_successor_its_time_once_more(
    state: PredecessorState,
) -> None:
    machine = predecessor(state)
    assert machine.observe([], closed=False, gone=False, now=3_600.0) == ()
    assert machine.state is state
    deadline = machine.next_deadline()
    assert deadline is not None
    assert deadline > 3_600.0
    assert names(machine.observe([], closed=False, gone=False, now=deadline + 100.0))  # but no third time


def test_a_takeover_survives_a_suspension_after_commit() -> None:
    machine = predecessor(P.COMMITTED)
    assert machine.observe([], closed=False, gone=False, now=3_600.0) == ()
    assert names(machine.observe([TAKEN], closed=False, gone=False, now=3_600.1)) == ["FINISH"]


def test_a_predecessor_about_to_exit_survives_a_suspension_after_taken() -> None:
    machine = successor(S.TAKEN_SENT)
    assert machine.observe([], closed=False, gone=False, now=3_600.0) == ()
    assert names(machine.observe([], closed=True, gone=True, now=3_600.1)) == ["DONE"]


def test_a_successor_survives_a_suspension_while_it_waits_for_commit() -> None:
    machine = successor(S.READY_SENT)
    assert machine.observe([], closed=False, gone=False, now=3_600.0) == ()
    assert names(machine.observe([(E.COMMIT, "")], closed=False, gone=False, now=3_600.1)) == ["OWN"]
