"""Which share of a flood passes: in virtual time, with dice in the place of the kernel's."""

from collections import Counter
from collections.abc import Callable
from math import inf
from random import Random

import pytest

from oxidize.protocol.constants import DATA_OVERHEAD, INITIATION_SIZE, REKEY_TIMEOUT
from oxidize.protocol.cookie import CookieJar
from oxidize.protocol.counters import Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import Initiation
from oxidize.protocol.shedding import (
    FLOOD_FACTOR,
    PASS_SHARE_MIN,
    PROVEN_PER_SECOND,
    SHORT_PER_SECOND,
    UNPROVEN_PER_SECOND,
    WINDOW_SECS,
    FloodMeter,
    Sheddable,
    classify,
)
from tests.support.network import Host, World, connected

USABLE = {
    Sheddable.SHORT: SHORT_PER_SECOND,
    Sheddable.UNPROVEN: UNPROVEN_PER_SECOND,
    Sheddable.PROVEN: PROVEN_PER_SECOND,
}


class Kernel:
    """A kernel with a filter, and an owner that decides when that is due."""

    def __init__(self, meter: FloodMeter, now: float = 1000.0) -> None:
        self.meter = meter
        self.now = now
        self.random = Random(1)
        self.estimated = 0  # of the datagrams that were shed
        self.shed: Counter[Sheddable] = Counter()

    def passes(self, kind: Sheddable) -> bool:
        """Return whether a datagram that arrives now is received."""
        if self.now >= self.meter.decide_at:
            self.estimated += self.meter.decide(self.now)
        if self.random.random() >= self.meter.shares[kind]:
            self.shed[kind] += 1
            return False
        return True

    def flood(self, kind: Sheddable, per_second: int, secs: float) -> int:
        """Receive a flood; return how many of its datagrams passed."""
        passed = 0
        for _ in range(int(per_second * secs)):
            self.now += 1 / per_second
            if self.passes(kind):
                self.meter.note(kind, self.now)
                passed += 1
        return passed

    def rest(self, secs: float) -> None:
        """Let time pass without a datagram."""
        ends_at = self.now + secs
        while self.meter.decide_at <= ends_at:
            self.now = max(self.now, self.meter.decide_at)
            self.meter.decide(self.now)
        self.now = ends_at


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(FloodMeter())


# --- The shares ---


@pytest.mark.parametrize("kind", Sheddable)
@pytest.mark.parametrize("per_second", [15_000, 40_000])
def test_what_passes_of_a_flood_is_what_the_budget_can_use(kernel: Kernel, kind: Sheddable, per_second: int) -> None:
    usable = USABLE[kind]
    begin = kernel.flood(kind, per_second, 0.3)
    assert begin <= FLOOD_FACTOR * usable * WINDOW_SECS + 2 * usable * 0.3, "it is noticed in a window"
    assert 0.6 * usable <= kernel.flood(kind, per_second, 1.0) <= 1.4 * usable
    assert [share < 1.0 for share in kernel.meter.shares] == [each is kind for each in Sheddable]


def test_a_part_of_the_largest_flood_passes(kernel: Kernel) -> None:
    kernel.flood(Sheddable.UNPROVEN, 400_000, 0.5)
    assert kernel.meter.shares[Sheddable.UNPROVEN] == PASS_SHARE_MIN


@pytest.mark.parametrize("kind", Sheddable)
def test_twice_of_what_is_usable_is_no_flood_and_sets_no_timer(kernel: Kernel, kind: Sheddable) -> None:
    per_second = int(0.95 * FLOOD_FACTOR * USABLE[kind])
    for _ in range(10):
        assert kernel.flood(kind, per_second, 0.3) == int(per_second * 0.3)
        assert kernel.meter.decide_at == inf
        kernel.rest(0.05)


def test_the_shares_change_with_the_flood_and_are_gone_soon_after_it(kernel: Kernel) -> None:
    kernel.flood(Sheddable.UNPROVEN, 40_000, 1.0)
    strong = kernel.meter.shares[Sheddable.UNPROVEN]
    kernel.flood(Sheddable.UNPROVEN, 10_000, 2.0)
    assert 2 * strong < kernel.meter.shares[Sheddable.UNPROVEN] < 1.0
    kernel.rest(2.0)
    assert not kernel.meter.is_shedding
    assert kernel.meter.decide_at == inf


def test_a_flood_that_pauses_for_a_moment_is_still_thinned_out(kernel: Kernel) -> None:
    kernel.flood(Sheddable.UNPROVEN, 40_000, 1.0)
    passed = 0
    for _ in range(10):
        kernel.rest(0.2)
        passed += kernel.flood(Sheddable.UNPROVEN, 40_000, 0.2)
    assert passed <= 2 * UNPROVEN_PER_SECOND * 2.0


