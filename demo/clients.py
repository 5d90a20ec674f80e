"""The clients of the demonstration: WireGuard devices with a socket each, all in one process of their own.

Rule: they know nothing of the server but its address and key, and report only what they saw themselves. Requests leave
on a schedule fixed beforehand: a server that answers late does not make them send less. Run as
`python -m demo.clients`: settings as JSON on standard input, records (`demo.records`) on standard output; it
ends when its schedule does, or at once when standard input closes.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, ip_network

from demo.echo import EchoPath
from demo.records import Kind, Record, encode
from oxidize.protocol.changes import Change
from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.counters import DROPS_START, TOTALS_WORDS, Total
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import PeerSettings
from oxidize.state.arena import Arena

FINISH = b"finish\n"  # on standard input
WARM_UP_SECS_MAX = 15.0  # for every client's first handshake: two retries
LINGER_SECS = 1.0  # for the last replies, where any is missing: without one for so long, none comes any more
LINGER_SECS_MAX = 20.0  # where they keep coming: a slow machine works off what piled up
LAST_LOOK_SECS = 0.1  # for what comes after the last reply: a duplicate
REPORT_INTERVAL_SECS = 0.05
TIMER_INTERVAL_SECS = 0.01
START_DELAY_SECS = 0.05  # from the last warm-up reply to the first request of the schedule
RECEIVE_BUFFER_BYTES = 1 << 20
DATAGRAM_BYTES_MAX = 2048
LATE_BURSTS_MAX = 32  # sent without a look at the replies, when we are late
_UDP_SEGMENT = 103  # linux/udp.h
_SEGMENT = struct.Struct("H")
SLOTS_PER_CLIENT = 16  # a peer and its keypairs, and a few to spare


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """One client; keys in hexadecimal, address inside the tunnel."""

    private_key: str
    preshared_key: str
    address: str


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """All clients: where the server is outside and inside the tunnels, and how much is sent for how long."""

    server_host: str
    server_port: int
    server_public_key: str
    server_address: str
    clients: tuple[ClientSettings, ...]
    packets_per_second: float  # of all clients together
    seconds: float
    burst: int = 1  # requests that a client sends at once; the rate stays the same
    until_told: bool = False  # go on after `seconds` until FINISH comes

    def to_json(self) -> str:
        """Return it as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "FleetSettings":
        """Return what `to_json` wrote."""
        fields = json.loads(text)
        fields["clients"] = tuple(ClientSettings(**client) for client in fields["clients"])
        return cls(**fields)


def _clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _ignore_change(_change: Change) -> None:
    """Forget it: a client of the demonstration has no successor."""


