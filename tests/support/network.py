"""A network in memory: hosts with real devices, and a clock that only tests advance.

All randomness comes from one seed. `World.exchange` carries datagrams until no device has any left, `World.run` lets
time pass and timers expire. A `Wire` may drop, duplicate or delay datagrams.
"""

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from math import inf
from random import Random
from typing import Any, TypeVar

from oxidize.protocol.changes import Change, PeerRemoved, change_key
from oxidize.protocol.constants import TYPE_INITIATION
from oxidize.protocol.counters import DROPS_START, SEND_COUNTER, DropReason, Total
from oxidize.protocol.crypto import public_key
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import LinkPolicy
from oxidize.protocol.messages import message_type
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.session_table import Transmit
from tests.support.counters import ArraySlots

EPOCH = 1_700_000_000.0
AnyHost = TypeVar("AnyHost", bound="Host")
Wire = Callable[[Endpoint, Endpoint, bytes], Iterable[bytes]]


def packet(source: str, destination: str, payload: bytes = b"ping") -> bytes:
    """Return an IPv4 packet of protocol 253 (RFC 3692: for experiments)."""
    length = (20 + len(payload)).to_bytes(2, "big")
    addresses = b"".join(bytes(map(int, address.split("."))) for address in (source, destination))
    return b"\x45\x00" + length + bytes(4) + b"\x40\xfd\x00\x00" + addresses + payload


def ipv6_packet(source: str, destination: str, payload: bytes = b"ping") -> bytes:
    """Return an IPv6 packet without a next header."""
    header = b"\x60\x00\x00\x00" + len(payload).to_bytes(2, "big") + b"\x3b\x40"
    return header + ip_address(source).packed + ip_address(destination).packed + payload


class Host:
    """One device with an address, and the state that its process keeps outside itself."""

    def __init__(self, world: "World", number: int, **options: Any) -> None:
        self.world = world
        self.options = options
        self.private_key = world.random.randbytes(32)
        self.public_key = public_key(self.private_key)
        self.inner = f"10.0.0.{number}"
        self.inner6 = f"fd00::{number:x}"
        self.endpoint = Endpoint(bytes([192, 0, 2, number]), 51820)
        self.peers: list[PeerSettings] = []
        self.slots = ArraySlots(256)
        self.journal: list[Change] = []
        self.live: dict[tuple[str, bytes], Change] = {}
        # The lengths of the journal known to a restoring successor and to a frozen predecessor.
        self.offered_at = self.frozen_at = 0
        self.flushed: list[Transmit] = []  # transmits of the former process that are not carried yet
        self.delivered: list[bytes] = []
        self.device: Device
        self.successor: Device

    def know(
        self,
        other: "Host",
        *,
        reachable: bool = True,
        keepalive: float = 0.0,
        psk: bytes = bytes(32),
        link: LinkPolicy | None = None,
    ) -> None:
        """Add a peer to the configuration."""
        endpoint = other.endpoint if reachable else None
        networks = (ip_network(f"{other.inner}/32"), ip_network(f"{other.inner6}/128"))
        self.peers.append(PeerSettings(other.public_key, psk, networks, endpoint, keepalive, link=link))

    def make_device(self) -> Device:
        """Return the device of a new process, which shares journal and counters and has restored nothing."""
        world = self.world
        device = Device(
            self.private_key,
            self.peers,
            self.make_slots(),
            world.random.randbytes,
            lambda: EPOCH + world.now,
            self.record,
            **self.options,
        )
        device.prepare()
        return device

    def make_slots(self) -> ArraySlots:
        slots = ArraySlots(self.slots.slot_count)
        slots.counters = self.slots.counters
        return slots

    def record(self, change: Change) -> None:
        self.journal.append(change)
        if isinstance(change, PeerRemoved):
            for key in [key for key in self.live if key[1] == change.peer]:
                del self.live[key]
        else:
            self.live[change_key(change)] = change

    def start(self) -> None:
        """Make a device without sessions."""
        self.device = self.make_device()

    def folded(self) -> list[Change]:
        """Return the journal without superseded changes and changes of removed peers."""
        return list(self.live.values())

    def cut_journal(self, length: int) -> None:
        """Cut the journal after `length` records, as if the process had died there."""
        kept = self.journal[:length]
        self.journal.clear()
        self.live.clear()
        for change in kept:
            Host.record(self, change)

    def replace(self) -> None:
        """Replace the process by one that restores from journal and counters alone, as after a kill."""
        self.start()
        self.device.restore(self.folded(), self.world.now)
        self.device.own()

    def offer(self) -> None:
        """Let a successor restore while this process serves."""
        self.successor = self.make_device()
        self.successor.restore(self.folded(), self.world.now)
        self.offered_at = len(self.journal)

    def freeze(self) -> None:
        """Stop serving."""
        self.flushed += self.device.take_transmits()
        self.device.freeze()
        self.frozen_at = len(self.journal)

    def commit(self) -> Device:
        """Let the successor own; return the predecessor, frozen or dead."""
        predecessor, successor = self.device, self.successor
        successor.restore(self.journal[self.offered_at :], self.world.now)
        successor.own()
        self.device = successor
        return predecessor

    def hand_over(self) -> Device:
        """Make a planned takeover; return the predecessor, which may thaw."""
        self.offer()
        self.freeze()
        return self.commit()

    def thaw(self, predecessor: Device) -> None:
        """Let the successor die and the predecessor continue from the state that it left."""
        predecessor.restore(self.journal[self.frozen_at :], self.world.now)
        predecessor.own()
        self.device = predecessor

    def receive(self, datagrams: list[bytes], source: Endpoint) -> None:
        self.delivered += self.device.receive_datagrams(datagrams, source, self.world.now)

    def handle_timeout(self) -> None:
        self.device.handle_timeout(self.world.now)

    def take_transmits(self) -> list[Transmit]:
        flushed, self.flushed = self.flushed, []
        return flushed + self.device.take_transmits()

    def peer(self, other: "Host") -> Peer:
        return self.device.peers[other.public_key]

    def send(self, other: "Host", payload: bytes = b"ping", count: int = 1) -> None:
        self.device.send_packets([packet(self.inner, other.inner, payload)] * count, self.world.now)

    def total(self, total: Total) -> int:
        return self.slots.counters[total]

    def dropped(self, reason: DropReason) -> int:
        return self.slots.counters[DROPS_START + reason]

    def drops(self) -> dict[str, int]:
        return {reason.name: self.dropped(reason) for reason in DropReason if self.dropped(reason)}

    def send_counter(self, other: "Host") -> int:
        current = self.peer(other).current
        assert current is not None
        return self.slots.counters[current.state.slot + SEND_COUNTER]


