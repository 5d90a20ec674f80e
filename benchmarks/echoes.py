"""Play one client that sends and receives at an even pace while its server is replaced, and peers that begin sessions.

`bench_blackout` starts it. After the settings (`benchmarks.player.Play`) each `Order` on its standard input, a line of
JSON, begins a play, which is answered by an empty line; the next line ends it, and is answered by `Heard`, in JSON.

Rule: a gap is the server's. So this process precedes all others on its processor where it may (sched(7), SCHED_FIFO),
sleeps between its turns, and takes the kernel's times of arrival, which nothing here delays. Source: socket(7),
SO_TIMESTAMPNS.
"""

import gc
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from io import FileIO
from ipaddress import IPv4Address

from benchmarks.player import SO_TIMESTAMPNS, Client, Play, raise_file_limit
from demo.echo import EchoPath
from oxidize.protocol.constants import BATCH_PACKETS_MAX, TYPE_DATA

TURN_SECS = 0.0005
STAY_SECS = 2.0
LAST_REPLIES_SECS_MAX = 1.0
RECEIVE_BUFFER = 4 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
DATAGRAM_BYTES = 2048
TIME = struct.Struct("qq")  # struct timespec


@dataclass(frozen=True)
class Order:
    """rate: packets in a second; initiations: in a second, each of another peer until all had their turn."""

    rate: float
    initiations: float = 0.0


