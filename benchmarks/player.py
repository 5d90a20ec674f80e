"""Play WireGuard clients whose datagrams are sealed beforehand, or send to them from behind the server.

`bench_singles` starts it, in the namespace of the clients and on a processor of its own. Each line on its standard
input is a request of one of the classes below, in JSON with the class's name; each answer is one line of JSON.

Rule: every datagram is a send of its own, at its own time, and goes round robin through the clients. So no datagram
follows another of its flow at once, nothing coalesces them (GRO), and what the server gains by batches it has collected
itself. Sources: RFC 791, RFC 8200 and RFC 768 (the packets), proc(5) (/proc/pid/net).
"""

import gc
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from demo.echo import EchoPath, checksum
from oxidize.protocol.constants import BATCH_PACKETS_MAX, TYPE_DATA
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots

DISCARD_PORT = 9  # RFC 863
SOURCE_PORT = 5000
HANDSHAKE_SECS = 0.0025  # between two: a server answers a thousand in a second without cookies
RESPONSE_SECS_MAX = 2.0
RETRY_SECS = 5.1  # REKEY_TIMEOUT and a little
TRIES = 3
WARM_UP_PART = 1 / 3  # of the datagrams, before packets are counted for the rate
SMALLEST_BUFFER = 1  # the kernel makes it as large as it must be: one or two datagrams
MTU = 1420
QUIET_PORT = 20_000  # of the last client: not one that the kernel gives to others, net.ipv4.ip_local_port_range
PROBE_SECS = 0.01
PROBE_BUFFER = 1 << 20
LAST_REPLIES_SECS = 0.5
SO_TIMESTAMPNS = 35  # asm-generic/socket.h

Load = tuple[list[Callable[[], object]], float, Callable[[], int]]


@dataclass(frozen=True)
class Play:
    """The first line. host, port: the server's, outside; keys in hexadecimal; addresses: of the clients, inside.

    sink: the server's inner address. The rest is for `bench_singles`; outgoing: the fd of an unbound UDP socket in the
    namespace of the server.
    """

    host: str
    port: int
    public_key: str
    private_keys: list[str]
    addresses: list[str]
    sink: str
    outgoing: int = -1
    server_pid: int = 0
    server_link: str = ""


@dataclass(frozen=True)
class Send:
    """One measurement. payload: of UDP, bytes; rate: datagrams in a second; secs: how long that many are sent.

    inbound: from the clients through the tunnel to the server, else from the server's host to the clients. A rate of 0
    sends none. has_quiet: the last client has no part in it, but sends an echo request every PROBE_SECS. loaders: how
    many of the clients have a part in it, 0 for all.
    """

    inbound: bool
    payload: int
    rate: float
    secs: float
    has_quiet: bool = False
    loaders: int = 0


@dataclass(frozen=True)
class Sent:
    """What became of it. passed: packets that the server has passed on in the `window`, seconds, after the warm-up.

    round_trips_ms: of the quiet client's echo requests that were answered, of which `probes` were sent; answered: which
    of them.
    """

    sent: int
    secs: float
    passed: int
    window: float
    probes: int = 0
    round_trips_ms: tuple[float, ...] = ()
    answered: tuple[int, ...] = ()


def udp_packet(source: str, destination: str, payload: int) -> bytes:
    """Return an IP packet with a UDP datagram of zeros, with both checksums."""
    one, other = ip_address(source), ip_address(destination)
    body = struct.pack(">HHHH", SOURCE_PORT, DISCARD_PORT, 8 + payload, 0) + bytes(payload)
    pseudo = one.packed + other.packed + struct.pack(">HH", 17, len(body))
    total = checksum(pseudo + body + bytes(len(body) % 2)) or 0xFFFF
    body = body[:6] + total.to_bytes(2, "big") + body[8:]
    if isinstance(one, IPv6Address):
        return struct.pack(">IHBB", 6 << 28, len(body), 17, 64) + one.packed + other.packed + body
    assert isinstance(other, IPv4Address)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, 17, 0) + one.packed + other.packed
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


