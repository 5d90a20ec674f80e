"""Play one client that sends and receives at an even pace while its server is replaced, and peers that begin sessions.

`bench_blackout` starts it. After the settings (`benchmarks.player.Play`) each `Order` on its standard input, a line of
JSON, begins a play, which is answered by an empty line; the next line ends it, and is answered by `Heard`, in JSON.

Rule: a gap is the server's. So this process precedes all others on its processor where it may (sched(7), SCHED_FIFO),
sleeps between its turns, and takes the kernel's times of arrival, which nothing here delays. While it plays it only
sends and receives, and so leaves the processors to the server: requests are sealed before, replies are opened after
it. Source: socket(7), SO_TIMESTAMPNS.
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
from collections import deque
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
STOCK_SECS = 3.0  # of requests that are sealed before a play; a longer one seals the others in it
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
        self._stock: deque[bytes] = deque()  # sealed requests, in the order of their numbers
        self._next, self._next_sealed = 1, 1  # number of the next request to send, and to seal
        self._received: list[tuple[bytes, bytes]] = []  # datagrams, each with its time
        self._account = Account(1)
        self._initiations: list[Callable[[], object]] = []

    def stay(self) -> None:
        """Ask once between two plays: a server that hears nothing of its client begins a new session."""
        self._client.socket.send(self._take_requests(1)[0])

    def _seal(self, count: int) -> None:
        """Seal the next requests."""
        numbers = range(self._next_sealed, self._next_sealed + count)
        self._next_sealed += count
        self._stock += self._client.seal_packets([self._path.request(number, 0) for number in numbers])

    def _take_requests(self, count: int) -> list[bytes]:
        if count > len(self._stock):
            self._seal(count - len(self._stock))
        self._next += count
        return [self._stock.popleft() for _ in range(count)]

    def prepare(self, order: Order) -> None:
        """Do before a play what takes long, and forget what came since the last one."""
        self._client.drain()
        self._received.clear()
        self._account = Account(self._next)
        self._seal(max(0, round(order.rate * STOCK_SECS) - len(self._stock)))
        others = self._others if order.initiations else []
        self._initiations = [partial(other.socket.send, other.initiation()) for other in others]

    def play(self, order: Order, is_over: Callable[[], bool]) -> Heard:
        """Ask until it is over, then wait for the last replies."""
        account, began, over, late = self._account, time.perf_counter(), False, 0.0
        turn = time_left = 0.0
        while not over or (time_left > 0 and len(self._received) < account.sent):
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
        for start in range(0, len(self._received), BATCH_PACKETS_MAX):
            self._open(self._received[start : start + BATCH_PACKETS_MAX])
        return account.conclude()

    def _ask(self, due: int) -> None:
        if (count := due - self._account.sent) <= 0:
            return
        send = self._client.socket.send
        for message in self._take_requests(count):
            self._account.note_request(time.time_ns())
            send(message)

    def _initiate(self, due: int) -> None:
        sent = self._account.heard.initiations
        while self._initiations and len(sent) < due:
            sent.append(time.time())
            self._initiations.pop()()

    def _hear(self) -> None:
        receive, received = self._client.socket.recvmsg, self._received
        with suppress(BlockingIOError):
            while True:
                datagram, control, _, _ = receive(DATAGRAM_BYTES, 64)
                received.append((datagram, control[0][2]))

    def _open(self, received: list[tuple[bytes, bytes]]) -> None:
        """Note what is in one batch; behind a datagram without a packet the times are those of the one before."""
        datagrams, times = [datagram for datagram, _ in received], [at for _, at in received]
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
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))


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
