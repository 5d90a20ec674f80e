"""Whole takeovers between real processes: with SIGKILL, SIGSTOP and rivals at every step."""

import os
import signal
from pathlib import Path

import pytest

from oxidize.errors import StateError, TakeoverError
from oxidize.takeover import Listener, NamedFd, Successor, query
from oxidize.takeover.channel import Channel, connect
from oxidize.takeover.messages import Busy, Hello, Message, Refused, Taken
from tests.support.takeover_peer import NORMAL, WAIT_SECS, Stand, clock

# So short that a stopped process is given up at once; no test with them waits for a process that works.
HASTY = NORMAL._replace(restore=0.3, taken=0.3, kill=0.3, exit_grace=0.3, withdrawn_exit=0.3, commit=0.3, death=0.3)


def hello() -> Hello:
    return Hello("test", os.getpid(), (1,))


def test_a_successor_takes_over(stand: Stand) -> None:
    predecessor = stand.serve()
    peer = stand.start("successor")
    assert stand.wait_for("finish") == {"blackout_ms": 1.5}
    assert stand.host.called == ["offer", "freeze", "finish"]
    assert dict(stand.host.calls)["freeze"] == {"sessions": 3}
    network, time = (str(Path("/proc/self/ns", kind).readlink()) for kind in ("net", "time"))  # a child's, too
    hello = Hello("new", peer.pid, (1,), network_namespace=network, time_namespace=time)
    assert dict(stand.host.calls)["offer"] == hello
    assert not predecessor.owns
    assert f"by {os.getpid()}" in peer.wait_for("offer of generation 7")
    assert '{"journal_bytes": 4096}' in peer.wait_for("owns")
    assert os.read(stand.reading, 10) == b"S"
    assert stand.path.exists()  # the successor's by now


def test_a_predecessor_exits_after_a_takeover(stand: Stand) -> None:
    old = stand.start("predecessor")
    old.wait_for("serving")
    new = stand.start("successor")
    new.wait_for("alone")
    assert (old.wait(), new.wait()) == (0, 0)
    assert not stand.path.exists()


def test_a_successor_without_a_predecessor_starts_alone(stand: Stand) -> None:
    peer = stand.start("successor")
    peer.wait_for("no listener")
    assert peer.wait() == 0


# --- A freeze that is postponed ---


def test_a_predecessor_serves_until_it_may_freeze(stand: Stand) -> None:
    stand.host.answers_not_yet = 3
    predecessor = stand.serve()
    peer = stand.start("successor")
    stand.wait_for("finish")
    assert stand.host.asked_to_freeze == 4
    assert stand.host.called == ["offer", "freeze", "finish"]
    assert dict(stand.host.calls)["freeze"] == {"sessions": 3}
    assert not predecessor.owns
    peer.wait_for("owns")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_successor_that_dies_while_the_freeze_is_postponed_leaves_the_predecessor_serving(
    stand: Stand, number: signal.Signals
) -> None:
    stand.host.answers_not_yet = 1_000_000
    predecessor = stand.serve()
    peer = stand.start("successor")
    stand.run_until(lambda: stand.host.asked_to_freeze > 2)
    os.kill(peer.pid, number)
    assert "while restoring" in str(stand.wait_for("offer_withdrawn"))
    assert stand.host.called == ["offer", "offer_withdrawn"]
    assert predecessor.owns
    stand.host.answers_not_yet = 0
    stand.start("successor")
    stand.wait_for("finish")


def test_a_freeze_is_not_postponed_beyond_the_deadline_of_ready(stand: Stand) -> None:
    stand.host.answers_not_yet = 1_000_000
    stand.serve(HASTY)
    stand.start("successor")
    stand.wait_for("finish")
    assert stand.host.called == ["offer", "freeze", "finish"]


# --- The successor goes wrong ---


@pytest.mark.parametrize("how", ["crash", "hang", "fail"])
def test_a_successor_that_fails_before_ready_leaves_the_predecessor_serving(stand: Stand, how: str) -> None:
    predecessor = stand.serve(HASTY if how == "hang" else NORMAL)
    peer = stand.start("successor", "restoring", how)
    reason = stand.wait_for("offer_withdrawn")
    assert predecessor.owns
    assert stand.host.called == ["offer", "offer_withdrawn"]
    expected = {"crash": "while restoring", "hang": "READY within 0.3 s", "fail": "failed at restoring"}
    assert expected[how] in str(reason)
    stand.run_until(lambda: predecessor.state == "listening")
    assert peer.wait() == (1 if how == "fail" else -signal.SIGKILL)
    if how != "hang":  # the next one works, and would need more time than that on a loaded machine
        stand.start("successor")
        stand.wait_for("finish")


