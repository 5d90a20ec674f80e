"""The clients of the demonstration: WireGuard devices with a socket each, all in one process.

Rule: the clients know only the server's address and key, and report only their own observations. Requests are sent on a
fixed schedule: a slow server does not reduce their rate. Run as `python -m demo.clients`: settings as JSON on standard
input, records (`demo.records`) on standard output. The process ends with its schedule, or at once when standard input
closes.
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
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.state.arena import Arena

FINISH = b"finish\n"  # on standard input
WARM_UP_SECS_MAX = 15.0  # for every client's first handshake: two retries
LINGER_SECS = 1.0  # the wait for missing replies ends after this time without one
LINGER_SECS_MAX = 20.0  # of that wait in all: a slow machine may need it to clear a backlog
LAST_LOOK_SECS = 0.1  # for duplicates that arrive after the last reply
REPORT_INTERVAL_SECS = 0.05
TIMER_INTERVAL_SECS = 0.01
START_DELAY_SECS = 0.05  # from the last warm-up reply to the first request of the schedule
RECEIVE_BUFFER_BYTES = 1 << 20
DATAGRAM_BYTES_MAX = 2048
LATE_BURSTS_MAX = 32  # sent between two reads of replies, when the schedule is late
_UDP_SEGMENT = 103  # linux/udp.h
_SEGMENT = struct.Struct("H")
SLOTS_PER_CLIENT = 16  # a peer and its keypairs, with some spare


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """One client; keys in hexadecimal, address inside the tunnel."""

    private_key: str
    preshared_key: str
    address: str


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """All clients: the server's addresses outside and inside the tunnels, the rate and the duration."""

    server_host: str
    server_port: int
    server_public_key: str
    server_address: str
    clients: tuple[ClientSettings, ...]
    packets_per_second: float  # of all clients together
    seconds: float
    burst: int = 1  # requests that a client sends at once; the rate stays the same
    until_told: bool = False  # continue after `seconds` until FINISH arrives

    def to_json(self) -> str:
        """Return the settings as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "FleetSettings":
        """Return the settings from the output of `to_json`."""
        fields = json.loads(text)
        fields["clients"] = tuple(ClientSettings(**client) for client in fields["clients"])
        return cls(**fields)


def _clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _ignore_change(_change: Change) -> None:
    """Discard the change: a client of the demonstration has no successor."""


class Client:
    """One client: a device, its socket, and its numbered requests."""

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
        """Read the datagrams that are queued in the socket, one batch at most, and record the packets in them."""
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
        """Run the device's timers that are due."""
        now = _clock_ns() / 1e9
        deadline = self._device.next_deadline()
        if deadline is not None and deadline <= now:
            self._device.handle_timeout(now)
            self._transmit()

    def _transmit(self) -> None:
        for transmit in self._device.take_transmits():
            datagrams = transmit.datagrams
            if len(datagrams) > 1 and len(set(map(len, datagrams))) == 1:
                # UDP_SEGMENT (udp(7)): one call, and one socket buffer at the receiver, for all datagrams.
                self._send(b"".join(datagrams), [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(len(datagrams[0])))])
            else:
                for datagram in datagrams:
                    self._send(datagram, [])

    def _send(self, data: bytes, control: list[tuple[int, int, bytes]]) -> None:
        try:
            self.socket.sendmsg([data], control)
        except ConnectionRefusedError:
            # The error is about an earlier datagram; this one was not sent, and the device does not repeat it.
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
        """Record the handshakes and drops that the device has counted since the last call."""
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
    """Writer of records to a pipe, which never blocks on its reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()
        os.set_blocking(fd, False)

    def add(self, records: list[Record]) -> None:
        """Queue records and write as much as the pipe takes; raises BrokenPipeError once the reader is gone."""
        self._pending += encode(records)
        try:
            while self._pending:
                del self._pending[: os.write(self._fd, self._pending)]
        except BlockingIOError:
            return

    def finish(self) -> None:
        """Write all queued records, blocking on the reader."""
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
        """Make the handshakes, send the schedule and wait for the last replies; return early when told to stop."""
        for client in self._clients:
            client.send_next(1)
        self._wait_for_replies(WARM_UP_SECS_MAX)  # a missing one shows in the verdict
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
            # A few at a time even when late: replies must be read in between.
            for number in range(done, min(due, done + LATE_BURSTS_MAX)):
                self._clients[number % len(self._clients)].send_next(self._burst)
                done = number + 1
            self._turn(max(0.0, start + done * self._interval - _clock_ns() / 1e9))

    def _wait_for_replies(self, timeout: float) -> None:
        deadline = _clock_ns() / 1e9 + timeout
        while any(client.waiting for client in self._clients) and _clock_ns() / 1e9 < deadline and not self._stopped:
            self._turn(TIMER_INTERVAL_SECS)

    def _wait_for_last_replies(self) -> None:
        """Wait as long as replies keep arriving: a late reply is not lost."""
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
        """Wait for at most `timeout` seconds, read what arrived, run what is due. select(2) counts in microseconds."""
        readable, _, _ = select.select([*self._by_fd, self._control_fd], [], [], timeout)
        for ready in readable:
            if ready == self._control_fd:
                self._open_ended = False  # FINISH or the end of file
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the demonstration, which then ends this process
    settings = FleetSettings.from_json(sys.stdin.readline())
    fleet = Fleet(settings, sys.stdin.fileno(), sys.stdout.fileno())
    # A garbage collection during the schedule would show as latency, and this process makes few reference cycles.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        fleet.run()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails too
    finally:
        fleet.close()


if __name__ == "__main__":
    main()
