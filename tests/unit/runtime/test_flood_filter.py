"""The flood filter follows the measured flood: attached while there is one, told once where the kernel has none."""

import errno
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import cast

import pytest

from oxidize.net.udp import UdpSocket
from oxidize.protocol.constants import REKEY_TIMEOUT
from oxidize.protocol.counters import Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.shedding import FLOOD_FACTOR, UNPROVEN_PER_SECOND, WINDOW_SECS, Sheddable
from oxidize.runtime.flood_filter import SOURCES_SECS, FloodFilter
from tests.support.network import Host, World, connected

DROPPED_BEFORE = (1 << 32) - 100  # the kernel's counter is about to begin again


class Socket:
    """A UDP socket whose kernel may refuse filters; kernel: how many datagrams it drops between two looks."""

    def __init__(self) -> None:
        self.filters: list[tuple[list[float], list[tuple[bytes, int]]]] = []
        self.sessions: Mapping[int, float] = {}
        self.refusal: OSError | None = None
        self.refuses_all = True
        self.dropped = DROPPED_BEFORE
        self.drops_each_time = 0

    def shed(
        self, shares: Sequence[float], spared: Collection[tuple[bytes, int]], sessions: Mapping[int, float]
    ) -> None:
        if self.refusal is not None and (sessions or (self.refuses_all and min(shares) < 1.0)):
            raise self.refusal
        self.filters.append((list(shares), list(spared)))
        self.sessions = sessions

    def kernel_drops(self) -> int:
        self.dropped += self.drops_each_time
        return self.dropped % (1 << 32)


class Stand:
    """A server with one client, and the filter of its socket."""

    def __init__(self) -> None:
        self.world = World()
        self.client, self.server = connected(self.world)
        self.udp = Socket()
        device = self.server.device
        self.flood = device.admission.flood
        self.filter = FloodFilter(device.admission, cast(UdpSocket, self.udp), self.server.slots.counters)
        self.filter.begin()

    def arrive(self, per_second: int, secs: float = WINDOW_SECS) -> None:
        """Let initiations arrive, and the loop call the filter when that is due."""
        for _ in range(int(per_second * secs)):
            self.world.now += 1 / per_second
            self.flood.note(Sheddable.UNPROVEN, self.world.now)
            self.run()

    def run(self) -> None:
        due = self.filter.next_deadline()
        if due is not None and due <= self.world.now:
            self.filter.handle_timeout(self.world.now)

    def rest(self, secs: float) -> None:
        for _ in range(round(secs / WINDOW_SECS)):
            self.world.now += WINDOW_SECS
            self.run()

    @property
    def shed(self) -> int:
        return self.server.total(Total.SHED_DATAGRAMS)


@pytest.fixture
def stand() -> Stand:
    return Stand()


def source(host: Host) -> tuple[bytes, int]:
    return host.endpoint.remote[:2]


def test_there_is_no_filter_and_no_timer_without_a_flood(stand: Stand) -> None:
    stand.arrive(int(0.9 * FLOOD_FACTOR * UNPROVEN_PER_SECOND), 2.0)
    assert stand.udp.filters == []
    assert stand.filter.next_deadline() is None


def test_a_filter_comes_with_the_flood_spares_the_peers_and_goes_with_the_flood(stand: Stand) -> None:
    stand.arrive(40_000)
    shares, spared = stand.udp.filters[0]
    assert shares[Sheddable.UNPROVEN] < 0.2
    assert shares[Sheddable.PROVEN] == 1.0
    assert spared == [source(stand.client)]
    assert stand.filter.next_deadline() is not None
    stand.rest(4.0)
    assert stand.udp.filters[-1] == ([1.0, 1.0, 1.0], spared)
    assert stand.filter.next_deadline() is None


def test_a_peer_that_moves_during_a_flood_is_soon_spared_at_its_new_endpoint(stand: Stand) -> None:
    stand.arrive(40_000)
    stand.world.move(stand.client, Endpoint(bytes([198, 51, 100, 1]), 7000))
    stand.world.now += REKEY_TIMEOUT
    stand.client.send(stand.server)
    stand.world.exchange()
    for _ in range(round(SOURCES_SECS / WINDOW_SECS) + 1):
        stand.arrive(4_000)
    assert stand.udp.filters[-1][1] == [source(stand.client)]


def test_what_was_shed_is_counted_and_no_more_than_the_kernel_has_dropped(stand: Stand) -> None:
    stand.udp.drops_each_time = 150
    stand.arrive(40_000)
    assert stand.shed == 0, "until then the queue was full"
    stand.arrive(4_000, 4 * WINDOW_SECS)
    looks = (stand.udp.dropped - DROPPED_BEFORE) // 150 - 1
    assert looks >= 3
    assert stand.shed == 150 * looks, "the counter of the kernel has begun again"
    stand.udp.drops_each_time = 1 << 20
    before = stand.shed
    stand.arrive(4_000, 2 * WINDOW_SECS)
    assert before < stand.shed < before + 20_000, "the rest was dropped for want of room"


def test_a_kernel_without_filters_costs_only_the_shedding_and_is_told_once(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    stand.udp.refusal = OSError(errno.ENOMEM, "Cannot allocate memory")
    stand.arrive(40_000, 1.0)
    assert stand.filter.next_deadline() is None
    assert caplog.text.count("floods are not shed: the kernel refuses a socket filter") == 1
    assert stand.udp.filters == []
    assert stand.shed == 0


def test_a_new_owner_begins_without_a_filter_and_measures_for_itself(stand: Stand) -> None:
    stand.arrive(40_000)
    stand.filter.begin()
    assert stand.flood.decide_at == inf
    stand.arrive(40_000)
    assert [min(shares) < 1.0 for shares, _ in stand.udp.filters] == [True, True]


def test_sessions_are_thinned_out_beside_a_flood_and_without_one(stand: Stand) -> None:
    assert stand.filter.thin_out({7: 0.5})
    assert stand.udp.sessions == {7: 0.5}
    stand.arrive(40_000)
    assert stand.udp.sessions == {7: 0.5}
    assert min(stand.udp.filters[-1][0]) < 1.0
    assert stand.filter.thin_out({})
    assert stand.udp.sessions == {}
    assert min(stand.udp.filters[-1][0]) < 1.0


def test_a_flood_is_shed_where_the_kernel_has_no_room_for_the_sessions(stand: Stand) -> None:
    stand.arrive(40_000)
    stand.udp.refusal, stand.udp.refuses_all = OSError(errno.ENOMEM, "Cannot allocate memory"), False
    assert not stand.filter.thin_out({7: 0.5})
    assert min(stand.udp.filters[-1][0]) < 1.0
    assert stand.filter.next_deadline() is not None
    stand.filter.begin()
    assert stand.filter.thin_out({})