@pytest.mark.parametrize("stop_at", ["owning", "listening"])
@pytest.mark.parametrize("how", ["crash", "hang", "fail"])
def test_a_successor_that_fails_after_commit_lets_the_predecessor_thaw(stand: Stand, stop_at: str, how: str) -> None:
    predecessor = stand.serve(NORMAL._replace(taken=0.3) if how == "hang" else NORMAL)
    peer = stand.start("successor", stop_at, how)
    reason = str(stand.wait_for("thaw"))
    assert peer.process.wait(0) == (1 if how == "fail" else -signal.SIGKILL)  # certainly dead before the thaw
    assert {"crash": "while committed", "hang": "TAKEN within", "fail": f"failed at {stop_at}"}[how] in reason
    assert stand.host.called == ["offer", "freeze", "thaw"]
    assert predecessor.owns
    # The path leads here again, also where the successor had taken it already.
    asking = stand.ask("status")
    stand.run_until(asking.has_ended)
    asking.wait_for('"serves": true')
    if how != "hang":
        stand.start("successor")
        assert stand.wait_for("finish") == {"blackout_ms": 1.5}


def test_a_successor_that_ends_right_after_taken_leaves_one_owner_at_most(stand: Stand) -> None:
    stand.serve()
    stand.start("successor", "taken", "crash")
    stand.run_until(
        lambda: stand.host.called[2:] in (["finish"], ["thaw"])
    )  # thaw: its death was observed together with TAKEN
    assert stand.host.serves is ("thaw" in stand.host.called)


def test_an_unexpected_message_instead_of_ready_ends_the_takeover(stand: Stand) -> None:
    predecessor = stand.serve()
    channel, _ = stand.converse(hello())
    channel.send(Taken({}))
    assert "TAKEN" in str(stand.wait_for("offer_withdrawn"))
    assert predecessor.state == "withdrawing"
    channel.close()
    stand.run_until(lambda: predecessor.state == "listening")
    assert stand.host.called == ["offer", "offer_withdrawn"]


# --- The predecessor goes wrong ---


def test_a_successor_owns_if_its_predecessor_dies_during_the_restore(stand: Stand) -> None:
    old = stand.start("predecessor")
    old.wait_for("serving")
    with Successor(stand.path, release="new", snapshot_versions=[1], clock=clock) as successor:
        offer = successor.connect()
        assert offer is not None
        assert successor.check()
        old.end()
        assert not successor.check()
        commit = successor.ready({})
        assert commit.predecessor_died
        assert successor.owns
        successor.taken({})
        assert successor.has_predecessor_ended()
        assert not os.get_inheritable(offer.find("out").fd)
        os.close(offer.find("out").fd)


@pytest.mark.parametrize("stop_at", ["freeze", "committed"])
def test_a_successor_owns_if_its_predecessor_dies_at_the_hand_off(stand: Stand, stop_at: str) -> None:
    old = stand.start("predecessor", stop_at, "crash")
    old.wait_for("serving")
    new = stand.start("successor")
    assert ("by death" in new.wait_for("owns")) is (stop_at == "freeze")
    new.wait_for("alone")
    assert (old.wait(), new.wait()) == (-signal.SIGKILL, 0)


def test_a_predecessor_that_hangs_before_the_offer_is_an_error(stand: Stand) -> None:
    old = stand.start("predecessor", "offer", "hang")
    old.wait_for("serving")
    new = stand.start("successor", timeouts=NORMAL._replace(offer=0.3))
    assert "failed while waiting for the offer: the predecessor made no OFFER" in new.wait_for("no:")
    assert new.wait() == 1


def test_a_predecessor_that_hangs_in_its_freeze_serves_again_when_it_wakes(stand: Stand) -> None:
    old = stand.start("predecessor", "freeze", "hang")
    old.wait_for("serving")
    new = stand.start("successor", timeouts=HASTY)
    assert "failed while waiting for the commit: the predecessor did not COMMIT" in new.wait_for("no:")
    assert new.wait() == 1
    old.wake()
    old.wait_for("thaw")
    assert query(stand.path, "status") == b'{"serves": true}'


