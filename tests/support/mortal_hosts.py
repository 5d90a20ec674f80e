"""Hosts whose process may be killed at any of its effects, and checks of what must hold after every event.

An effect is what outlives a process: a record in the journal, a counter of a slot, a datagram on the wire. A fuse
counts them and kills the process before the one that it is set to.
"""

from collections.abc import Callable
from math import inf
from typing import cast

from oxidize.protocol.changes import (
    Change,
    PeerEndpoint,
    PeerHandshake,
    PeerSeen,
    PeerStaged,
    PeerTimestamp,
    no_handshake,
)
from oxidize.protocol.constants import TIMESTAMP_SIZE, TYPE_DATA
from oxidize.protocol.counters import TOTALS_WORDS, Counters
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import DATA_HEADER, message_type
from oxidize.protocol.session_table import Transmit
from tests.support.counters import ArraySlots
from tests.support.network import Host, World, packet


class Killed(BaseException):
    """The process got SIGKILL."""


class Fuse:
    """Kills before the effect that it is set to; 0 is the next one."""

    def __init__(self) -> None:
        self.burnt = 0
        self.left = inf

    def burn(self) -> None:
        if self.left <= 0:
            self.left = inf
            raise Killed
        self.left -= 1
        self.burnt += 1


class FusedCounters:
    """Counters that burn a fuse with every store to a slot, not to a total: nothing is restored from totals."""

    def __init__(self, counters: Counters, fuse: Fuse) -> None:
        self._counters = counters
        self._fuse = fuse

    def __len__(self) -> int:
        return len(self._counters)

    def __getitem__(self, index: int) -> int:
        return self._counters[index]

    def __setitem__(self, index: int | slice, value: int | Counters) -> None:
        if isinstance(index, slice) or index >= TOTALS_WORDS:
            self._fuse.burn()
        if isinstance(index, slice):
            assert isinstance(value, memoryview)
            self._counters[index] = value
        else:
            assert isinstance(value, int)
            self._counters[index] = value


def fused(counters: Counters, fuse: Fuse) -> Counters:
    """Return counters that burn a fuse, as what they stand in for: a memoryview cannot be subclassed."""
    return cast("Counters", FusedCounters(counters, fuse))


