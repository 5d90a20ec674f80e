"""Pings through a link whose server answers late, and ends, moves away or loses its network while answers are pending.

The rules that must hold: every request is answered in the end, whatever the server had in its queues when it ended, as
long as an answer is at most LATE_SECS_MAX late. What reaches the server twice was sent in RESENT_SECS_MAX around the
fault; without a fault nothing does. A failure names its seed.
"""

from collections import Counter
from collections.abc import Callable
from enum import Enum
from functools import partial
from heapq import heappop, heappush
from math import inf

import pytest

from oxidize.protocol.counters import LinkState
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import IN_FLIGHT_SECS_MIN
from tests.support.client_and_server import NOTICED_SECS, linked, payloads, restart, state
from tests.support.network import World

SEEDS = range(2)
TRANSIT_SECS = 0.0005
PING_SECS = 0.02
DOWNLOAD_SECS = 0.004
LATE_SECS_MIN, LATE_SECS_MAX = 0.005, IN_FLIGHT_SECS_MIN - 0.05  # how late an application behind the server answers
READ_SECS_MAX = 0.08  # how late the server reads its socket; handshakes wait there too
QUIET_SECS = (1.0, 2.0)  # before the fault
RECOVERY_SECS = 6.0
ERROR_INTERVAL_SECS = 1.0  # between two errors that a host reports (icmp(7), icmp_ratelimit)
NOTICED_SECS_MAX = 0.1  # a change of the network
# What one fault may have sent twice: a new route is noticed late, and the handshake over it waits for the server.
RESENT_SECS_MAX = IN_FLIGHT_SECS_MIN + 0.2


class Load(Enum):
    """What makes the server late."""

    NONE = "idle"
    APPLICATION = "late application"  # each answer takes another time
    QUEUE = "long queue"  # the server reads its socket late
    STALLS = "stalls"  # the server runs now and then: answers that wait for it leave first, then it reads its socket


