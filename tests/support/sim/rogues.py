"""Processes that connect to the takeover socket and break the protocol.

The rule that they try: no message of a peer ends a serving process. A rogue of the server's own user may become its
successor, and then holds an offer; whatever it says then, the server serves on, or serves again once the rogue is dead.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack

from oxidize.errors import OxidizeError
from tests.support.sim.kernel import kernel
from tests.support.sim.manager import SOCKET
from tests.support.sim.sockets import Poll, Socket

if TYPE_CHECKING:
    from tests.support.sim.world import World


HELLO = {"release": "rogue", "snapshot_versions": [1, 2], "protocol": 1, "protocol_min": 1}


class Rogue:
    """A connection to the takeover socket."""

    def __init__(self) -> None:
        self._socket = Socket(1, 5)
        self._socket.connect(str(SOCKET))

    def say(self, *messages: bytes | dict[str, Any]) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else msgpack.packb(message)
            try:
                self._socket.sendmsg([data])
            except OSError:
                return

    def hello(self) -> bool:
        """Become the successor; return whether an offer came."""
        process = kernel().current
        assert process is not None
        self.say({"type": "hello", "pid": process.pid, **HELLO})
        return self.hear("offer")

    def hear(self, kind: str, secs: float = 6.0) -> bool:
        """Wait for a message of that type."""
        until = kernel().now + secs
        while kernel().now < until:
            poll = Poll()
            poll.register(self._socket.fileno(), 1)
            if not poll.poll((until - kernel().now) * 1000 + 1):
                return False
            try:
                data, _, _, _ = self._socket.recvmsg(65_536, 4096)
            except OSError:
                continue
            if not data:
                return False
            if msgpack.unpackb(data).get("type") == kind:
                return True
        return False


FOREVER_SECS = 1e6  # the server has to end it
READY = {"type": "ready", "report": {}}
TAKEN = {"type": "taken", "info": {}}
LONG = "ä" * 4_096


def _after_offer(*messages: bytes | dict[str, Any], lingers: float = 0.0) -> Callable[["World"], None]:
    def act(world: "World") -> None:
        try:
            rogue = Rogue()
        except (OSError, OxidizeError):
            return
        if rogue.hello():
            rogue.say(*messages)
        _sleep(lingers)

    return act


def _sleep(secs: float) -> None:
    kernel().enter("sleep")
    kernel().wait(lambda: False, secs)


def _commit_then(*messages: bytes | dict[str, Any], lingers: float) -> Callable[["World"], None]:
    """Be committed to, and then not serve: the server has to end this process and to serve again."""

    def act(world: "World") -> None:
        try:
            rogue = Rogue()
        except OSError:
            return
        if rogue.hello():
            rogue.say(READY)
            if rogue.hear("commit"):
                rogue.say(*messages)
                _sleep(lingers)

    return act


def _flood(world: "World") -> None:
    connections = []
    for _ in range(24):
        try:
            connections.append(Rogue())
        except OSError:
            break
    _sleep(7.0)


def _babble(world: "World") -> None:
    """Say random messages at random times."""
    random = world.random
    try:
        rogue = Rogue()
    except OSError:
        return
    said: list[bytes | dict[str, Any]] = [
        READY, READY, b"\xc1", b"", b"\x81", {"type": "unknown"}, {"type": "failed", "reason": LONG},
        {"type": "commit", "frozen_at": 1.0, "info": {}}, {"type": "query", "name": "nothing"}, {"type": "ready"},
        {"type": "more_fds"}, {"type": "withdrawn", "reason": "x"},
    ]  # fmt: skip
    if random.random() < 0.7:
        rogue.hello()
    for _ in range(random.randint(1, 6)):
        rogue.say(random.choice(said))
        _sleep(random.choice((0.0, 0.001, 2.0)))


ROGUES: dict[str, Callable[["World"], None]] = {
    "ready twice": _after_offer(READY, READY, lingers=2.0),
    "ready and garbage": _after_offer(READY, b"\xc1\xc1", lingers=2.0),
    "ready and taken": _after_offer(READY, TAKEN, lingers=2.0),
    "taken first": _after_offer(TAKEN, lingers=2.0),
    "a long reason": _after_offer({"type": "failed", "reason": LONG}),
    "a long reason after ready": _after_offer(READY, {"type": "failed", "reason": LONG}),
    "silence after the offer": _after_offer(lingers=38.0),
    "silence after commit": _commit_then(lingers=FOREVER_SECS),
    "failed after commit": _commit_then({"type": "failed", "reason": LONG}, lingers=3.0),
    "ready after commit": _commit_then(READY, lingers=3.0),
    "death after commit": _commit_then(lingers=0.0),
    "a flood of connections": _flood,
    "babble": _babble,
}
