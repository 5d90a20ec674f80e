"""One world: a server with its manager and clients, drawn from a seed, which lives through faults and is then checked.

A world has a beginning without faults, in which every client gets a session; a number of deeds (traffic, takeovers,
faults) with some time between them; and an end without faults, in which one process serves, every client can talk to
the inside and back, and everything has arrived that had to.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from oxidize.protocol.icmp import PROTOCOL_ICMP
from oxidize.settings import NodeSettings
from tests.support.node_settings import settings_with
from tests.support.segments import ACK, PUSH, Segment, run
from tests.support.sim.clients import (
    CROSSING_SECS,
    INSIDE,
    LINK_SECS,
    SERVER_ADDRESS,
    SERVER_KEY,
    Client,
    inner_address,
    numbered_packet,
)
from tests.support.sim.deeds import CALM_DEEDS, COMERS, FAMILIES, Deed, accept, do_deeds
from tests.support.sim.files import Tun, Udp
from tests.support.sim.install import use_regions_of
from tests.support.sim.kernel import Kernel, Process, enter_world, leave_world
from tests.support.sim.manager import SOCKET, Manager
from tests.support.sim.model import ICMP_QUOTE_AT, PACKET_ID, Model

CLIENTS = (2, 3, 4)
GUESTS = (0, 1, 2)  # clients that a configuration may leave out
DEEDS = (6, 20)
HOLDS = 0.2  # of the messages of a takeover: the receiver waits for the processor
GAPS_SECS = (0.0, 0.001, 0.02, 0.2, 1.0)
SETTLING_SECS = 12.0
SETTLING_ROUNDS = 25
KINDS = ("systemd", "systemd", "holder", "holder", "none")
SEGMENTED = 0.3  # of the bursts: TCP segments
RUN_SEGMENTS = (2, 3, 10, 60)
RUN_PAYLOADS = (240, 600, 1200)  # bytes
REGION_BYTES = (20 << 10, 64 << 10, 1 << 20)  # of a journal; the first is full before long
PORT = 51820


@dataclass
class Plan:
    """What a world is made of, where it is not drawn.

    are_stores_fatal: whether a server may crash at a store. script: what happens in the world, in place of deeds.
    """

    kind: str = ""
    clients: int = 0
    families: tuple[str, ...] | None = None
    are_stores_fatal: bool = False
    script: "Callable[[World], None] | None" = None


class World:
    """The server, its clients and its network. is_strict: everything that is sent must arrive."""

    PORT = PORT

    def __init__(self, seed: int, plan: Plan | None = None, *, verbose: bool = False) -> None:
        plan = plan or Plan()
        self.seed = seed
        self.kernel = kernel = Kernel(seed, verbose=verbose)
        self.random = random = kernel.random
        self.udp: Udp | None = None
        self.tun: Tun | None = None
        self.model = kernel.watcher = Model(kernel)
        self.manager = kernel.manager = Manager(self, plan.kind or random.choice(KINDS))
        kernel.has_peer_pidfd = random.random() < 0.8
        families = tuple(name for name in FAMILIES if random.random() < 0.3)
        self.families = families if plan.families is None else plan.families
        count = plan.clients or random.choice(CLIENTS)
        guests = random.choice(GUESTS) if "configuration" in self.families else 0
        self.clients = [Client(self, number, is_core=number < count) for number in range(count + guests)]
        self.by_address = {client.address: client for client in self.clients}
        self.by_inner = {client.inner: client for client in self.clients}
        self.configured = list(self.clients)
        self.release: dict[tuple[Any, str], object] = {}
        self.mtu = 1420
        self.loss = self.repeats = self.jitter = 0.0
        self.link_secs = self._link_secs_first = random.choice(LINK_SECS)
        self.is_strict = True
        self.is_calm = True  # nothing that a client may notice
        self.is_settling = False
        self.asked = 0  # queries to drain and to accept
        self.is_asking = False  # from the first one until accepting is answered
        self.packets = 0
        self.ends: dict[int, tuple[float, list[Client]]] = {}  # of each packet: when it was sent, from and to which
        self.deeds = random.randint(*DEEDS)
        self.are_stores_fatal = plan.are_stores_fatal
        self.script = plan.script or do_deeds
        self.model.on_step = self._on_step
        self.model.on_own = self._on_own
        self.at_step: dict[str, Callable[[Process], None]] = {}  # once, at the next step of that name
        self.prepare_more: Callable[[Process], None] = lambda _process: None

    # --- Configuration ---

    def prepare(self, process: Process) -> None:
        """Give a new server process its configuration and its release."""
        process.context = self.settings()
        process.release = self.release
        process.dies_at_stores = self.are_stores_fatal or ("crashes" in self.families and self.random.random() < 0.3)
        self.prepare_more(process)

    def settings(self) -> NodeSettings:
        peers = tuple(client.settings() for client in self.configured)
        return settings_with(
            private_key=SERVER_KEY,
            mtu=self.mtu,
            takeover_socket=SOCKET,
            peers=peers,
            routes=tuple(network for peer in peers for network in peer.allowed_ips),
            listen=("0.0.0.0", PORT),
            drain_timeout_secs=5.0,
        )

    # --- The network ---

    def link(self, arrive: Callable[[], object]) -> None:
        """Carry a datagram over the link, which may lose, repeat and delay it."""
        if self.jitter or self.link_secs != self._link_secs_first:
            self.model.keeps_order = False
        copies = 1
        if self.loss and self.random.random() < self.loss:
            copies = 0
        elif self.repeats and self.random.random() < self.repeats:
            copies = 2
        for _ in range(copies):
            self.kernel.at(self.link_secs + (self.random.random() * self.jitter if self.jitter else 0.0), arrive)
        self.kernel.count("datagrams")

    def to_server(self, source: tuple[str, int], datagram: bytes) -> None:
        if self.udp is None or not self.udp.arrive(source, datagram):
            self.kernel.count("datagrams without a socket")

    def on_sent(self, address: tuple[str, int], datagrams: list[bytes]) -> None:
        client = self.by_address.get(address)
        for datagram in datagrams:
            self.model.on_datagram_sent(datagram)
            if client is not None:
                self.link(partial(client.receive, datagram))

    def on_packet_read(self, packet: bytes) -> None:
        self.model.on_packet_read(packet)

    def on_tun_removed(self, packets: list[bytes]) -> None:
        """Excuse packets for an interface that is gone: nothing keeps it, or not at that moment."""
        for packet in packets:
            self.model.excused.add(packet[PACKET_ID])
            self.kernel.count("packets without an interface")

    def on_delivered(self, packet: bytes) -> None:
        """Take a packet that the server writes to the TUN device: for the inside, or for another client."""
        if packet[9] == PROTOCOL_ICMP:
            self.model.on_unreachable(packet[ICMP_QUOTE_AT:])
            return
        destination = ".".join(map(str, packet[16:20]))
        self.model.on_delivered("the inside", packet, is_last=destination == INSIDE)
        if destination in self.by_inner and self.tun is not None and not self.tun.is_closed:
            self.tun.queue.append(packet)

    def send(self, source: Client | None, destination: Client | None, size: int = 0) -> bytes:
        """Send a numbered packet between clients, None being the inside; return its number."""
        self.packets += 1
        data = numbered_packet(_inner_of(source), _inner_of(destination), self.packets, size)
        self._send(source, destination, [data])
        return data[PACKET_ID]

    def send_burst(self, source: Client | None, destination: Client | None) -> None:
        """Send some numbered packets, or a run of TCP segments, which a server joins."""
        random = self.random
        if random.random() < SEGMENTED:
            self.send_segments(source, destination, random.choice(RUN_SEGMENTS), random.choice(RUN_PAYLOADS))
            return
        for _ in range(random.choice((1, 1, 2, 5))):
            self.send(source, destination, random.choice((0, 0, 13, 500)))

    def send_segments(self, source: Client | None, destination: Client | None, count: int, size: int) -> None:
        """Send a run of TCP segments of `size` bytes as a kernel cuts them, the last one shorter perhaps.

        Their numbers are ports and sequence number, which stand where other packets have theirs.
        """
        self.packets += 1
        first = Segment(
            _inner_of(source),
            _inner_of(destination),
            self.random.randrange(1 << 32),
            bytes(size),
            ports=(1024, self.packets),
            ident=self.random.randrange(1 << 16),
        )
        segments = [replace(each, payload=self.random.randbytes(size)) for each in run(first, count)]
        last = segments[-1]
        segments[-1] = replace(last, payload=last.payload[self.random.choice((0, 0, 100)) :], flags=ACK | PUSH)
        packets = [each.packet() for each in segments]
        self.model.on_run(packets)
        self.kernel.count("segments", count)
        self._send(source, destination, packets)

    def _send(self, source: Client | None, destination: Client | None, packets: list[bytes]) -> None:
        ends = [each for each in (source, destination) if each is not None]
        for data in packets:
            name = data[PACKET_ID]
            self.model.sent[name] = data
            self.ends[int.from_bytes(name, "big")] = self.kernel.now, ends
            if not all(each.is_served for each in ends):
                self.model.excused.add(name)
            self.kernel.count("packets")
        if source is not None:
            source.send(packets)
        elif self.tun is not None and not self.tun.is_closed:
            self.tun.queue.extend(packets)
        else:
            self.on_tun_removed(packets)

    # --- The life of a world ---

    def live(self) -> None:
        """Run the world; raises Violation."""
        enter_world(self.kernel)
        use_regions_of(self.random.choice(REGION_BYTES))
        try:
            self._begin()
            self.script(self)
            self._settle()
        finally:
            self.kernel.close()
            leave_world()

    def _begin(self) -> None:
        self.manager.start()
        self.kernel.run(0.2)
        for client in self.clients:
            self.send(client, None)
        self.kernel.run(0.2)
        for client in self.clients:
            self.send(None, client)
        self.kernel.run(0.1)
        if self.model.missing():
            self.kernel.fail(f"the world does not begin: {self.model.missing()} have not arrived")
        self.kernel.run(self.random.choice((0.0, CROSSING_SECS)))  # after that, clients may shake hands again at once

    def _on_step(self, step: str, successor: Process) -> None:
        """Let something come while a takeover is under way: it has come to this step."""
        planned = self.at_step.pop(step, None)
        if planned is not None:
            planned(successor)
        if self.random.random() < HOLDS:
            self._hold_next(step, successor)
        for _ in range(self.random.choice((0, 0, 1, 3))):
            deed = self.random.choices(*COMERS)[0]
            secs = self.random.random() * self.random.choice((0.00005, 0.001, 0.03))
            self.kernel.at(secs, partial(deed, self))

    def _hold_next(self, step: str, successor: Process) -> None:
        """Let the process to which a message went wait for the processor, while something comes."""
        receiver = self.model.owner if step == "ready" else successor
        if receiver is not None:
            self.kernel.hold(receiver, self.random.choice((0.0001, 0.003)))

    def _on_own(self, owner: Process, before: Process | None) -> None:
        """Note which clients the new owner serves: one that it does not know may lose its session with it.

        An owner that thaws still serves all of its clients.
        """
        served = {peer.public_key for peer in owner.context.peers} if owner.context is not None else set()
        for client in self.clients:
            if client.public_key not in served:
                if client.is_served:
                    client.is_served, client.served_by = False, before
                self._excuse(client)
            elif client.served_by is owner:
                client.is_served, client.served_by = True, None
                self._excuse(client)

    def _excuse(self, client: Client) -> None:
        """Require no packet of a client that has not arrived by now."""
        for number, (_, ends) in self.ends.items():
            if client in ends:
                self.model.excuse(number.to_bytes(8, "big"))

    def do(self, deed: Deed) -> None:
        self.kernel.note(f"--- {deed.__name__}")
        self.is_calm = self.is_calm and deed in CALM_DEEDS
        deed(self)
        self.kernel.run(self.random.choice(GAPS_SECS))

    def _settle(self) -> None:
        kernel = self.kernel
        kernel.note("--- settles")
        self.is_settling = True
        self.at_step.clear()
        self.loss = self.repeats = self.jitter = 0.0
        strict_until = set(self.ends)
        for process in kernel.processes:
            process.faults.clear()
            process.fds_max = 1024
            process.stores_left = 1 << 60
            process.switch_at = process.preempt_at
        for file in kernel.memory_files:
            file.limit = 1 << 62
        for _ in range(SETTLING_ROUNDS):
            self._end_rogues()
            kernel.run(SETTLING_SECS)
            if self.asked and not self._is_served():
                accept(self)  # a query to drain may have waited for long, and be carried out late
            if len(kernel.living) == 1 and self._is_served() and self._is_replaced() and self._is_served():
                break
        else:
            states = [f"{each.name} {'stopped' if each.stopped_until > kernel.now else ''}" for each in kernel.living]
            kernel.fail(f"the world does not settle: {states} live, the owner is {self.model.owner}")
        missing = [each for each in self.model.missing() if each in strict_until and not self._may_be_lost(each)]
        if self.is_strict and missing:
            kernel.fail(f"packets {missing[:10]} ({len(missing)}) have not arrived")

    def _end_rogues(self) -> None:
        """End each process that broke the protocol and whose server has died, as an operator does."""
        for process in self.kernel.living[:]:
            server = self.model.offered.get(process)
            if process.name.startswith("rogue") and (server is None or not server.alive):
                self.kernel.kill(process)

    def _may_be_lost(self, number: int) -> bool:
        sent_at, clients = self.ends[number]
        return any(client.may_lose(sent_at) for client in clients)

    def _is_replaced(self) -> bool:
        """Replace the server once more; return whether that succeeds."""
        takeovers = self.kernel.counts.get("takeovers", 0)
        self.manager.reload()
        self.kernel.run(1.0)
        return self.kernel.counts.get("takeovers", 0) > takeovers

    def _is_served(self) -> bool:
        """Send a packet from each client to the inside and one back; return whether they all arrive in a while."""
        names = []
        for client in self.clients:
            if client in self.configured and client.is_core:
                names.append(self.send(client, None))
        self.kernel.run(1.0)
        for client in self.clients:
            if client in self.configured and client.is_core:
                names.append(self.send(None, client))
        self.kernel.run(1.0)
        arrived = all(name in self.model.arrived for name in names)
        self.model.excused.update(names)
        return arrived


def _inner_of(end: Client | None) -> str:
    return INSIDE if end is None else end.inner


__all__ = ["SERVER_ADDRESS", "Plan", "World", "inner_address"]