def test_a_predecessor_that_hangs_after_commit_is_killed(stand: Stand) -> None:
    old = stand.start("predecessor", "committed", "hang")
    old.wait_for("serving")
    with Successor(
        stand.path,
        release="new",
        snapshot_versions=[1],
        clock=clock,
        timeouts=NORMAL._replace(predecessor_exit=0.0),
    ) as successor:
        offer = successor.connect()
        assert offer is not None
        assert successor.ready({}).info == {"journal_bytes": 4096}
        old.wait_for("hang at committed")
        successor.taken({})
        successor.has_predecessor_ended()
        assert old.wait() == -signal.SIGKILL
        assert successor.has_predecessor_ended()
        os.close(offer.find("out").fd)


def test_a_freeze_that_fails_leaves_the_predecessor_serving(stand: Stand) -> None:
    predecessor = stand.serve()
    stand.host.commit = {"no message can hold": object()}
    peer = stand.start("successor")
    assert "object" in str(stand.wait_for("thaw"))
    assert stand.host.called == ["offer", "freeze", "thaw"]
    assert "the freeze failed" in peer.wait_for("no:")
    assert peer.wait() == 1
    stand.run_until(lambda: predecessor.state == "listening")


def test_an_offer_that_fails_leaves_the_predecessor_serving(stand: Stand) -> None:
    predecessor = stand.serve()
    stand.host.refuses = "the journal is full"
    peer = stand.start("successor")
    stand.wait_for("offer")
    stand.run_until(peer.has_ended)
    assert "the journal is full" in peer.wait_for("no:")
    assert stand.host.called == ["offer"]
    assert predecessor.state == "listening"


@pytest.mark.parametrize(
    ("fds", "state", "says"),
    [
        ((), {"x": object()}, "object"),
        ((NamedFd("out", 0, "pipe"),), {}, "two descriptors of one name"),
        (tuple(NamedFd(f"{n}", 0, "pipe") for n in range(600)), {}, "601 descriptors"),
    ],
)
def test_an_offer_that_fits_no_message_is_refused(
    stand: Stand, fds: tuple[NamedFd, ...], state: dict[str, object], says: str
) -> None:
    predecessor = stand.serve()
    stand.host.more_fds, stand.host.state = fds, state
    channel, answer = stand.converse(hello())
    assert isinstance(answer, Refused)
    assert says in answer.reason
    assert stand.host.called == ["offer", "offer_withdrawn"]
    assert predecessor.state == "listening"
    channel.close()


def test_an_offer_of_a_closed_descriptor_is_withdrawn(stand: Stand) -> None:
    predecessor = stand.serve()
    stand.host.more_fds = (NamedFd("closed", 1 << 20, "pipe"),)
    peer = stand.start("successor")
    assert "Bad file descriptor" in str(stand.wait_for("offer_withdrawn"))
    assert "Bad file descriptor" in peer.wait_for("no:")
    stand.run_until(lambda: predecessor.state == "listening")


def test_an_offer_may_have_more_descriptors_than_one_message_carries(stand: Stand) -> None:
    stand.serve()
    stand.host.more_fds = tuple(NamedFd(f"fd-{n}", stand.reading, "pipe") for n in range(300))
    stand.start("successor")
    stand.wait_for("finish")
    assert os.read(stand.reading, 10) == b"S"


def test_a_host_that_stops_withdraws_its_offer(stand: Stand) -> None:
    predecessor = stand.serve()
    peer = stand.start("successor", "restoring", "hang")
    stand.wait_for("offer")
    peer.wait_for("hang")
    predecessor.close()
    assert stand.host.called == ["offer", "offer_withdrawn"]
    assert not stand.path.exists()
    peer.wake()
    assert "the server is stopping" in peer.wait_for("no:")


# --- Rivals, strangers, questions ---


def test_a_rival_is_answered_busy_at_every_step(stand: Stand) -> None:
    predecessor = stand.serve()
    first, _ = stand.converse(hello())
    rival, answer = stand.converse(hello())
    assert answer == Busy("another successor is being served (restoring)")
    rival.close()
    first.close()
    stand.run_until(lambda: predecessor.state == "listening")
    stand.start("successor", "owning", "hang")
    stand.wait_for("freeze")
    rival, answer = stand.converse(hello())
    assert answer == Busy("another successor is being served (committed)")
    rival.close()


@pytest.mark.parametrize(
    ("protocol_min", "protocol", "welcome"), [(1, 1, True), (1, 9, True), (2, 9, False), (0, 0, False)]
)
def test_a_successor_without_a_common_protocol_is_refused(
    stand: Stand, protocol_min: int, protocol: int, welcome: bool
) -> None:
    stand.serve()
    channel, answer = stand.converse(hello()._replace(protocol_min=protocol_min, protocol=protocol))
    assert isinstance(answer, Refused) is not welcome
    channel.close()


