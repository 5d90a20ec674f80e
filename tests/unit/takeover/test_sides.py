"""Both sides of a takeover over real sockets in one process: no bytes end them, and each looks before it acts."""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import msgpack
import pytest

from oxidize.errors import TakeoverError
from oxidize.takeover import Listener, PathLock, Predecessor, Successor
from oxidize.takeover.acceptor import PATH_CHECK_SECS
from oxidize.takeover.channel import Channel, ChannelBatch, Received, close_fds, connect
from oxidize.takeover.connection import PeerProcess
from oxidize.takeover.machine import DEFAULT_TIMEOUTS, Event
from oxidize.takeover.messages import (
    MESSAGE_BYTES_MAX,
    REASON_BYTES_MAX,
    CommitMessage,
    Failed,
    Hello,
    Message,
    OfferMessage,
    Query,
    Ready,
    Refused,
    Reply,
    Taken,
    Withdrawn,
    encode,
)
from tests.support.takeover_peer import Host

HELLO = Hello("test", os.getpid(), (1,))


class Bench:
    """A predecessor on a clock of its own, whose successors are connections of this process."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.now = 100.0
        self.is_dead = False  # the successor
        self.killed = 0
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.refused: set[int] = set()  # numbers of registrations that fail
        self.registrations = 0
        self.channels: list[Channel] = []
        self.reading, writing = os.pipe()
        self.host = Host(writing)
        monkeypatch.setattr(PeerProcess, "kill", self._kill)
        monkeypatch.setattr(PeerProcess, "is_dead", lambda _: self.is_dead)
        self.lock = PathLock(path)
        assert self.lock.take()
        self.predecessor = Predecessor(
            Listener(path),
            self.host,
            release="old",
            register=self._register,
            unregister=self._unregister,
            clock=lambda: self.now,
            lock=self.lock,
        )

    def _kill(self) -> bool:
        self.killed += 1
        return True

    def _register(self, fd: int, on_readable: Callable[[], None]) -> None:
        self.registrations += 1
        if self.registrations in self.refused:
            raise OSError(28, os.strerror(28))
        self.callbacks[fd] = on_readable

    def _unregister(self, fd: int) -> None:
        del self.callbacks[fd]

    def run(self) -> None:
        """Call back for all descriptors, as a loop does in which all are readable, and for the deadlines."""
        for _ in range(3):
            for fd, callback in list(self.callbacks.items()):
                if self.callbacks.get(fd) is callback:
                    callback()
        self.predecessor.handle_timeout(self.now)

    def connect(self) -> Channel:
        channel = connect(self.path, 1.0)
        assert channel is not None
        self.channels.append(channel)
        return channel

    def converse(self, message: Message) -> tuple[Channel, Message | None]:
        channel = self.connect()
        channel.send(message)
        self.run()
        batch = channel.receive_all()
        for each in batch.received:
            close_fds(each.fds)
        return channel, batch.received[0].message if batch.received else None

    def engage(self, state: str) -> Channel:
        """Return the connection of a successor with which the predecessor has reached this state."""
        channel, answer = self.converse(HELLO)
        assert isinstance(answer, OfferMessage)
        if state == "withdrawing":
            self.predecessor.withdraw("enough")
        elif state == "committed":
            channel.send(Ready({}))
            self.run()
        assert self.predecessor.state == state
        return channel

    def close(self) -> None:
        self.predecessor.close()
        for channel in self.channels:
            channel.close()
        close_fds([self.reading, self.host.out])
        self.lock.close()
        assert self.callbacks == {}


# --- A host that postpones the freeze ---


def test_a_host_is_asked_whether_it_may_freeze_also_past_the_deadline_of_ready(bench: Bench) -> None:
    channel = bench.engage("restoring")
    channel.send(Ready({}))
    bench.now += DEFAULT_TIMEOUTS.restore
    bench.run()
    assert bench.host.asked_to_freeze == 1
    assert bench.predecessor.state == "committed"


# --- Bytes of a successor ---

DATAGRAMS = {
    "ready": encode(Ready({})),
    "failed": encode(Failed("я" * 9_000)),
    "taken": encode(Taken({"self": 1, "msg": "\x1b[2J", "event": [1]})),
    "hello": encode(HELLO),
    "commit": encode(CommitMessage(1.0, {})),
    "unknown type": msgpack.packb({"type": "progress"}),
    "garbage": b"\xc1\xff",
    "truncated": encode(Ready({"sessions": 3}))[:-3],
    "oversized": b"\x80" * (MESSAGE_BYTES_MAX + 1),
    "deep": b"\x82\xa4type\xa5ready\xa6report" + b"\x91" * 900 + b"\xc0",
}
PAIRS = list(itertools.product(DATAGRAMS, repeat=2))


def send_raw(channel: Channel, data: bytes) -> None:
    """Send bytes that a channel would not, with descriptors that nobody asked for."""
    with socket.socket(fileno=os.dup(channel.fileno())) as raw:
        socket.send_fds(raw, [data], [0, 1, channel.fileno()])


@pytest.mark.parametrize("state", ["restoring", "withdrawing", "committed"])
@pytest.mark.parametrize("separate", [False, True], ids=["in one look", "in two looks"])
def test_no_datagrams_of_a_successor_end_the_server(bench: Bench, state: str, separate: bool) -> None:
    for names in PAIRS:
        channel = bench.engage(state)
        for name in names:
            try:
                send_raw(channel, DATAGRAMS[name])
            except BrokenPipeError:
                assert separate  # the connection has ended already
            if separate:
                bench.run()
        bench.run()
        channel.close()
        bench.is_dead = True
        for _ in range(3):
            bench.now += 10.0
            bench.run()
        bench.is_dead = False
        if "finish" in bench.host.called:
            assert state != "withdrawing"
            return_to_service(bench)
        assert bench.predecessor.state == "listening", names
        assert bench.host.serves
        _, answer = bench.converse(Query("status"))
        assert isinstance(answer, Reply), names


def return_to_service(bench: Bench) -> None:
    """Begin with a new predecessor after TAKEN ended the one before, as it should."""
    bench.predecessor.close()
    bench.host.calls.clear()
    bench.host.serves = True
    bench.predecessor = Predecessor(
        Listener(bench.path),
        bench.host,
        release="old",
        register=bench._register,
        unregister=bench._unregister,
        clock=lambda: bench.now,
    )


@pytest.mark.parametrize("name", DATAGRAMS)
def test_no_first_datagram_ends_the_server(bench: Bench, name: str) -> None:
    if name == "hello":
        return
    channel = bench.connect()
    send_raw(channel, DATAGRAMS[name])
    bench.run()
    (refusal,) = channel.receive_all().received
    assert isinstance(refusal.message, Refused)
    assert isinstance(bench.converse(Query("status"))[1], Reply)


def hello_of(which: str, namespace: str) -> Hello:
    if which == "network_namespace":
        return HELLO._replace(network_namespace=namespace)
    return HELLO._replace(time_namespace=namespace)


@pytest.mark.parametrize("which", ["network_namespace", "time_namespace"])
def test_a_successor_in_another_namespace_is_refused_and_the_next_one_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr(f"oxidize.takeover.namespaces.{which}", lambda: "one:[1]")
    _, refusal = bench.converse(hello_of(which, "other:[2]"))
    assert isinstance(refusal, Refused)
    assert "namespace other:[2]; expected one:[1]" in refusal.reason
    assert isinstance(bench.converse(hello_of(which, "one:[1]"))[1], OfferMessage)


# --- Reasons ---


def test_the_host_gets_reasons_that_it_can_record(bench: Bench) -> None:
    bench.engage("restoring")
    bench.predecessor.withdraw("漢" * 9_000)
    assert 0 < len(dict(bench.host.calls)["offer_withdrawn"].encode()) <= REASON_BYTES_MAX


def test_the_host_gets_the_reason_of_its_own_failed_freeze_cut(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> NoReturn:
        bench.host.serves = False
        raise RuntimeError("漢" * 9_000)

    channel = bench.engage("restoring")
    monkeypatch.setattr(bench.host, "freeze", fail)
    channel.send(Ready({}))
    bench.run()
    assert 0 < len(dict(bench.host.calls)["thaw"].encode()) <= REASON_BYTES_MAX


def test_a_successor_that_failed_after_commit_is_named_with_its_reason_when_it_is_dead(bench: Bench) -> None:
    channel = bench.engage("committed")
    channel.send(Failed("no memory"))
    channel.close()
    bench.run()
    assert bench.predecessor.state == "ending"
    assert "thaw" not in bench.host.called
    bench.is_dead = True
    bench.run()
    assert bench.host.calls[-1] == ("thaw", "no memory")


# --- WITHDRAWN ---


def test_a_successor_that_cannot_be_told_that_its_offer_is_void_is_killed(bench: Bench) -> None:
    bench.engage("restoring")
    successor = bench.predecessor._successor
    assert successor is not None
    fill(successor)
    bench.predecessor.withdraw("the server is stopping")
    assert bench.killed == 1


@pytest.mark.parametrize(("error", "killed"), [(errno.ENOBUFS, 1), (errno.ENOMEM, 1), (errno.EPIPE, 0)])
def test_only_a_successor_that_hung_up_itself_need_not_be_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: int, killed: int
) -> None:
    def send(*_: object) -> NoReturn:
        raise OSError(error, os.strerror(error))

    bench.engage("restoring")
    monkeypatch.setattr(Channel, "send", send)
    bench.predecessor.withdraw("the server is stopping")
    assert bench.killed == killed


def fill(channel: Channel) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            channel.send(Ready({"x": bytes(1_000)}))


# --- Deadlines ---


def test_a_pause_before_commit_is_sent_is_not_the_successors(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = bench.engage("restoring")
    send = Channel.send

    def late(self: Channel, message: Message, *rest: Any) -> None:
        if isinstance(message, CommitMessage):
            bench.now += DEFAULT_TIMEOUTS.taken - 0.1
        send(self, message, *rest)

    monkeypatch.setattr(Channel, "send", late)
    channel.send(Ready({}))
    bench.run()
    bench.now += 0.2
    bench.run()
    assert (bench.predecessor.state, bench.killed) == ("committed", 0)
    channel.send(Taken({}))
    bench.run()
    assert bench.predecessor.state == "done"


# --- The path ---


def test_a_path_that_another_process_bound_is_bound_again_when_a_takeover_ends(bench: Bench) -> None:
    channel = bench.engage("committed")
    theirs = Listener(bench.path)  # a successor that listened already, and died
    theirs.close()
    channel.close()
    bench.is_dead = True
    bench.run()
    assert bench.host.called[-1] == "thaw"
    assert isinstance(bench.converse(Query("status"))[1], Reply)


def test_a_frozen_predecessor_leaves_the_path_to_its_successor(bench: Bench) -> None:
    bench.engage("committed")
    theirs = Listener(bench.path)
    bench.now += 2 * PATH_CHECK_SECS
    bench.run()
    assert bench.predecessor.state == "committed"
    assert theirs.is_bound()
    theirs.close()


# --- The kernel's limits ---


@pytest.mark.parametrize("which", [1, 2], ids=["connection", "pidfd"])
def test_a_successor_that_cannot_be_watched_is_refused_and_the_next_one_is_not(bench: Bench, which: int) -> None:
    channel = bench.connect()
    channel.send(HELLO)
    bench.refused = {bench.registrations + 1 + which}  # the first is the acceptor's
    bench.run()
    (refusal,) = channel.receive_all().received
    assert isinstance(refusal.message, Refused)
    assert "No space left" in refusal.message.reason
    assert bench.host.called == ["offer", "offer_withdrawn"]
    assert bench.predecessor.state == "listening"
    bench.engage("restoring")


# --- The successor ---


class Script:
    """A predecessor that says its last and dies between two looks of its successor: after the first of them."""

    def __init__(self, last: Message) -> None:
        self.last = [Received(last)]
        self.looks = 0
        self.peer = SimpleNamespace(is_dead=self._is_dead, fileno=lambda: -1, pid=1)

    def _is_dead(self) -> bool:
        self.looks += 1
        return self.looks > 1

    def receive_all(self) -> ChannelBatch:
        self.looks += 1
        if self.looks == 1:
            return ChannelBatch()
        said, self.last = self.last, []
        batch = ChannelBatch(closed=not said)
        batch.received += said
        return batch

    def send(self, message: Message) -> None:
        raise BrokenPipeError

    def close(self) -> None:
        pass


def restoring(script: Script) -> Successor:
    successor = Successor(Path("t.sock"), release="new", snapshot_versions=[1], clock=lambda: 100.0)
    successor._channel = cast(Channel, script)
    successor._machine.connected(100.0)
    successor._machine.observe([(Event.OFFER, "")], closed=False, gone=False, now=100.0)
    return successor


def test_a_successor_reads_what_a_dead_predecessor_said_before_it_inherits() -> None:
    successor = restoring(Script(Withdrawn("the server is stopping")))
    with pytest.raises(TakeoverError, match="the server is stopping"):
        successor.check()


def test_a_predecessor_reads_what_a_dead_successor_said_before_it_thaws(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = bench.engage("committed")
    looks: list[str] = []
    receive_all = Channel.receive_all

    def say_and_die(self: Channel) -> ChannelBatch:
        looks.append("read")
        return receive_all(self)

    def is_dead(_: PeerProcess) -> bool:
        looks.append("death")
        return False

    monkeypatch.setattr(Channel, "receive_all", say_and_die)
    monkeypatch.setattr(PeerProcess, "is_dead", is_dead)
    channel.send(Taken({}))
    bench.run()
    assert looks[:2] == ["death", "read"]


def test_a_successor_waits_for_commit_from_the_moment_that_it_sent_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    now = [100.0]
    successor = Successor(Path("t.sock"), release="new", snapshot_versions=[1], clock=lambda: now[0])
    with far:
        successor._channel = Channel(near)
        successor._machine.connected(100.0)
        successor._machine.observe([(Event.OFFER, "")], closed=False, gone=False, now=100.0)
        send = Channel.send

        def late(self: Channel, message: Message) -> None:
            send(self, message)
            now[0] += DEFAULT_TIMEOUTS.commit - 0.1

        monkeypatch.setattr(Channel, "send", late)
        successor._run(successor._machine.restored(now[0]))
        assert successor.next_deadline() == now[0] + DEFAULT_TIMEOUTS.commit
        successor.close()


def test_a_predecessor_whose_connection_has_ended_is_given_time_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    successor = Successor(Path("t.sock"), release="new", snapshot_versions=[1])
    successor._channel = Channel(near)
    successor._machine.connected(100.0)
    successor._machine.observe([(Event.OFFER, "")], closed=False, gone=False, now=100.0)
    assert not successor.has_inherited()  # it is connected, and this very process
    far.close()
    dying, end = os.pipe()
    monkeypatch.setattr(Successor, "predecessor_fd", dying)
    monkeypatch.setattr(PeerProcess, "is_dead", lambda _: False)
    os.write(end, b"dead")  # readable: the wait ends
    looks = iter([False, True])
    monkeypatch.setattr(PeerProcess, "is_dead", lambda _: next(looks))
    assert successor.has_inherited()
    close_fds([dying, end])
    successor.close()
