"""Messages of a takeover as bytes, and both sides of one whose other side sends what it likes.

Checked: what is decoded can be encoded again; no message, descriptor, end of a connection or death raises or leaks a
descriptor; a predecessor serves exactly while its machine owns, and ends only for a successor that said TAKEN; a
successor owns only after COMMIT or the death of a predecessor with an open offer.

Allowed exceptions: DecodeError and StateError of the codec; TakeoverError of a successor.
"""

import contextlib
import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack

from oxidize.errors import DecodeError, Phase, StateError, TakeoverError
from oxidize.takeover import successor as successor_module
from oxidize.takeover.channel import Channel, close_fds
from oxidize.takeover.connection import PeerProcess
from oxidize.takeover.host import Answer, NamedFd, Offer
from oxidize.takeover.listener import Listener
from oxidize.takeover.messages import (
    Busy,
    CommitMessage,
    Failed,
    FdEntry,
    Hello,
    Message,
    MoreFds,
    OfferMessage,
    Query,
    Ready,
    Refused,
    Reply,
    Taken,
    Withdrawn,
    decode,
    encode,
)
from oxidize.takeover.predecessor import Predecessor
from oxidize.takeover.successor import Successor
from tests.fuzz.script import Script

FROM_SUCCESSOR: tuple[Message, ...] = (
    Hello("1", 7, (1,)),
    Ready({}),
    Taken({}),
    Failed("no"),
    Query("status"),
    Hello("1", 7, (1,), 2, 2),
)
FROM_PREDECESSOR: tuple[Message, ...] = (
    OfferMessage(1, "1", (FdEntry("udp", "socket", {}),), {}),
    CommitMessage(1.0, {}),
    Withdrawn("no"),
    Busy("no"),
    Refused("no"),
    MoreFds(),
    OfferMessage(1, "1", (), {}),
)
MESSAGES: tuple[Message, ...] = (*FROM_SUCCESSOR, *FROM_PREDECESSOR, Reply((FdEntry("a", "memfd", {}),)))
DEPTH_MAX = 20
CLIENTS_MAX = 24
SETTLED_SECS = 600.0


# --- The codec ---


def _tree(script: Script, depth: int = 0) -> Any:
    match script.number(8):
        case 0:
            return script.text(8)
        case 1:
            return script.number((1 << 64) - 1)
        case 2:
            return script.number((1 << 40), -(1 << 40))
        case 3:
            return script.flag()
        case 4 if depth < DEPTH_MAX:
            return [_tree(script, depth + 1) for _ in range(script.number(4))]
        case 5 | 6 if depth < DEPTH_MAX:
            return {script.text(4): _tree(script, depth + 1) for _ in range(script.number(4))}
        case 7:
            return script.some(9)
    return None


def _message(script: Script, messages: tuple[Message, ...]) -> bytes:
    """Return a message as it should be, with other fields, with other bytes, or none at all."""
    kind = script.number(5)
    if kind == 0:
        return script.some(60)
    data = encode(script.pick(messages))
    if kind == 1:
        fields = msgpack.unpackb(data)
        fields[script.pick(sorted(fields)) if script.flag() else script.text(8)] = _tree(script)
        try:
            return bytes(msgpack.packb(fields))
        except (ValueError, OverflowError):
            return data
    return script.broken(data) if kind == 2 else data


def _check_codec(script: Script) -> None:
    data = script.rest() if script.flag() else _message(script, MESSAGES)
    try:
        message = decode(data)
    except DecodeError:
        return
    try:
        again = decode(encode(message))
    except StateError:
        return  # msgpack's other, longer forms of the same values are read and never written
    assert again == message or _has_nan(msgpack.unpackb(data)), (message, again)


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)


# --- The world around either side ---


class Processes:
    """The processes at the other ends: which are dead, which were killed, and whether SIGKILL reaches them."""

    def __init__(self) -> None:
        self.dead: set[PeerProcess] = set()
        self.killed: set[PeerProcess] = set()

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        def kill(peer: PeerProcess) -> bool:
            self.killed.add(peer)
            return True

        with (
            mock.patch.object(PeerProcess, "is_dead", lambda peer: peer in self.dead),
            mock.patch.object(PeerProcess, "kill", kill),
        ):
            yield


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="oxidize-fuzz-"))


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - called for every input