def test_a_successor_of_another_user_is_refused(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.serve()
    monkeypatch.setattr("oxidize.takeover.acceptor.is_authorised", lambda *_: False)
    channel, answer = stand.converse(hello())
    assert isinstance(answer, Refused)
    assert "expected uid" in answer.reason
    channel.close()


def test_a_server_of_another_user_is_not_taken_over(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.serve()
    monkeypatch.setattr("oxidize.takeover.successor.is_authorised", lambda *_: False)
    successor = Successor(stand.path, release="new", snapshot_versions=[1], clock=clock)
    with successor, pytest.raises(TakeoverError, match="start it as that"):
        successor.connect()
    assert stand.host.called == []


def test_a_successor_that_could_not_be_killed_is_refused(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.serve()
    monkeypatch.setattr("oxidize.takeover.channel.PeerProcess.may_be_killed", lambda _: False)
    channel, answer = stand.converse(hello())
    assert isinstance(answer, Refused)
    assert "cannot be ended if it hangs" in answer.reason
    channel.close()


def test_a_silent_connection_is_refused_after_a_deadline(stand: Stand) -> None:
    stand.serve(NORMAL._replace(hello=0.05))
    channel = connect(stand.path, 1.0)
    assert channel is not None
    answers: list[Message] = []

    def is_answered() -> bool:
        answers.extend(each.message for each in channel.receive_all().received)
        return bool(answers)

    stand.run_until(is_answered)
    assert answers == [Refused("no HELLO and no query within 0.05 s")]
    channel.close()


def test_connections_beyond_the_limit_are_refused(stand: Stand) -> None:
    stand.serve()
    crowd = []
    for _ in range(16):
        channel = connect(stand.path, 1.0)
        assert channel is not None
        crowd.append(channel)
        stand.run_until(lambda: len(stand.loop.watched) == 1 + len(crowd))
    channel, answer = stand.converse(hello())
    assert isinstance(answer, Busy)
    for each in (channel, *crowd):
        each.close()


def test_a_hello_is_held_back_until_the_hosts_own_predecessor_is_gone(stand: Stand) -> None:
    predecessor = stand.serve(held=True)
    channel = connect(stand.path, 1.0)
    assert channel is not None
    channel.send(hello())
    rival, answer = stand.converse(hello())
    assert answer == Busy("another successor waits already")
    rival.close()
    assert stand.host.called == []
    predecessor.release()
    assert stand.host.called == ["offer"]
    channel.close()


def test_queries_are_answered_during_a_takeover(stand: Stand) -> None:
    stand.serve()
    for name, answer in [("status", "true"), ("big", str(5 << 20)), ("nonsense", "unknown query 'nonsense'")]:
        peer = stand.ask(name)
        stand.run_until(peer.has_ended)
        peer.wait_for(answer)
    stand.start("successor", "owning", "hang")
    stand.wait_for("freeze")
    peer = stand.ask("status")
    stand.run_until(peer.has_ended)
    peer.wait_for('"serves": false')


def test_a_query_without_a_listener_finds_nothing(stand: Stand) -> None:
    assert query(stand.path, "status") is None


def test_a_query_to_a_hanging_server_times_out(stand: Stand) -> None:
    stand.serve()  # its loop never runs
    with pytest.raises(TakeoverError, match="does it hang"):
        query(stand.path, "status", timeout=0.1)


def test_a_query_to_a_former_owner_reaches_the_new_one(stand: Stand) -> None:
    old = Listener(stand.path)
    asking = stand.ask("status")
    waiting: list[Channel] = []
    end = clock() + WAIT_SECS
    while not waiting:
        assert clock() < end
        channel = old.accept()
        if channel is not None:
            waiting.append(channel)
    stand.serve()
    old.close()
    waiting[0].close()
    stand.run_until(asking.has_ended)
    asking.wait_for("true")


def test_ready_in_a_fork_is_a_state_error(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    old = stand.start("predecessor")
    old.wait_for("serving")
    with Successor(stand.path, release="new", snapshot_versions=[1], clock=clock) as successor:
        offer = successor.connect()
        assert offer is not None
        os.close(offer.find("out").fd)
        with pytest.raises(TakeoverError, match="'udp'"):
            offer.find("udp")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(StateError, match="the one it watches"):
                successor.ready({})
        with pytest.raises(StateError, match="shorten"):
            successor.ready({"x": bytes(70_000)})
        successor.failed("the report is too long")
        successor.failed("again")
    old.wait_for("the report is too long")