class MortalHost(Host):
    """A host whose process, when killed, is replaced by its frozen predecessor if there is one, else by a new one."""

    is_down = False

    def __init__(self, world: World, number: int, **options: int) -> None:
        super().__init__(world, number, **options)
        self.fuse = Fuse()
        self.predecessor: Device | None = None  # frozen; it may thaw
        self.offering = False
        self.deaths = 0
        self.sent: dict[int, bytes] = {}  # packets that were given to this host's device, by number
        self.sealed: set[tuple[int, int]] = set()  # receiver index and counter of every data message that left

    def make_slots(self) -> ArraySlots:
        slots = super().make_slots()
        slots.counters = fused(slots.counters, self.fuse)
        return slots

    def record(self, change: Change) -> None:
        self.fuse.burn()
        super().record(change)

    # --- Living and dying ---

    def survive(self, action: Callable[[], object]) -> None:
        """Run an action; replace the process if that kills it."""
        try:
            action()
        except Killed:
            self.bury()
        self.check()

    def bury(self) -> None:
        """Replace the serving process, which is dead."""
        self.deaths += 1
        predecessor, self.predecessor = self.predecessor, None
        if predecessor is not None:
            self.thaw(predecessor)
        elif self.offering:
            self.offering = False
            self.commit()
        else:
            self.replace()

    def offer(self) -> None:
        super().offer()
        self.offering = True

    def freeze_and_commit(self) -> None:
        self.freeze()
        self.offering = False
        self.predecessor = self.commit()

    def receive(self, datagrams: list[bytes], source: Endpoint) -> None:
        self.survive(lambda: super(MortalHost, self).receive(datagrams, source))

    def handle_timeout(self) -> None:
        self.survive(super().handle_timeout)
        if self.offering:
            self.survive(lambda: self.device.unrecorded.record_slice(self.world.now))

    def say(self, other: Host, count: int = 1, size: int = 0) -> None:
        """Send numbered packets."""
        packets = []
        for _ in range(count):
            number = (int.from_bytes(self.public_key[:4], "big") << 32) + len(self.sent)
            self.sent[number] = packet(self.inner, other.inner, number.to_bytes(8, "big") + bytes(size))
            packets.append(self.sent[number])
        self.survive(lambda: self.device.send_packets(packets, self.world.now))

    def take_transmits(self) -> list[Transmit]:
        left: list[Transmit] = []
        if not self.flushed and not self.device._table.transmits:
            return left
        self.survive(lambda: self._flush(left))
        for transmit in left:
            for datagram in transmit.datagrams:
                if message_type(datagram) == TYPE_DATA:
                    name = DATA_HEADER.unpack_from(datagram)[1:]
                    assert name not in self.sealed, f"index and counter {name} left twice"
                    self.sealed.add(name)
        return left

    def _flush(self, left: list[Transmit]) -> None:
        for transmit in super().take_transmits():
            left.append(Transmit(transmit.endpoint, []))
            for datagram in transmit.datagrams:
                self.fuse.burn()
                left[-1].datagrams.append(datagram)

    # --- What must hold ---

    def check(self) -> None:
        """Check that the journal agrees with the device, and that no slot serves two."""
        journal = self.live
        slots = []
        for key, peer in self.device.peers.items():
            slots += [keypair.state.slot for keypair in peer.keypairs] + [peer.slot] * bool(peer.slot)
            seen = journal.get(("peer", key))
            assert peer.slot == (seen.slot if isinstance(seen, PeerSeen) else 0)
            said = journal.get(("keypairs", key))
            assert peer.keypairs_change() == said or (said is None and not peer.keypairs)
            recorded = journal.get(("endpoint", key))
            if peer not in self.device._table.moved:
                known = recorded.endpoint if isinstance(recorded, PeerEndpoint) else peer.settings.endpoint
                assert peer.endpoint == known
            newest = journal.get(("timestamp", key))
            assert peer.last_timestamp == getattr(newest, "timestamp", bytes(TIMESTAMP_SIZE))
            assert newest is None or isinstance(newest, PeerTimestamp)
            pending = journal.get(("handshake", key), no_handshake(key))
            assert isinstance(pending, PeerHandshake)
            assert (peer.handshake.state.local_index if peer.handshake else 0) == pending.local_index
            for keypair in peer.keypairs:
                assert self.device._table.indices.get(keypair.state.local_index) is keypair
            if peer.handshake:
                assert self.device._table.indices.get(pending.local_index) is peer.handshake
            staged = journal.get(("staged", key))
            assert isinstance(staged, PeerStaged | None)
            assert bool(staged and staged.packets) == (peer in self.device._staging.recorded)
            assert bool(peer.staged) == (peer in self.device._staging.peers)
        assert len(set(slots)) == len(slots), "a slot serves two owners"


class MortalWorld(World):
    """A world of mortal hosts."""

    @property
    def mortals(self) -> list[MortalHost]:
        return [host for host in self.hosts.values() if isinstance(host, MortalHost)]

    def mortal(self, **options: int) -> MortalHost:
        return self.add(MortalHost(self, len(self.hosts) + 1, **options))

    def mesh(self, count: int) -> list[MortalHost]:
        """Return hosts that know each other; each knows the endpoints of those before it."""
        hosts = [self.mortal() for _ in range(count)]
        for host in hosts:
            for other in hosts:
                if other is not host:
                    host.know(other, reachable=other.inner < host.inner)
            host.start()
        return hosts

    def check_deliveries(self) -> int:
        """Check that each packet arrived at its destination, unchanged and once; return how many arrived."""
        sent = {number: packet for host in self.mortals for number, packet in host.sent.items()}
        arrived: set[int] = set()
        for host in self.mortals:
            for delivered in host.delivered:
                number = int.from_bytes(delivered[20:28], "big")
                assert delivered == sent[number]
                assert delivered[16:20] == bytes(map(int, host.inner.split(".")))
                assert number not in arrived, f"packet {number} arrived twice"
                arrived.add(number)
        return len(arrived)