@dataclass
class Heard:
    """The result of a measurement.

    gap_ms: the longest time between two replies. slowest_ms: the longest from a request to its reply.
    unusable: datagrams that hold no reply in the session. handshakes: of the client. initiations: when they were sent.
    late_ms: the longest time by which this process itself was late.
    """

    sent: int = 0
    lost: int = 0
    twice: int = 0
    out_of_order: int = 0
    unusable: int = 0
    handshakes: int = 0
    gap_ms: float = 0.0
    slowest_ms: float = 0.0
    late_ms: float = 0.0
    initiations: list[float] = field(default_factory=list)  # seconds since the epoch

    def faults(self) -> str:
        """Return what no replacement may cause, empty if there was nothing of it."""
        counts = {
            "lost": self.lost,
            "twice": self.twice,
            "out of order": self.out_of_order,
            "unusable": self.unusable,
            "handshakes": self.handshakes,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


class Account:
    """The requests of one play and their replies, numbered from `first` on; times in nanoseconds since the epoch."""

    def __init__(self, first: int) -> None:
        self.heard = Heard()
        self._first = self._last = first
        self._sent_ns: list[int] = []
        self._came_ns: list[int] = []
        self._answered = bytearray()

    @property
    def sent(self) -> int:
        return len(self._sent_ns)

    @property
    def is_settled(self) -> bool:
        """Whether as many replies have come as requests were sent."""
        return len(self._came_ns) >= len(self._sent_ns)

    def note_request(self, at_ns: int) -> None:
        """Note the next request."""
        self._sent_ns.append(at_ns)
        self._answered.append(0)

    def note_reply(self, number: int, at_ns: int) -> None:
        """Note a reply; one to an earlier play has been counted as lost there."""
        heard, place = self.heard, number - self._first
        if place < 0:
            return
        heard.out_of_order += number < self._last
        self._last = max(self._last, number)
        heard.twice += self._answered[place]
        self._answered[place] = 1
        self._came_ns.append(at_ns)
        heard.slowest_ms = max(heard.slowest_ms, (at_ns - self._sent_ns[place]) / 1e6)

    def conclude(self) -> Heard:
        """Return what came of all."""
        heard, times = self.heard, self._came_ns
        heard.sent = len(self._sent_ns)
        heard.lost = heard.sent - sum(self._answered)
        heard.gap_ms = max((after - before for before, after in itertools.pairwise(times)), default=0) / 1e6
        return heard


class Echoes:
    """A client in a session, and the peers that begin one."""

    def __init__(self, play: Play) -> None:
        self._client, *self._others = (
            Client(play, key, address) for key, address in zip(play.private_keys, play.addresses, strict=True)
        )
        self._path = EchoPath(IPv4Address(self._client.address), IPv4Address(play.sink), 1)
        if not self._client.connect():
            raise SystemExit("the server does not answer; expected a session")
        self._client.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        with suppress(PermissionError):
            self._client.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._next = 1  # number of the next request
        self._account = Account(1)
        self._initiations: list[Callable[[], object]] = []

    def stay(self) -> None:
        """Ask once between two plays: a server that hears nothing of its client begins a new session."""
        (message,) = self._client.seal_packets([self._path.request(0, 0)])
        self._client.socket.send(message)

    def prepare(self, order: Order) -> None:
        """Do before a play what takes long, and forget what came since the last one."""
        self._client.drain()
        self._account = Account(self._next)
        others = self._others if order.initiations else []
        self._initiations = [partial(other.socket.send, other.initiation()) for other in others]

    def play(self, order: Order, is_over: Callable[[], bool]) -> Heard:
        """Ask until it is over, then wait for the last replies."""
        account, began, over, late = self._account, time.perf_counter(), False, 0.0
        turn = time_left = 0.0
        while not over or (time_left > 0 and not account.is_settled):
            now = time.perf_counter() - began
            if not over:
                self._ask(int(now * order.rate))
                self._initiate(int(now * order.initiations))
                over, time_left = is_over(), LAST_REPLIES_SECS_MAX
            self._hear()
            turn += TURN_SECS
            time_left -= TURN_SECS
            if (pause := began + turn - time.perf_counter()) > 0:
                time.sleep(pause)
            else:
                late = max(late, -pause)
                turn -= pause  # what was missed has been made up for
        account.heard.late_ms = late * 1e3
        return account.conclude()

    def _ask(self, due: int) -> None:
        if (count := due - self._account.sent) <= 0:
            return
        numbers = range(self._next, self._next + count)
        self._next += count
        send = self._client.socket.send
        for message in self._client.seal_packets([self._path.request(number, 0) for number in numbers]):
            self._account.note_request(time.time_ns())
            send(message)

    def _initiate(self, due: int) -> None:
        sent = self._account.heard.initiations
        while self._initiations and len(sent) < due:
            sent.append(time.time())
            self._initiations.pop()()

    def _hear(self) -> None:
        receive = self._client.socket.recvmsg
        while True:
            datagrams: list[bytes] = []
            times: list[bytes] = []
            with suppress(BlockingIOError):
                while len(datagrams) < BATCH_PACKETS_MAX:
                    datagram, control, _, _ = receive(DATAGRAM_BYTES, 64)
                    datagrams.append(datagram)
                    times.append(control[0][2])
            if not datagrams:
                return
            self._open(datagrams, times)

    def _open(self, datagrams: list[bytes], times: list[bytes]) -> None:
        """Note what is in one batch; behind a datagram without a packet the times are those of the one before."""
        heard = self._account.heard
        packets = self._client.open(datagrams)
        heard.handshakes += sum(datagram[0] != TYPE_DATA for datagram in datagrams)
        heard.unusable += len(datagrams) - len(packets)
        for packet, at in zip(packets, times, strict=False):
            if (reply := self._path.read_reply(packet)) is None:
                heard.unusable += 1
                continue
            secs, ns = TIME.unpack(at)
            self._account.note_reply(reply[0], secs * 1_000_000_000 + ns)


def precede_others() -> None:
    """Precede all other processes on a processor, where this one may."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def main() -> None:
    raise_file_limit()
    orders = FileIO(sys.stdin.fileno(), closefd=False)  # without a buffer, which would hide a line from the poll
    echoes = Echoes(Play(**json.loads(orders.readline())))
    precede_others()
    told = select.poll()
    told.register(orders, select.POLLIN)
    gc.disable()
    while True:
        while not told.poll(STAY_SECS * 1000):
            echoes.stay()
        if not (line := orders.readline()):
            return
        order = Order(**json.loads(line))
        echoes.prepare(order)
        print(flush=True)
        heard = echoes.play(order, lambda: bool(told.poll(0)))
        orders.readline()
        print(json.dumps(asdict(heard)), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
