"""The fair share at work: by the filter of the socket, counted and logged, gone when nothing comes any more."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import pytest

from oxidize.net.udp import UdpSocket
from oxidize.protocol.counters import DROPS_START, DropReason
from oxidize.protocol.fair_share import IDLE_SECS, QueueState
from oxidize.runtime.fair_share_keeper import LOGGED_SECS, FairShareKeeper
from oxidize.runtime.flood_filter import FloodFilter
from tests.support.network import World, connected

ROOM = 16 << 20
OVER = DROPS_START + DropReason.OVER_FAIR_SHARE


class Socket:
    """A UDP socket whose queue overflows when `is_full`; sessions: what its filter thins out."""

    def __init__(self) -> None:
        self.sessions: Mapping[int, float] = {}
        self.is_full = False
        self._dropped = 0

    def shed(
        self, shares: Sequence[float], spared: Collection[tuple[bytes, int]], sessions: Mapping[int, float]
    ) -> None:
        self.sessions = sessions

    def queue_state(self) -> QueueState:
        self._dropped += 100 * self.is_full
        return QueueState(ROOM if self.is_full else 0, ROOM, self._dropped)


class Stand:
    """A device with its keeper, and one session that sends too much."""

    def __init__(self) -> None:
        _, server = connected(World())
        self.udp = Socket()
        self.share = server.device.fair_share
        self.counters = server.slots.counters
        udp = cast(UdpSocket, self.udp)
        self.keeper = FairShareKeeper(
            self.share, udp, FloodFilter(server.device.admission, udp, self.counters), self.counters
        )
        self.keeper.begin()
        self.now = 1000.0

    def overflow(self) -> None:
        self.udp.is_full = True
        for _ in range(100):
            self.now += 0.001
            if self.share.is_counting:
                self.share.count(50)
                self.share.admit(7, [b""] * 50, 50_000, are_joined=False)
            self.share.note(self.now, is_empty=False)

    def empty(self, secs: float) -> None:
        self.udp.is_full = False
        for _ in range(round(secs / 0.01)):
            self.now += 0.01
            if self.share.is_counting:
                self.share.count(10)
                self.share.admit(7, [b""] * 10, 10_000, are_joined=False)
            self.share.note(self.now, is_empty=True)


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_an_overflow_is_thinned_out_by_the_filter_until_nothing_comes(stand: Stand) -> None:
    assert stand.keeper.next_deadline() is None
    stand.overflow()
    assert set(stand.udp.sessions) == {7}
    due = stand.keeper.next_deadline()
    assert due == stand.now + IDLE_SECS
    stand.keeper.handle_timeout(due)
    assert stand.udp.sessions == {}
    assert stand.keeper.next_deadline() is None


def test_what_the_kernel_sheds_is_counted(stand: Stand) -> None:
    stand.overflow()
    assert stand.counters[OVER] == 0
    stand.empty(0.3)
    assert stand.counters[OVER] > 0


def test_the_log_says_it_once_in_a_while(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> int:
        return caplog.text.count("more datagrams come than can be processed")

    for _ in range(3):
        stand.overflow()
        stand.now += 1.0
    assert lines() == 1
    stand.now += LOGGED_SECS
    stand.overflow()
    assert lines() == 2
