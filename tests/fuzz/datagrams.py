"""Two devices, a network that loses, repeats and forges, and a peer that sends what it likes inside the tunnel.

Checked: nothing raises; a packet is delivered only from a peer that may have that source; a datagram that was sealed
leaves once; session indices and timers stay bounded.

Allowed exceptions: none.
"""

from collections.abc import Iterable

from oxidize.protocol.constants import TYPE_DATA, TYPE_INITIATION, TYPE_RESPONSE
from oxidize.protocol.cookie import CookieJar
from oxidize.protocol.counters import SEND_COUNTER
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import message_type
from tests.fuzz.script import Script
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import Host, World

STEPS_MAX = 40
INDICES_MAX = 40  # of one peer: three keypairs and a handshake, while none of the old ones has been let go
TIMERS_MAX = 60
COUNTER_MAX = (1 << 64) - (1 << 13) - 200
MACS_BYTES = 32

Seen = list[tuple[Endpoint, Endpoint, bytes]]


class Network:
    """The state of one run."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.world = World(script.number(3))
        self.seen: Seen = []
        link = DEFAULT_POLICY if script.flag() else None
        options = {"under_load_handshakes": 2} if script.flag() else {}
        client, server = self.world.host(), self.world.host(**options)
        client.know(server, link=link)
        server.know(client, reachable=script.flag())
        client.start()
        server.start()
        if link:
            client.device.begin_links(self.world.now)
        self.hosts = (client, server)
        self.has_link = link is not None
        self.sealed: set[tuple[bytes, bytes]] = set()

    def wire(self, source: Endpoint, target: Endpoint, datagram: bytes) -> list[bytes]:
        self.seen.append((source, target, datagram))
        if message_type(datagram) == TYPE_DATA:
            # Receiver and counter: a pair comes once from an honest sender, whatever happens to its process.
            name = (source.address, bytes(datagram[4:16]))
            assert name not in self.sealed, f"sealed twice: {name}"
            self.sealed.add(name)
        return [datagram]

    def lose(self, source: Endpoint, target: Endpoint, datagram: bytes) -> list[bytes]:
        self.wire(source, target, datagram)
        return []

    def forge(self, host: Host, other: Host) -> None:
        script = self.script
        if not self.seen:
            return
        source, _, datagram = script.pick(self.seen)
        forged = script.broken(datagram)
        if script.flag() and len(forged) > MACS_BYTES and forged[0] in {TYPE_INITIATION, TYPE_RESPONSE}:
            forged = CookieJar(host.public_key).stamp(forged[:-MACS_BYTES], self.world.now)
        if script.flag():
            source = Endpoint(script.take(4).ljust(4, b"\1"), script.number(65535))
        self.deliver(host, other, [forged] * script.number(3, 1), source)

    def deliver(self, host: Host, other: Host, datagrams: list[bytes], source: Endpoint) -> None:
        before = len(host.delivered)
        host.receive(datagrams, source)
        for packet in host.delivered[before:]:
            assert packet[12:16] == bytes(map(int, other.inner.split("."))), f"a source that is not allowed: {packet!r}"

    def whisper(self, host: Host, other: Host) -> None:
        """Let a peer with a genuine session send anything inside of it."""
        peer = host.peer(other)
        if peer.current is None or peer.endpoint is None or peer.current.is_expired(self.world.now):
            return
        before = len(other.delivered)
        packets = [self.script.some(100) for _ in range(self.script.number(4, 1))]
        host.device._seal(peer, peer.current, peer.endpoint, packets, self.world.now)
        self.world.exchange(self.wire)
        for packet in other.delivered[before:]:
            assert packet[12:16] == bytes(map(int, host.inner.split("."))), f"a source that is not allowed: {packet!r}"

    def age(self, host: Host, other: Host) -> None:
        """Let a host have sent many datagrams already."""
        current = host.peer(other).current
        if current is not None:
            words, at = host.slots.counters, current.state.slot + SEND_COUNTER
            words[at] = max(words[at], self.script.number(COUNTER_MAX))


def run(data: bytes) -> None:
    script = Script(data)
    network = Network(script)
    world = network.world
    for _ in range(STEPS_MAX):
        if not script:
            break
        host, other = network.hosts if script.flag() else network.hosts[::-1]
        match script.number(13):
            case 0:
                host.send(other, script.some(60))
            case 1:
                world.exchange(network.wire)
            case 2:
                world.run(float(script.number(200)), network.wire)
            case 3:
                world.carry(network.lose)
            case 4 | 5 | 6:
                network.forge(host, other)
            case 7:
                network.deliver(host, other, [script.some(200)], other.endpoint)
            case 8:
                network.whisper(host, other)
            case 9:
                host.device.send_packets([script.some(60)], world.now)
            case 10 if not network.has_link:
                host.flushed += host.device.take_transmits()
                host.replace()
            case 11:
                network.age(host, other)
            case 12:
                host.device.on_unreachable(other.endpoint.remote, world.now, refused=script.flag())
            case 13:
                host.device.on_route_change(world.now)
    for host in network.hosts:
        host.take_transmits()
        assert len(host.device._table.indices) <= INDICES_MAX
        assert len(host.device._schedule._due) <= TIMERS_MAX


def seeds() -> Iterable[bytes]:
    setups = [bytes([0, 0, 0, 0]), bytes([1, 1, 0, 1]), bytes([2, 0, 1, 1])]
    send, exchange, wait, lose = b"\1\0\5hello", b"\1\1", b"\1\2\x78", b"\1\3"
    stories = [
        send + exchange + send + exchange,
        send + lose + wait + send + exchange,
        send + exchange + wait + send + exchange + b"\1\x0a" + send + exchange,
        send + exchange + b"\1\4\0\1\5\1\0\0\0" + b"\1\x08\1\x14\x45" + bytes(19),
        send + exchange + b"\1\x0b" + bytes([255] * 8) + send + exchange + wait,
        send + b"\1\x0c\1" + b"\1\x0d" + wait + exchange,
    ]
    return [setup + story for setup in setups for story in stories]