class Client:
    """One peer of the server: a device and a socket."""

    def __init__(self, play: Play, private_key: str, address: str, port: int = 0) -> None:
        host = ip_address(play.host)
        self.address = address
        self._packet = partial(udp_packet, address, play.sink)
        self._endpoint = Endpoint(host.packed, play.port)
        family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST_BUFFER)
        self.socket.bind(("", port))
        self.socket.connect((play.host, play.port))
        self._server = PeerSettings(
            bytes.fromhex(play.public_key),
            allowed_ips=(ip_network("::/0"), ip_network("0.0.0.0/0")),
            endpoint=self._endpoint,
        )
        self._private_key = bytes.fromhex(private_key)

    def initiation(self) -> bytes:
        """Return the message that begins a session, in a device without a past."""
        self._begin()
        (message,) = self._sealed([self._packet(0)])
        return message

    def _begin(self) -> None:
        self._device = Device(
            self._private_key, [self._server], ArraySlots(8), os.urandom, time.time, lambda _: None, mtu=MTU
        )

    def connect(self) -> bool:
        """Make a session, in a device without a past; return whether the server answered."""
        self._begin()
        self.drain()
        self.socket.settimeout(RESPONSE_SECS_MAX)
        for _ in range(TRIES):
            self._transmit([self._packet(0)])
            with suppress(TimeoutError):
                response = self.socket.recv(2048)
                self._device.receive_datagrams([response], self._endpoint, time.monotonic())
                self._transmit([])
                if self._device.live_sessions(time.monotonic()):
                    self.socket.setblocking(False)  # with a timeout, each send would ask whether it may
                    return True
            time.sleep(RETRY_SECS)
        return False

    def drain(self) -> None:
        """Drop what waits in the socket."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.socket.recv(2048)

    def _transmit(self, packets: list[bytes]) -> None:
        for datagram in self._sealed(packets):
            self.socket.send(datagram)

    def _sealed(self, packets: Sequence[bytes]) -> list[bytes]:
        if packets:
            self._device.send_packets(packets, time.monotonic())
        return [bytes(datagram) for transmit in self._device.take_transmits() for datagram in transmit.datagrams]

    def seal(self, payload: int, count: int) -> list[bytes]:
        """Return `count` data messages with a UDP datagram each."""
        return self.seal_packets([self._packet(payload)] * count)

    def seal_packets(self, packets: Sequence[bytes]) -> list[bytes]:
        """Return a data message for each packet."""
        messages: list[bytes] = []
        while len(messages) < len(packets):
            more = self._sealed(packets[len(messages) : len(messages) + BATCH_PACKETS_MAX])
            messages += [each for each in more if each[0] == TYPE_DATA]
        return messages

    def open(self, datagrams: Sequence[bytes]) -> list[bytes]:
        """Return the packets in BATCH_PACKETS_MAX datagrams or fewer from the server."""
        return [bytes(each) for each in self._device.receive_datagrams(datagrams, self._endpoint, time.monotonic())]


class Probe:
    """Echo requests of one client, and when their replies arrived: the kernel's times, so nothing here delays them."""

    def __init__(self, client: Client, sink: str, count: int) -> None:
        self._client = client
        self._path = EchoPath(IPv4Address(client.address), IPv4Address(sink), 1)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PROBE_BUFFER)
        client.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sent_ns: dict[int, int] = {}
        messages = client.seal_packets([self._path.request(number, 0) for number in range(count)])
        self.actions = [partial(self._send, number, message) for number, message in enumerate(messages)]

    def _send(self, number: int, message: bytes) -> None:
        self._sent_ns[number] = time.time_ns()
        self._client.socket.send(message)

    def round_trips_ms(self) -> dict[int, float]:
        """Return the times of all that were answered, by number, after the last replies have had time to come."""
        time.sleep(LAST_REPLIES_SECS)
        found = {}
        with suppress(BlockingIOError):
            while True:
                datagram, control, _, _ = self._client.socket.recvmsg(2048, 64)
                for packet in self._client.open([datagram]):
                    if (reply := self._path.read_reply(packet)) is not None:
                        secs, ns = struct.unpack("qq", control[0][2])
                        found[reply[0]] = secs * 1_000_000_000 + ns
        return {number: (found[number] - sent) / 1e6 for number, sent in self._sent_ns.items() if number in found}


