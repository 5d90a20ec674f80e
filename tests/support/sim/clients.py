"""The peers of a world: real devices without processes, a link to the server, and the network behind it."""

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network
from random import Random
from typing import TYPE_CHECKING

from oxidize.protocol.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME, TYPE_INITIATION
from oxidize.protocol.counters import RECEIVE_NEXT
from oxidize.protocol.crypto import public_key
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots
from tests.support.network import packet as ipv4_packet

if TYPE_CHECKING:
    from tests.support.sim.kernel import Process
    from tests.support.sim.world import World

SERVER_ADDRESS = ("192.0.2.1", 51820)
SERVER_ENDPOINT = Endpoint(bytes((192, 0, 2, 1)), 51820)
CROSSING_SECS = 20.0  # between two initiations that cross
UNHEARD_SECS = 0.1  # what is in flight
INSIDE = "10.0.0.250"  # a host behind the server
CLIENTS_MAX = 400
LINK_SECS = (0.00002, 0.002, 0.02)

_keys = Random("the keys of every world")
SERVER_KEY = _keys.randbytes(32)
SERVER_PUBLIC_KEY = public_key(SERVER_KEY)
_client_keys: list[tuple[bytes, bytes]] = []


def client_keys(number: int) -> tuple[bytes, bytes]:
    """Return the private and the public key of a client, the same in every world."""
    while len(_client_keys) <= number:
        private = _keys.randbytes(32)
        _client_keys.append((private, public_key(private)))
    return _client_keys[number]


def inner_address(number: int) -> str:
    return f"10.0.{1 + number // 200}.{1 + number % 200}"


class Client:
    """A client with one peer, the server. is_core: it is in every configuration."""

    def __init__(self, world: "World", number: int, *, is_core: bool) -> None:
        self._world = world
        self.number = number
        self.is_core = is_core
        self.is_served = True  # since the beginning, by every owner that did not give the state back
        self.served_by: Process | None = None  # the owner before the first one that does not know this client
        self.private_key, self.public_key = client_keys(number)
        self.inner = inner_address(number)
        self.address = (f"198.51.{number // 200}.{1 + number % 200}", 40_000)
        self.addresses = [self.address]
        self._due = float("inf")
        self.rekeys_at = 0.0
        self._initiated_at = [-CROSSING_SECS, -CROSSING_SECS]  # by the server, by this client
        self._crossed_at: list[float] = []
        self._unheard_at: list[float] = []  # when a handshake began, and the server was never heard in the session
        kernel = world.kernel
        server = PeerSettings(SERVER_PUBLIC_KEY, allowed_ips=(ip_network("0.0.0.0/0"),), endpoint=SERVER_ENDPOINT)
        self.device = Device(
            self.private_key,
            [server],
            ArraySlots(16),
            kernel.random.randbytes,
            lambda: kernel.now + kernel.unix_offset,
            lambda _change: None,
        )
        self.device.prepare()

    def rekey(self) -> None:
        """Begin a handshake although the session is young."""
        self.rekeys_at = now = self._world.kernel.now
        self.device._handshaker.initiate(self.device.peers[SERVER_PUBLIC_KEY], now)
        self._flush()

    def settings(self) -> PeerSettings:
        """Return the client as the server's configuration names it."""
        return PeerSettings(self.public_key, allowed_ips=(ip_network(f"{self.inner}/32"),), name=f"client{self.number}")

    def send(self, packets: Sequence[bytes]) -> None:
        for packet in packets:
            self.device.send_packets([packet], self._world.kernel.now)
        self._flush()

    def receive(self, datagram: bytes) -> None:
        if datagram[0] == TYPE_INITIATION:
            self._note_initiation(is_own=False)
        packets = self.device.receive_datagrams([datagram], SERVER_ENDPOINT, self._world.kernel.now)
        for each in packets:
            self._world.model.on_delivered(f"client {self.number}", each, is_last=True)
        self._flush()

    def _note_initiation(self, *, is_own: bool) -> None:
        """Note that a handshake begins.

        Where two of them cross, one in each direction, the sides may use different sessions afterwards, and the next
        handshake drops one that is in use (the paper's rotation): packets in flight are then lost without any fault of
        a takeover. The same happens to a session that the server has not confirmed, since what was in its hand is lost.
        """
        now = self._world.kernel.now
        peer = self.device.peers[SERVER_PUBLIC_KEY]
        current = peer.current
        if is_own and current is not None and not self.device._counters[current.state.slot + RECEIVE_NEXT]:
            self._unheard_at.append(now)
        if now < self._initiated_at[not is_own] + CROSSING_SECS:
            self._crossed_at.append(now)
        self._initiated_at[is_own] = now

    def is_crossing(self) -> bool:
        """Return whether a handshake that begins now may cross another one."""
        return self._world.kernel.now < max(self._initiated_at) + CROSSING_SECS

    def may_lose(self, sent_at: float) -> bool:
        """Return whether handshakes may have lost a packet of that time: see `_note_initiation`."""
        has_crossed = any(each - CROSSING_SECS < sent_at < each + REJECT_AFTER_TIME for each in self._crossed_at)
        return has_crossed or any(abs(sent_at - each) < UNHEARD_SECS for each in self._unheard_at)

    def roam(self) -> None:
        """Move to another address; datagrams to the earlier ones still arrive."""
        host, port = self.address
        self.address = (host, port + 1)
        self.addresses.append(self.address)
        self._world.by_address[self.address] = self

    def _flush(self) -> None:
        for transmit in self.device.take_transmits():
            for datagram in transmit.datagrams:
                if datagram[0] == TYPE_INITIATION:
                    self._note_initiation(is_own=True)
                    self._check_initiation()
                self._world.link(partial(self._world.to_server, self.address, datagram))
        deadline = self.device.next_deadline()
        now = self._world.kernel.now
        if deadline is not None and (deadline < self._due or self._due <= now):
            self._due = deadline
            self._world.kernel.at(max(0.0, deadline - now), self._handle_timeout)

    def _check_initiation(self) -> None:
        """Judge a handshake that this client begins: in a calm world it has none before its session is old."""
        world = self._world
        peer = self.device.peers[SERVER_PUBLIC_KEY]
        if (
            world.is_calm
            and self.is_served
            and world.kernel.now > self.rekeys_at + REKEY_ATTEMPT_TIME
            and peer.current is not None
            and peer.current.age(world.kernel.now) < REKEY_AFTER_TIME
        ):
            world.kernel.fail(f"client {self.number} has to shake hands again")

    def _handle_timeout(self) -> None:
        now = self._world.kernel.now
        deadline = self.device.next_deadline()
        if deadline is not None and deadline <= now:
            self.device.handle_timeout(now)
        self._flush()


def numbered_packet(source: str, destination: str, number: int, size: int) -> bytes:
    return ipv4_packet(source, destination, number.to_bytes(8, "big") + bytes(size))