class Client:
    """One device, its socket, and the numbers of its requests."""

    def __init__(self, index: int, settings: ClientSettings, fleet: FleetSettings) -> None:
        self.index = index
        self.waiting: set[int] = set()  # requests without a reply
        self.records: list[Record] = []
        self._number = 0
        self._path = EchoPath(IPv4Address(settings.address), IPv4Address(fleet.server_address), index)
        self._endpoint = Endpoint(IPv4Address(fleet.server_host).packed, fleet.server_port)
        self._arena = Arena.create(SLOTS_PER_CLIENT)
        self._handshakes = 0
        self._dropped = [0] * (TOTALS_WORDS - DROPS_START)
        peer = PeerSettings(
            public_key=bytes.fromhex(fleet.server_public_key),
            preshared_key=bytes.fromhex(settings.preshared_key),
            allowed_ips=(ip_network(fleet.server_address),),
            endpoint=self._endpoint,
        )
        private_key = bytes.fromhex(settings.private_key)
        self._device = Device(private_key, [peer], self._arena, os.urandom, time.time, _ignore_change)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.connect((fleet.server_host, fleet.server_port))  # so that the kernel reports an unreachable port

    def send_next(self, count: int) -> None:
        """Send the next `count` requests at once."""
        sent_ns = _clock_ns()
        numbers = range(self._number, self._number + count)
        self._number += count
        self.records += [Record(Kind.SENT, self.index, number, sent_ns / 1e9) for number in numbers]
        self.waiting.update(numbers)
        self._device.send_packets([self._path.request(number, sent_ns) for number in numbers], sent_ns / 1e9)
        self._transmit()

    def receive(self) -> None:
        """Read everything that waits in the socket and record what it was."""
        datagrams: list[bytes] = []
        while len(datagrams) < BATCH_PACKETS_MAX:
            try:
                datagrams.append(self.socket.recv(DATAGRAM_BYTES_MAX))
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                self._note_unreachable()
        if not datagrams:
            return
        now = _clock_ns() / 1e9
        for packet in self._device.receive_datagrams(datagrams, self._endpoint, now):
            reply = self._path.read_reply(packet)
            if reply is None or reply[0] >= self._number:
                self.records.append(Record(Kind.CORRUPTED, self.index, 0, now))
            else:
                self.records.append(Record(Kind.REPLY, self.index, reply[0], now, reply[1] / 1e9))
                self.waiting.discard(reply[0])
        self._note_counters(now)
        self._transmit()

    def run_timers(self) -> None:
        """Do what the device's timers ask for."""
        now = _clock_ns() / 1e9
        deadline = self._device.next_deadline()
        if deadline is not None and deadline <= now:
            self._device.handle_timeout(now)
            self._transmit()

    def _transmit(self) -> None:
        for transmit in self._device.take_transmits():
            datagrams = transmit.datagrams
            if len(datagrams) > 1 and len(set(map(len, datagrams))) == 1:
                # UDP_SEGMENT (udp(7)): one call, and one buffer of the kernel's at the receiver, for all of them.
                self._send(b"".join(datagrams), [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(len(datagrams[0])))])
            else:
                for datagram in datagrams:
                    self._send(datagram, [])

    def _send(self, data: bytes, control: list[tuple[int, int, bytes]]) -> None:
        try:
            self.socket.sendmsg([data], control)
        except ConnectionRefusedError:
            # That is about a datagram sent before, and nothing was sent now, and the device will not repeat it.
            self._note_unreachable()
            with contextlib.suppress(ConnectionRefusedError):
                self.socket.sendmsg([data], control)

    def close(self) -> None:
        """Close the socket and the counters."""
        self.socket.close()
        self._arena.close()

    def _note_unreachable(self) -> None:
        self.records.append(Record(Kind.UNREACHABLE, self.index, 0, _clock_ns() / 1e9))

    def _note_counters(self, now: float) -> None:
        """Record handshakes and drops that the device has counted since the last look."""
        counters = self._arena.counters
        if counters[Total.HANDSHAKES_INITIATOR] != self._handshakes:
            self._handshakes = counters[Total.HANDSHAKES_INITIATOR]
            self.records.append(Record(Kind.HANDSHAKE, self.index, self._handshakes, now))
        dropped = counters[DROPS_START:TOTALS_WORDS].tolist()
        if dropped != self._dropped:
            for reason, (before, after) in enumerate(zip(self._dropped, dropped, strict=True)):
                self.records += [Record(Kind.DROPPED, self.index, reason, now)] * (after - before)
            self._dropped = dropped