class Player:
    """All clients, and the socket behind the server."""

    def __init__(self, play: Play) -> None:
        self._play = play
        ports = [*[0] * (len(play.addresses) - 1), QUIET_PORT]
        self._clients = [
            Client(play, *each) for each in zip(play.private_keys, play.addresses, ports, strict=True)
        ]  # fmt: skip
        family = socket.AF_INET6 if ":" in play.sink else socket.AF_INET
        self._outgoing = socket.socket(family, socket.SOCK_DGRAM, fileno=play.outgoing)

    def connect(self) -> int:
        """Let every client make a session; return how many have one."""
        connected = 0
        for client in self._clients:
            connected += client.connect()
            time.sleep(HANDSHAKE_SECS)
        return connected

    def send(self, order: Send) -> Sent:
        """Carry out an order."""
        if not order.has_quiet:
            return pace(*self._load(order, self._clients))
        probe = Probe(self._clients[-1], self._play.sink, round(order.secs / PROBE_SECS))
        if order.rate:
            actions, interval, count = self._load(order, self._clients[:-1])
            step = len(actions) // len(probe.actions)
            for number, action in enumerate(probe.actions):
                actions.insert(number * (step + 1), action)
            sent = pace(actions, interval, count)
        else:
            sent = pace(probe.actions, PROBE_SECS, partial(refused_at_sink, self._play.server_pid))
        times = probe.round_trips_ms()
        return replace(
            sent, probes=len(probe.actions), round_trips_ms=tuple(times.values()), answered=tuple(times)
        )  # fmt: skip

    def _load(self, order: Send, clients: Sequence[Client]) -> Load:
        """Return what to send, the seconds between two of them, and how to count what is passed on."""
        clients = clients[: order.loaders or None]
        rounds = max(1, round(order.rate * order.secs / len(clients)))
        actions: list[Callable[[], object]]
        if order.inbound:
            sealed = [client.seal(order.payload, rounds) for client in clients]
            sends = [client.socket.send for client in clients]
            actions = [partial(send, each[n]) for n in range(rounds) for send, each in zip(sends, sealed, strict=True)]
            count = partial(refused_at_sink, self._play.server_pid)
        else:
            send_to, payload = self._outgoing.sendto, bytes(order.payload)
            actions = [partial(send_to, payload, (client.address, DISCARD_PORT)) for client in clients]
            actions *= rounds
            count = partial(sent_by_link, self._play.server_pid, self._play.server_link)
        return actions, 1 / order.rate, count


def pace(actions: Sequence[Callable[[], object]], interval: float, count: Callable[[], int]) -> Sent:
    """Carry out each action at its time, or at once where it is late."""
    clock = time.perf_counter
    warm = int(len(actions) * WARM_UP_PART)
    gc.disable()
    began = due = clock()
    for number, action in enumerate(actions):
        while clock() < due:
            pass
        due += interval
        with suppress(OSError):  # a queue is full: that is a lost packet
            action()
        if number == warm:
            before, since = count(), clock()
    ended, after = clock(), count()
    gc.enable()
    return Sent(len(actions), ended - began, after - before, ended - since)


def refused_at_sink(pid: int) -> int:
    """Return how many packets the sink's socket has refused: it is always full, so all that were delivered to it.

    pid: a process in the namespace of the server.
    """
    for table in ("udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{DISCARD_PORT:04X}"):
                return int(fields[-1])
    raise RuntimeError(f"port {DISCARD_PORT}: expected a socket in the namespace of process {pid}")


def sent_by_link(pid: int, link: str) -> int:
    """Return how many packets an interface in the namespace of a process has sent."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
        name, _, figures = line.partition(":")
        if name.strip() == link:
            return int(figures.split()[9])
    raise RuntimeError(f"{link}: expected an interface in the namespace of process {pid}")


def raise_file_limit() -> None:
    """Allow a socket for each client."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    raise_file_limit()
    player = Player(Play(**json.loads(sys.stdin.readline())))
    for line in sys.stdin:
        order: dict[str, Any] | None = json.loads(line)
        answer: object = player.connect() if order is None else asdict(player.send(Send(**order)))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