class OutageSimulation:
    """A client that pings a server, virtual time, and faults."""

    def __init__(self, seed: int, load: Load, *, download: bool = False) -> None:
        self.world = World(seed)
        self.random = self.world.random
        self.client, self.server = linked(self.world, known=seed % 2 == 0)
        self.load = load
        self.download = download
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.generation = 0  # of the server: what waits in an ended one is lost
        self.is_up = self.is_link_up = True
        self.queue: list[tuple[bytes, Endpoint]] = []  # in the server's socket
        self.pending: list[bytes] = []  # answers in the server's tunnel device
        self.late_secs = LATE_SECS_MIN
        self.read_at = self.error_at = 0.0
        self.is_quiet = False
        self.sent = self.handled = self.carried = 0
        self.after(0.0, self.ping)
        self.serve_on()

    # --- Time ---

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.order += 1
        heappush(self.events, (self.world.now + seconds, self.order, action))

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        while True:
            hosts = [self.client] + [self.server] * self.is_up
            due = min((host.device.next_deadline() or inf for host in hosts), default=inf)
            event_at = self.events[0][0] if self.events else inf
            if min(due, event_at) > end:
                break
            self.world.now = max(self.world.now, min(due, event_at))
            if event_at <= due:
                heappop(self.events)[2]()
            else:
                for host in hosts:
                    host.handle_timeout()
            self.carry()
        self.world.now = end

    # --- The network ---

    def carry(self) -> None:
        for transmit in self.client.take_transmits():
            for datagram in transmit.datagrams if self.is_link_up else ():
                self.after(TRANSIT_SECS, partial(self.reach, datagram, self.client.endpoint))
        for transmit in self.server.take_transmits():
            target = Endpoint(*transmit.endpoint.remote)
            for datagram in transmit.datagrams:
                self.after(TRANSIT_SECS, partial(self.come_back, datagram, target))

    def reach(self, datagram: bytes, source: Endpoint) -> None:
        """Bring a datagram to the server's host."""
        if self.is_up:
            self.queue.append((datagram, source))
            if self.load is Load.QUEUE:
                self.late_secs += self.random.uniform(-0.02, 0.02)
                self.late_secs = min(max(self.late_secs, LATE_SECS_MIN), READ_SECS_MAX)
                self.read_at = max(self.read_at, self.world.now + self.late_secs)
                self.after_in_generation(self.read_at - self.world.now, self.read_one)
            elif self.load is not Load.STALLS:
                self.read_one()
        elif self.world.now >= self.error_at:
            self.error_at = self.world.now + ERROR_INTERVAL_SECS
            self.after(TRANSIT_SECS, self.refuse)

    def refuse(self) -> None:
        self.client.device.on_unreachable(self.server.endpoint.remote, self.world.now, refused=True)

    def come_back(self, datagram: bytes, target: Endpoint) -> None:
        if self.is_link_up and target == self.client.endpoint:
            self.client.receive([datagram], self.server.endpoint)

    # --- The server ---

    def after_in_generation(self, seconds: float, action: Callable[[], None]) -> None:
        generation = self.generation
        self.after(seconds, lambda: action() if generation == self.generation else None)

    def serve_on(self) -> None:
        """Begin the activities of a server's process."""
        if self.load is Load.STALLS:
            self.after_in_generation(0.0, self.wake)
        if self.download:
            self.after_in_generation(0.0, self.send_download)

    def read_one(self) -> None:
        datagram, source = self.queue.pop(0)
        self.server.receive([datagram], source)
        for payload in payloads(self.server)[self.handled :]:
            self.handled += 1
            if self.load is Load.APPLICATION:
                late_secs = self.random.uniform(LATE_SECS_MIN, LATE_SECS_MAX)
                self.after_in_generation(late_secs, partial(self.answer, payload))
            elif self.load is Load.STALLS:
                self.pending.append(payload)
            else:
                self.answer(payload)
        self.carry()

    def wake(self) -> None:
        answers, self.pending = self.pending, []
        for payload in answers:
            self.answer(payload)
        while self.queue:
            self.read_one()
        self.after_in_generation(self.random.uniform(LATE_SECS_MIN, READ_SECS_MAX), self.wake)

    def answer(self, payload: bytes) -> None:
        self.server.send(self.client, payload)
        self.carry()

    def send_download(self) -> None:
        if self.server.peer(self.client).current is not None and not self.server.peer(self.client).staged:
            (self.pending.append if self.load is Load.STALLS else self.answer)(b"download")
        self.after_in_generation(DOWNLOAD_SECS, self.send_download)

    # --- The client ---

    def ping(self) -> None:
        if not self.is_quiet:
            self.client.send(self.server, self.sent.to_bytes(4, "big"))
            self.sent += 1
        self.after(PING_SECS, self.ping)

    # --- Faults ---

    def restart_server(self, away_secs: float) -> None:
        self.is_up = False
        self.generation += 1
        self.queue, self.pending, self.read_at = [], [], 0.0
        self.server.take_transmits()
        self.run(away_secs)
        restart(self.server)
        self.is_up = True
        self.serve_on()

    def lose_link(self, away_secs: float) -> None:
        self.is_link_up = False
        self.run(self.random.uniform(0.0, NOTICED_SECS_MAX))
        self.client.device.on_route_change(self.world.now, is_lost=True)
        self.run(away_secs)
        self.is_link_up = True
        self.run(self.random.uniform(0.0, NOTICED_SECS_MAX))
        if state(self.client, self.server) != LinkState.CONNECTED:  # else the server was heard before
            self.client.device.on_route_change(self.world.now)

    def move_client(self) -> None:
        self.world.move(self.client, Endpoint(self.random.randbytes(4), 4242))
        self.run(self.random.uniform(0.0, NOTICED_SECS_MAX))
        self.client.device.on_route_change(self.world.now)

    def reload_client(self) -> None:
        self.client.hand_over()
        self.client.device.begin_links(self.world.now)

    def reload_in_outage(self, away_secs: float) -> None:
        """Replace the client once it knows of the outage: what is unanswered before that is not handed over."""
        self.after(self.random.uniform(NOTICED_SECS, away_secs), self.reload_client)
        self.restart_server(away_secs)

    # --- What must hold ---

    def lost(self) -> list[int]:
        back = {int.from_bytes(payload, "big") for payload in payloads(self.client) if len(payload) == 4}
        return [number for number in range(self.sent) if number not in back]

    def resent(self) -> int:
        return sum(times - 1 for times in Counter(payloads(self.server)).values())


FAULTS: dict[str, Callable[[OutageSimulation], None]] = {
    "none": lambda world: None,
    "restart within 50 ms": lambda world: world.restart_server(world.random.uniform(0.01, 0.05)),
    "restart within 500 ms": lambda world: world.restart_server(world.random.uniform(0.05, 0.5)),
    "restart": lambda world: world.restart_server(world.random.uniform(0.5, 3.0)),
    "link down": lambda world: world.lose_link(world.random.uniform(0.1, 3.0)),
    "move": lambda world: world.move_client(),
    "reload": lambda world: world.reload_client(),
    "reload in an outage": lambda world: world.reload_in_outage(world.random.uniform(0.5, 3.0)),
}


def simulate(fault: str, load: Load, seed: int, *, download: bool = False) -> OutageSimulation:
    simulation = OutageSimulation(seed, load, download=download)
    simulation.run(simulation.random.uniform(*QUIET_SECS))
    FAULTS[fault](simulation)
    simulation.run(RECOVERY_SECS)
    simulation.is_quiet = True
    simulation.run(1.0)
    return simulation


@pytest.mark.parametrize("download", [False, True], ids=["", "download"])
@pytest.mark.parametrize("load", Load)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_ping_is_lost_through_a_server_that_answers_late(fault: str, load: Load, download: bool) -> None:
    for seed in SEEDS:
        simulation = simulate(fault, load, seed, download=download)
        assert simulation.lost() == [], f"seed {seed}"
        assert simulation.resent() <= RESENT_SECS_MAX / PING_SECS, f"seed {seed}"
        assert state(simulation.client, simulation.server) == LinkState.CONNECTED, f"seed {seed}"
