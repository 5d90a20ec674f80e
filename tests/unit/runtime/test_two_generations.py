"""What a successor inherits and what a thawing predecessor finds, in one process: only the owner acts, none forgets."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from oxidize import clock
from oxidize.control.reload_channel import Control
from oxidize.errors import Phase, TakeoverError
from oxidize.net.event_loop import Loop
from oxidize.net.udp_receiver import ReceivedBatch, UdpReceiver
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.shedding import Sheddable
from oxidize.runtime import succession as succession_module
from oxidize.runtime.node import Node
from oxidize.takeover.channel import connect
from oxidize.takeover.messages import Hello
from tests.support.socket_filter import is_filtered
from tests.support.traffic.clients import EchoClient
from tests.support.two_generations import Generations, two_generations

FAR = 120.0  # seconds: every timer of a session and of a handshake is due
FLOOD_INITIATIONS = 100_000


@pytest.fixture
def client() -> EchoClient:
    return EchoClient(2)


@pytest.fixture
def generations(
    tmp_path: Path, client: EchoClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Generations]:
    with two_generations(tmp_path, [client, EchoClient(3)], monkeypatch, persistent_keepalive=1) as generations:
        yield generations
        caplog.get_records("call").clear()  # the tracebacks in them keep what has failed


def test_a_session_is_served_by_both_generations_in_turn(generations: Generations, client: EchoClient) -> None:
    assert generations.talk(client, generations.loop)
    generations.succeed()
    assert generations.talk(client, generations.next_loop)
    generations.handover.thaw("the successor died")
    assert generations.talk(client, generations.loop)
    assert (client.handshakes, client.duplicated) == (1, 0)


# --- Before COMMIT ---


def test_a_successor_sets_no_socket_option_before_commit(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    setsockopt = socket.socket.setsockopt
    shared = generations.node.udp._socket

    def note(self: socket.socket, *arguments: Any) -> None:
        stage = "owner" if "ready" in dict(generations.peering.said) else "restoring"
        if is_same(self, shared):
            calls.append((stage, str(arguments[1])))
        setsockopt(self, *arguments)

    monkeypatch.setattr(socket.socket, "setsockopt", note)
    generations.succeed()
    assert {stage for stage, _ in calls} == {"owner"}


def flood(node: Node, loop: Loop) -> None:
    """Let a node measure so many initiations at once that it sheds them for a while."""
    now = clock.boot_time()
    for _ in range(FLOOD_INITIATIONS):
        node.device.admission.flood.note(Sheddable.UNPROVEN, now)
    loop.run_once(0)
    assert is_filtered(node.udp._socket)


def test_each_owner_sheds_a_flood_by_a_filter_of_its_own(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    udp = generations.node.udp._socket
    serve = Node.serve
    filtered: list[bool] = []

    def note(self: Node) -> None:
        filtered.append(is_filtered(udp))
        serve(self)

    monkeypatch.setattr(Node, "serve", note)
    assert generations.talk(client, generations.loop)
    flood(generations.node, generations.loop)
    successor = generations.succeed()
    assert filtered == [False], "the predecessor has detached it before COMMIT"
    generations.late_by = FAR
    generations.loop.run_once(0)
    assert not is_filtered(udp), "it decides no more"
    generations.late_by = 0.0
    flood(successor.node, generations.next_loop)
    assert generations.talk(client, generations.next_loop)
    generations.handover.thaw("the successor died")
    assert filtered == [False, True], "a successor that was killed cannot detach it"
    assert not is_filtered(udp)
    flood(generations.node, generations.loop)
    assert generations.talk(client, generations.loop)
    assert client.handshakes == 1


def test_an_heir_removes_the_filter_of_a_predecessor_that_was_killed(generations: Generations) -> None:
    flood(generations.node, generations.loop)
    generations.peering.inherits = True
    generations.succeed()
    assert not is_filtered(generations.node.udp._socket)


def test_a_successor_reads_no_datagram_before_commit(generations: Generations, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    receive = UdpReceiver.receive
    shared = generations.node.udp._socket

    def note(self: UdpReceiver, rows: ReceivedRows, *, parts_initiations: bool) -> ReceivedBatch | None:
        if is_same(self._socket, shared):
            stages.append("owner" if "ready" in dict(generations.peering.said) else "restoring")
        return receive(self, rows, parts_initiations=parts_initiations)

    monkeypatch.setattr(UdpReceiver, "receive", note)
    generations.succeed()
    assert set(stages) <= {"owner"}


def is_same(one: socket.socket, other: socket.socket) -> bool:
    """Return whether two objects hold the same socket, and not one that the process has made for itself."""
    return os.path.sameopenfile(one.fileno(), other.fileno())


def test_a_successor_knows_a_session_that_was_made_between_its_last_look_and_ready(
    generations: Generations, client: EchoClient
) -> None:
    generations.peering.before_commit = lambda: assert_talks(generations, client)
    generations.succeed()
    assert generations.talk(client, generations.next_loop)
    assert client.handshakes == 1


def assert_talks(generations: Generations, client: EchoClient) -> None:
    assert generations.talk(client, generations.loop)


# --- A frozen predecessor ---


def test_a_frozen_predecessor_seals_and_sends_nothing(generations: Generations, client: EchoClient) -> None:
    def answers() -> int:
        for _ in range(20):
            generations.late_by += FAR / 20
            generations.loop.run_once(0)
            client.receive()
        return len(client.datagrams)

    assert generations.talk(client, generations.loop)
    before = len(client.datagrams)
    assert answers() > before  # it has timers that send
    sent = generations.node.counters[:]
    generations.handover.freeze({})
    before = len(client.datagrams)
    client.send_next()
    assert answers() == before
    assert generations.node.counters[:] == sent


# --- A predecessor that thaws ---


def test_a_thawing_predecessor_keeps_the_session_that_its_successor_made(
    generations: Generations, client: EchoClient
) -> None:
    generations.succeed()
    assert generations.talk(client, generations.next_loop)
    generations.handover.thaw("the successor died")
    assert generations.talk(client, generations.loop)
    assert client.handshakes == 1


def test_a_thawing_predecessor_keeps_the_session_of_a_peer_that_its_successor_did_not_know(
    generations: Generations, client: EchoClient
) -> None:
    assert generations.talk(client, generations.loop)
    del generations.server.peers[0]
    generations.succeed()
    for _ in range(5):
        generations.next_loop.run_once(0)  # after TAKEN; the predecessor has not ended
    generations.handover.thaw("the successor died")
    assert generations.talk(client, generations.loop)
    assert client.handshakes == 1


def test_a_successor_that_died_after_commit_does_not_block_the_next_one(
    generations: Generations, client: EchoClient
) -> None:
    first = generations.offer().generation
    generations.succeed()
    generations.handover.thaw("the successor died")
    assert generations.offer().generation == first + 1
    generations.succeed()
    assert generations.talk(client, generations.next_loop)


# --- Failures after COMMIT ---


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("where", ["_own", "_take"])
def test_a_successor_that_fails_after_commit_says_why_and_ends_without_a_pause(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(succession_module.Succession, where, fail)
    with pytest.raises(TakeoverError) as caught:
        generations.succession().run()
    assert caught.value.phase is Phase.OWNING  # the mark of a failure for whose end a predecessor waits
    assert generations.peering.said[-1] == ("failed", "RuntimeError: broken on purpose")
    generations.handover.thaw(generations.peering.said[-1][1])
    assert generations.talk(client, generations.loop)


@pytest.mark.parametrize("step", ["oxidize.runtime.node.Node.open_http", "oxidize.runtime.node.Node.notify_ready"])
def test_no_step_after_taken_ends_the_only_process_that_serves(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(step, fail)
    generations.succeed()
    assert generations.talk(client, generations.next_loop)


# --- A predecessor that died ---


@pytest.fixture
def orphan_control() -> Iterator[Control]:
    coordinator, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    coordinator.close()
    control = Control(end.detach())
    yield control
    control.done({})


def test_a_successor_serves_if_predecessor_and_coordinator_have_ended(
    generations: Generations, client: EchoClient, orphan_control: Control
) -> None:
    assert generations.talk(client, generations.loop)
    generations.peering.inherits = True
    generations.handover.freeze({})  # dead: it acts no more
    generations.next_handover = generations.succession(orphan_control).run()
    assert generations.talk(client, generations.next_loop)
    assert client.handshakes == 1


def test_a_successor_without_its_coordinator_gives_up_while_its_predecessor_lives(
    generations: Generations, client: EchoClient, orphan_control: Control
) -> None:
    with pytest.raises(TakeoverError, match="the coordinator is gone"):
        generations.succession(orphan_control).run()
    assert [what for what, _ in generations.peering.said] == ["failed"]
    assert generations.talk(client, generations.loop)


def test_an_heir_serves_although_the_takeover_socket_cannot_be_bound(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations.peering.inherits = True
    generations.handover.freeze({})
    succession = generations.succession()
    with monkeypatch.context() as patch:
        patch.setattr("oxidize.takeover.listener._bind", refuse)
        generations.next_handover = succession.run()
    assert generations.talk(client, generations.next_loop)
    generations.next_handover.predecessor.handle_timeout(generations.now() + 2.0)
    assert generations.next_handover.predecessor._acceptor._listener.is_bound()


def test_a_successor_that_cannot_bind_the_takeover_socket_leaves_its_predecessor_serving(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("oxidize.takeover.listener._bind", refuse)
        with pytest.raises(TakeoverError, match="no descriptor"):
            generations.succession().run()
    generations.handover.thaw("no descriptor")
    assert generations.talk(client, generations.loop)


def test_an_owner_whose_predecessor_died_after_commit_serves_without_the_takeover_socket(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations.peering.is_dead = True
    with monkeypatch.context() as patch:
        patch.setattr("oxidize.takeover.listener._bind", refuse)
        handover = generations.succeed()
    assert generations.talk(client, generations.next_loop)
    handover.predecessor.handle_timeout(generations.now() + 2.0)
    assert handover.predecessor._acceptor._listener.is_bound()


def refuse(path: Path) -> NoReturn:
    raise TakeoverError(Phase.LISTENING, f"no descriptor for {path}")


def test_a_predecessor_thaws_where_the_kernel_has_no_room_for_another_descriptor_to_watch(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, loop: Loop) -> None:
            self._epoll = loop._epoll

        def register(self, fd: int, events: int) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._epoll, name)

    generations.handover.freeze({})
    monkeypatch.setattr(generations.loop, "_epoll", Full(generations.loop))
    generations.handover.thaw("the successor died")
    assert generations.talk(client, generations.loop)


def test_the_next_successor_waits_until_the_first_generation_has_ended(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    predecessor = generations.succeed().predecessor
    channel = connect(generations.settings().takeover_socket, 1.0)
    assert channel is not None
    states = []
    with closing(channel):
        channel.send(Hello("0.2.0", os.getpid(), (1,)))
        for has_ended in (False, True):
            monkeypatch.setattr(generations.peering, "has_predecessor_ended", lambda ended=has_ended: ended)
            for each in generations.next_loop._timed.copy():
                if type(each).__name__ == "_PredecessorEnd":
                    each.handle_timeout(generations.now())
            for _ in range(5):
                generations.next_loop.run_once(0)
            states.append(predecessor.state)
        channel.discard()
    assert states == ["listening", "restoring"]


def test_a_thawing_predecessor_does_the_work_of_all_peers_in_slices(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices: list[int] = []

    def prepare_in_slices() -> Iterator[None]:
        for number in range(3):
            slices.append(number)
            yield

    monkeypatch.setattr(generations.node.device, "prepare_in_slices", prepare_in_slices)
    generations.handover.freeze({})
    generations.handover.thaw("the successor died")
    assert not slices
    generations.loop.run_once(0)
    assert slices == [0]
    generations.handover.freeze({})
    generations.loop.run_once(0)
    assert slices == [0]
    generations.handover.thaw("the successor died")
    assert generations.talk(client, generations.loop)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("no thread")])
def test_a_thawed_predecessor_serves_where_its_settings_cannot_be_put_back(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def shortage(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("oxidize.runtime.handover.store_again", shortage)
    generations.handover.freeze({})
    generations.handover.thaw("the successor died")
    assert generations.talk(client, generations.loop)


def test_peers_that_are_not_configured_are_forgotten_in_slices(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices: list[int] = []

    def forget_unknown_peers() -> Iterator[None]:
        for number in range(100):
            slices.append(number)
            yield

    handover = generations.succeed()
    monkeypatch.setattr(handover.node.device, "forget_unknown_peers", forget_unknown_peers)
    monkeypatch.setattr(generations.peering, "has_predecessor_ended", lambda: True)
    (end,) = [each for each in generations.next_loop._timed if type(each).__name__ == "_PredecessorEnd"]
    end.handle_timeout(generations.now())
    assert not slices
    for number in range(100):
        assert len(slices) == number
        generations.next_loop.run_once(0)


def test_an_unwatched_end_of_the_predecessor_is_looked_for_in_intervals(
    generations: Generations, client: EchoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = generations.next_loop.register

    def full(fd: int, events: int, callback: Any) -> None:
        if fd == generations.peering.predecessor_fd:
            raise OSError(28, os.strerror(28))
        register(fd, events, callback)

    monkeypatch.setattr(generations.next_loop, "register", full)
    handover = generations.succeed()
    ends = [each for each in generations.next_loop._timed if type(each).__name__ == "_PredecessorEnd"]
    due = ends[0].next_deadline()
    assert due is not None
    released: list[bool] = []
    monkeypatch.setattr(generations.peering, "has_predecessor_ended", lambda: True)
    monkeypatch.setattr(handover.predecessor, "release", lambda: released.append(True))
    ends[0].handle_timeout(due)
    assert released == [True]
    assert generations.talk(client, generations.next_loop)