def _send(script: Script, connection: socket.socket, messages: tuple[Message, ...]) -> bytes:
    """Send a message, perhaps with descriptors; return it."""
    data = _message(script, messages)
    count = script.number(3)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        # The other side closed its end, or did not read yet.
        with contextlib.suppress(OSError):
            socket.send_fds(connection, [data], [null] * count, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    finally:
        os.close(null)
    return data


def _is(data: bytes, kind: type) -> bool:
    try:
        return isinstance(decode(data), kind)
    except DecodeError:
        return False


# --- The predecessor ---


class Server:
    """A host that records whether it serves."""

    def __init__(self, script: Script) -> None:
        self.serves, self.finished = True, False
        self._script = script

    def offer(self, hello: Hello) -> Offer:
        if self._script.number(9) == 9:
            raise TakeoverError(Phase.OFFERING, "not now")
        return Offer(7, (NamedFd("null", 0, "file"),) if self._script.flag() else (), {})

    def offer_withdrawn(self, reason: str) -> None:
        assert self.serves

    def may_freeze(self, report: dict[str, Any]) -> bool:
        assert self.serves
        return self._script.number(5) < 5

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        assert self.serves
        self.serves = False
        if self._script.number(9) == 9:
            raise ValueError("a bug of the host")
        return {}

    def thaw(self, reason: str) -> None:
        assert not self.serves
        self.serves = True

    def finish(self, taken: dict[str, Any]) -> None:
        assert not self.serves
        self.finished = True

    def answer(self, query: str) -> Answer:
        if query != "status":
            raise LookupError(query)
        return Answer(b"{}")


class Predecessors:
    """One server and the processes that connect to it."""

    def __init__(self, script: Script) -> None:
        self.script, self.now = script, 1000.0
        self.processes = Processes()
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.clients: list[socket.socket] = []
        self.said_taken = False
        self.host = Server(script)
        self.server = Predecessor(
            Listener(_folder() / "t.sock"),
            self.host,
            release="1",
            register=self.callbacks.__setitem__,
            unregister=self.callbacks.__delitem__,
            clock=lambda: self.now,
            held=script.flag(),
        )

    def run(self) -> None:
        with self.processes.known():
            while self.script and not self.host.finished:
                self._step(self.script.number(9))
                self._look()
            self._end()

    def _step(self, step: int) -> None:
        client = self.script.pick(self.clients) if self.clients else None
        if client is None or (step == 0 and len(self.clients) < CLIENTS_MAX):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.setblocking(False)
            self.clients.append(client)
            with contextlib.suppress(OSError):  # the queue of connections is full
                client.connect(os.fspath(_folder() / "t.sock"))
        peer = self.server._successor.peer if self.server._successor is not None else None
        match step:
            case 5:
                self.clients.remove(client)
                client.close()
            case 6:
                self.now += self.script.number(80) / 2
            case 7 if peer is not None:
                self.processes.dead.add(peer)
            case 8:
                self.server.release()
            case 9:
                self.server.withdraw("the host says so")
            case _:
                self.said_taken |= _is(_send(self.script, client, FROM_SUCCESSOR), Taken)

    def _look(self) -> None:
        peer = self.server._successor.peer if self.server._successor is not None else None
        for callback in list(self.callbacks.values()):
            callback()
        self.server.handle_timeout(self.now)
        assert self.host.finished or self.host.serves == self.server.owns
        if self.host.finished:
            assert self.said_taken, "ended without TAKEN"
            assert peer not in self.processes.killed | self.processes.dead, "handed over to a process that is dead"

    def _end(self) -> None:
        """Let all other processes die, and time pass: the server serves, or has ended for a successor."""
        for client in self.clients:
            client.close()
        for _ in range(8):
            if self.host.finished:
                break
            if self.server._successor is not None:
                self.processes.dead.add(self.server._successor.peer)
            self.now += SETTLED_SECS
            self._look()
        assert self.host.finished != self.host.serves
        self.server.close()
        assert not self.callbacks


# --- The successor ---


class Hurried(Successor):
    """A successor that waits in the time of the script."""

    world: "Successors"

    def _wait(self, secs_max: float | None = None) -> None:
        assert self._machine.next_deadline() is not None
        self.world.pass_time()


class Successors:
    """One successor, and what it connects to."""

    def __init__(self, script: Script) -> None:
        self.script, self.now = script, 1000.0
        self.processes = Processes()
        self.theirs: socket.socket | None = None
        self.peer: PeerProcess | None = None
        self.said_commit = False
        self.side = Hurried(Path("unused"), release="1", snapshot_versions=[1], clock=lambda: self.now)
        self.side.world = self

    def connect(self, path: Path, timeout: float) -> Channel | None:
        self._hang_up()
        if self.script.number(9) == 9:
            return None
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(ours)
        self.peer = channel.peer
        return channel

    def pass_time(self) -> None:
        step = self.script.number(6)
        if not self.script:
            self.now += SETTLED_SECS
        elif step == 5:
            self._hang_up()
        elif step == 6 and self.peer is not None:
            self.processes.dead.add(self.peer)
        elif self.theirs is not None:
            self.said_commit |= _is(_send(self.script, self.theirs, FROM_PREDECESSOR), CommitMessage)
        self.now += 0.5

    def _hang_up(self) -> None:
        if self.theirs is not None:
            self.theirs.close()
            self.theirs = None

    def run(self) -> None:
        with (
            self.processes.known(),
            mock.patch.object(successor_module, "connect", self.connect),
            mock.patch.object(successor_module, "RETRY_DELAY", 0.0),
            self.side,
            contextlib.suppress(TakeoverError),
        ):
            self._take_over()
        self._hang_up()

    def _take_over(self) -> None:
        offer = self.side.connect()
        if offer is None:
            return
        close_fds(each.fd for each in offer.fds)
        for _ in range(self.script.number(3)):
            self.pass_time()
            self.side.check()
        commit = self.side.ready({})
        owns = self.side.owns
        assert owns
        assert self.said_commit or self.peer in self.processes.dead, "owns without COMMIT, beside a process that lives"
        assert not commit.predecessor_died or self.peer in self.processes.dead
        if self.script.number(5) == 5:
            self.side.failed("a bug of the host")
            assert not self.side.owns
            return
        self.side.taken({})
        while not self.side.has_predecessor_ended():
            self.pass_time()
            if self.peer in self.processes.killed:
                self.processes.dead.add(self.peer)
        assert self.side.owns


def run(data: bytes) -> None:
    script = Script(data)
    before = _open_fds()
    match script.number(2):
        case 0:
            _check_codec(script)
        case 1:
            Predecessors(script).run()
        case _:
            Successors(script).run()
    assert _open_fds() == before, "a descriptor leaks"


def seeds() -> Iterable[bytes]:
    golden = Path(__file__).parents[1] / "golden"
    for name in ("offer-server-0.1.0.bin", "offer-client-0.1.0.bin"):
        yield b"\0\1" + (golden / name).read_bytes()
    for number in range(len(MESSAGES)):
        yield b"\0\1" + encode(MESSAGES[number])
        yield bytes([0, 0, 1, number, 1, 2, 5, 2, 1, 97, 1, 1, 2, 3, 4, 5, 6, 7, 8])
    # Steps of a predecessor's script: a message of FROM_SUCCESSOR, and what the host decides.
    hello = bytes([1, 5, 0, 0]) + b"\6\0\0"  # the first step connects; the next look reads
    ready, taken, failed, query = (bytes([1, 0, 5, number, number // 4 * 2]) for number in (1, 2, 3, 4))
    offer, freeze = b"\0\1", b"\0\0"
    for story in (
        hello + offer + ready + freeze + taken,
        hello + offer + ready + freeze + failed,
        hello + offer + ready + freeze + b"\7\0",
        hello + offer + ready + freeze + b"\5\0",
        hello + offer + ready + freeze + b"\6\0\x28" + b"\6\0\x28",
        hello + offer + b"\6\0\x50" + b"\6\0\x50",
        hello + offer + b"\x09\0" + ready,
        hello + offer + query + ready,
        hello + offer + failed + b"\0\0\5\0\0" + b"\6\0\0" + offer + ready + freeze + taken,
    ):
        yield b"\1\0" + story
        yield b"\1\1" + story[:7] + b"\x08\0" + story[7:]
    # Steps of a successor's: the messages of FROM_PREDECESSOR, in their order.
    offer, commit, withdrawn, busy = (bytes([0, 5, number, int(number == 0)]) for number in range(4))
    empty_offer = bytes([0, 5, 6, 0])
    for story in (
        offer + b"\0" + commit + b"\0" + b"\6",
        empty_offer + b"\0" + b"\6",
        empty_offer + b"\1" + withdrawn,
        empty_offer + b"\0" + b"\5" + b"\6",
        empty_offer + b"\0" + b"\5",
        busy,
        empty_offer + b"\0" + commit + b"\5",
    ):
        yield b"\2\0" + story + bytes(4)