class Reporter:
    """Writes records to a pipe without ever waiting for its reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()
        os.set_blocking(fd, False)

    def add(self, records: list[Record]) -> None:
        """Take these records and write as much as fits; raises BrokenPipeError when nobody reads any more."""
        self._pending += encode(records)
        try:
            while self._pending:
                del self._pending[: os.write(self._fd, self._pending)]
        except BlockingIOError:
            return

    def finish(self) -> None:
        """Write the rest, waiting for the reader."""
        os.set_blocking(self._fd, True)
        self.add([])


class Fleet:
    """All clients and their schedule."""

    def __init__(self, settings: FleetSettings, control_fd: int, report_fd: int) -> None:
        self._clients = [Client(i, client, settings) for i, client in enumerate(settings.clients)]
        self._by_fd = {client.socket.fileno(): client for client in self._clients}
        self._control_fd = control_fd
        self._reporter = Reporter(report_fd)
        self._burst = settings.burst
        self._interval = settings.burst / settings.packets_per_second
        self._planned = round(settings.seconds / self._interval)  # bursts
        self._next_report = self._next_timers = 0.0
        self._stopped = False
        self._open_ended = settings.until_told

    def run(self) -> None:
        """Shake hands, send the schedule, wait for the last replies; returns early when told to stop."""
        for client in self._clients:
            client.send_next(1)
        self._wait_for_replies(WARM_UP_SECS_MAX)  # where one never comes, the verdict will say so
        self._send_all()
        self._wait_for_last_replies()
        self._wait(LAST_LOOK_SECS)
        if not self._stopped:
            self._reporter.add([*self._take_records(), Record(Kind.FINISHED, 0, 0, _clock_ns() / 1e9)])
            self._reporter.finish()

    def _send_all(self) -> None:
        start = _clock_ns() / 1e9 + START_DELAY_SECS
        self._reporter.add([Record(Kind.STARTED, 0, 0, start)])
        done = 0
        while not self._stopped and (done < self._planned or self._open_ended):
            now = _clock_ns() / 1e9
            due = int((now - start) / self._interval) + 1 if now >= start else 0
            if not self._open_ended:
                due = min(due, max(done, self._planned))
            # A few at a time, however late we are: replies must be read meanwhile.
            for number in range(done, min(due, done + LATE_BURSTS_MAX)):
                self._clients[number % len(self._clients)].send_next(self._burst)
                done = number + 1
            self._turn(max(0.0, start + done * self._interval - _clock_ns() / 1e9))

    def _wait_for_replies(self, timeout: float) -> None:
        deadline = _clock_ns() / 1e9 + timeout
        while any(client.waiting for client in self._clients) and _clock_ns() / 1e9 < deadline and not self._stopped:
            self._turn(TIMER_INTERVAL_SECS)

    def _wait_for_last_replies(self) -> None:
        """Wait for as long as replies keep coming: one that is late is not lost."""
        deadline = _clock_ns() / 1e9 + LINGER_SECS_MAX
        before = None
        while before != (missing := self._missing) and _clock_ns() / 1e9 < deadline:
            before = missing
            self._wait_for_replies(LINGER_SECS)

    @property
    def _missing(self) -> int:
        return sum(len(client.waiting) for client in self._clients)

    def _wait(self, seconds: float) -> None:
        deadline = _clock_ns() / 1e9 + seconds
        while _clock_ns() / 1e9 < deadline and not self._stopped:
            self._turn(TIMER_INTERVAL_SECS)

    def _turn(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds, read what came, do what is due. select(2) takes microseconds."""
        readable, _, _ = select.select([*self._by_fd, self._control_fd], [], [], timeout)
        for ready in readable:
            if ready == self._control_fd:
                self._open_ended = False  # it is FINISH, or the end of file
                self._stopped = not os.read(self._control_fd, 4096)
            else:
                self._by_fd[ready].receive()
        now = _clock_ns() / 1e9
        if now >= self._next_timers:
            self._next_timers = now + TIMER_INTERVAL_SECS
            for client in self._clients:
                client.run_timers()
        if now >= self._next_report:
            self._next_report = now + REPORT_INTERVAL_SECS
            self._reporter.add(self._take_records())

    def _take_records(self) -> list[Record]:
        records: list[Record] = []
        for client in self._clients:
            records += client.records
            client.records = []
        return records

    def close(self) -> None:
        """Close the sockets, and the counters with them."""
        for client in self._clients:
            client.close()


def main() -> None:
    """Run the clients as this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demonstration, which then ends us
    settings = FleetSettings.from_json(sys.stdin.readline())
    fleet = Fleet(settings, sys.stdin.fileno(), sys.stdout.fileno())
    # A collection in the middle of the schedule would be seen as latency; nothing here makes cycles worth collecting.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        fleet.run()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would fail as well
    finally:
        fleet.close()


if __name__ == "__main__":
    main()