def test_a_steady_flood_needs_no_new_filter(kernel: Kernel) -> None:
    kernel.flood(Sheddable.UNPROVEN, 40_000, 1.0)
    seen = set()
    for _ in range(30):
        kernel.flood(Sheddable.UNPROVEN, 40_000, WINDOW_SECS)
        seen.add(kernel.meter.shares)
    assert len(seen) <= 3


def test_the_shed_datagrams_are_estimated(kernel: Kernel) -> None:
    for kind in Sheddable:
        kernel.flood(kind, 40_000, 1.0)
    kernel.rest(3.0)
    assert kernel.estimated == pytest.approx(kernel.shed.total(), rel=0.1)


def test_a_new_owner_begins_without_shares(kernel: Kernel) -> None:
    kernel.flood(Sheddable.PROVEN, 40_000, 1.0)
    kernel.meter.reset()
    assert not kernel.meter.is_shedding
    assert kernel.meter.decide_at == inf
    assert kernel.passes(Sheddable.PROVEN)


# --- The classes ---


def test_data_responses_and_replies_are_of_no_class() -> None:
    for first in range(256):
        for size in range(DATA_OVERHEAD, 200):
            datagram = bytes([first, 0, 0, 0]) + bytes(size - 4)
            assert (classify(datagram) is None) == ((first, size) != (1, INITIATION_SIZE))


def stranger(number: int) -> Endpoint:
    return Endpoint(bytes([203, number >> 16 & 255, number >> 8 & 255, number & 255]), 4000)


def initiation(world: World, jar: CookieJar) -> bytes:
    rand = world.random.randbytes
    return jar.stamp(Initiation(world.random.getrandbits(32), rand(32), rand(48), rand(28)).encode(), world.now)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Counter[Sheddable]:
    counts: Counter[Sheddable] = Counter()

    def note(self: FloodMeter, kind: Sheddable, now: float) -> None:
        counts[kind] += 1

    monkeypatch.setattr(FloodMeter, "note", note)
    return counts


def test_only_what_the_filter_can_drop_is_measured(noted: Counter[Sheddable]) -> None:
    world = World()
    client, server = connected(world)
    noted.clear()
    without, proven = CookieJar(server.public_key), CookieJar(server.public_key)
    proven.cookie, proven.received_at = bytes(16), world.now
    useless = [b"x", initiation(world, without), initiation(world, proven)]
    for datagram in useless:
        server.receive([datagram, datagram], stranger(1))  # a batch passes the filter
        server.receive([datagram], client.endpoint)  # so does a peer's endpoint
    client.send(server)
    world.exchange()
    assert not noted
    for datagram in useless:
        server.receive([datagram], stranger(1))
    assert noted == Counter(Sheddable)


def test_the_endpoints_of_peers_are_spared_and_those_first_that_renew_a_session_next() -> None:
    world = World()
    client, server = connected(world)
    other = world.host()
    other.know(server)
    server.know(other, reachable=False)
    server.replace()
    other.start()
    world.now += 10.0
    other.send(server)
    world.exchange()
    admission = server.device.admission
    remotes = [host.endpoint.remote[:2] for host in (client, other)]
    assert sorted(admission.sources_to_spare(10, world.now)) == sorted(remotes)
    assert admission.sources_to_spare(1, world.now) == remotes[:1]


# --- Clients beside a flood ---


def beside_a_flood(world: World, server: Host, do: Callable[[], None], secs: float) -> Kernel:
    """Flood a server with initiations without cookies, 40,000 a second; call `do` in each millisecond."""
    kernel = Kernel(server.device.admission.flood, world.now)
    jar = CookieJar(server.public_key)
    forged = [initiation(world, jar) for _ in range(100)]
    for number in range(int(40_000 * secs)):
        world.now += 1 / 40_000
        kernel.now = world.now
        if kernel.passes(Sheddable.UNPROVEN):
            server.receive([forged[number % 100]], stranger(number))
            server.take_transmits()
        if number % 40 == 0:
            do()
    return kernel


def test_a_client_with_a_cookie_is_answered_at_once_beside_a_flood_of_those_without() -> None:
    world = World()
    client, server = world.pair(under_load_handshakes=0)
    client.send(server)
    world.exchange()
    assert client.total(Total.COOKIE_REPLIES_RECEIVED) == 1
    world.now += REKEY_TIMEOUT - 0.5
    sent: list[float] = []

    def carry() -> None:
        client.handle_timeout()
        for transmit in client.take_transmits():
            sent.append(world.now)
            assert classify(transmit.datagrams[0]) in {Sheddable.PROVEN, None}
            server.receive(transmit.datagrams, client.endpoint)
            for answer in server.take_transmits():
                client.receive(answer.datagrams, server.endpoint)

    kernel = beside_a_flood(world, server, carry, 1.0)
    assert kernel.shed[Sheddable.UNPROVEN] > 20_000
    assert kernel.meter.shares[Sheddable.PROVEN] == 1.0, "so the kernel drops none that has a cookie"
    assert client.peer(server).current is not None
    assert len(sent) == 2, "the initiation, and the packet that waited"