class World:
    """The hosts of one network, and its clock in seconds."""

    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.hosts: dict[Endpoint, Host] = {}
        self.log: list[tuple[Endpoint, Endpoint, bytes]] = []

    def host(self, **options: Any) -> Host:
        """Add a host; its device is made by `start`."""
        return self.add(Host(self, len(self.hosts) + 1, **options))

    def add(self, host: "AnyHost") -> "AnyHost":
        self.hosts[host.endpoint] = host
        return host

    def pair(self, *, keepalive: float = 0.0, link: LinkPolicy | None = None, **of_server: int) -> tuple[Host, Host]:
        """Return a started client that knows the server's endpoint, and a server that does not know the client's."""
        client, server = self.host(), self.host(**of_server)
        client.know(server, keepalive=keepalive, link=link)
        server.know(client, reachable=False)
        client.start()
        server.start()
        return client, server

    def move(self, host: Host, endpoint: Endpoint) -> None:
        """Change the endpoint of a host (roaming)."""
        del self.hosts[host.endpoint]
        host.endpoint = endpoint
        self.hosts[endpoint] = host

    def carry(self, wire: Wire | None = None) -> int:
        """Carry the queued datagrams of all devices once; return their number."""
        sent = 0
        queued = [(host, host.take_transmits()) for host in list(self.hosts.values())]
        for host, transmits in queued:
            for transmit in transmits:
                target = self.hosts.get(transmit.endpoint._replace(local_address=b"", local_interface=0))
                for datagram in transmit.datagrams:
                    sent += 1
                    self.log.append((host.endpoint, transmit.endpoint, datagram))
                    for arriving in [datagram] if wire is None else wire(host.endpoint, transmit.endpoint, datagram):
                        if target is not None:
                            target.receive([arriving], host.endpoint)
        return sent

    def exchange(self, wire: Wire | None = None) -> None:
        """Carry datagrams until no device has any left."""
        for _ in range(50):
            if not self.carry(wire):
                return
        raise AssertionError("the hosts talk for ever")

    def run(self, seconds: float, wire: Wire | None = None) -> None:
        """Let time pass; every timer expires when it is due."""
        end = self.now + seconds
        while True:
            deadlines = [due for host in self.hosts.values() if (due := host.device.next_deadline()) is not None]
            due = min(deadlines, default=inf)
            if due > end:
                break
            self.now = max(self.now, due)
            for host in list(self.hosts.values()):
                host.handle_timeout()
            self.exchange(wire)
        self.now = end


def lose_everything(source: Endpoint, destination: Endpoint, datagram: bytes) -> Iterable[bytes]:
    """Drop every datagram."""
    return []


def joined(client: Host, server: Host, psk: bytes = bytes(32), server_psk: bytes | None = None) -> tuple[Host, Host]:
    """Start two hosts that know each other's endpoints; server_psk: the preshared key of the server if it differs."""
    client.know(server, psk=psk)
    server.know(client, psk=psk if server_psk is None else server_psk)
    client.start()
    server.start()
    return client, server


def connected(world: World) -> tuple[Host, Host]:
    """Return a new client and a new server with a session."""
    client, server = world.pair()
    client.send(server)
    world.exchange()
    assert server.delivered == [packet(client.inner, server.inner)]
    server.delivered.clear()
    return client, server


def initiations(world: World) -> int:
    """Return the number of handshake initiations that were sent."""
    return sum(message_type(datagram) == TYPE_INITIATION for _, _, datagram in world.log)


def stranger(number: int) -> Endpoint:
    """Return an endpoint that no host has."""
    return Endpoint(bytes([203, number >> 16 & 255, number >> 8 & 255, number & 255]), 4000)


def hub(world: World, count: int) -> tuple[Host, list[bytes]]:
    """Return a started device with many peers without a session, and a packet to each of them."""
    server = world.host()
    server.slots = ArraySlots(5 * count + 64)
    for number in range(count):
        inner = f"10.1.{number >> 8}.{number & 255}"
        key = public_key(world.random.randbytes(32))
        endpoint = Endpoint(bytes([198, 18, number >> 8, number & 255]), 5000)
        server.peers.append(PeerSettings(key, allowed_ips=(ip_network(inner),), endpoint=endpoint))
    server.start()
    return server, [packet("10.9.0.9", f"10.1.{n >> 8}.{n & 255}") for n in range(count)]


def initiations_to(host: Host) -> list[Endpoint]:
    """Return where the initiations that a device has queued go."""
    return [
        transmit.endpoint
        for transmit in host.take_transmits()
        for datagram in transmit.datagrams
        if message_type(datagram) == TYPE_INITIATION
    ]
