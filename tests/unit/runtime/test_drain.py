"""Draining: it ends when nobody is left, when nothing moves any more, or when the time is up."""

from types import SimpleNamespace

import pytest

from oxidize.protocol.counters import Total
from oxidize.runtime import drain as drain_module
from oxidize.runtime.drain import CHECK_SECS, IDLE_SECS, Drain
from tests.support.counters import ArraySlots

TIMEOUT = 30.0


class FakeLoop:
    def __init__(self) -> None:
        self.timed: list[object] = []
        self.stopped = False

    def add_timed(self, timed: object) -> None:
        self.timed.append(timed)

    def stop(self) -> None:
        self.stopped = True


class Draining:
    """A node that drains, from time 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sessions: int = 2) -> None:
        monkeypatch.setattr(drain_module, "boot_time", lambda: 0.0)
        self.sessions = sessions
        self.device = SimpleNamespace(accepting=True, live_sessions=lambda now: self.sessions)
        self.counters = ArraySlots().counters
        self.loop = FakeLoop()
        self.drain = Drain(self.device, self.counters, self.loop)  # type: ignore[arg-type]
        self.drain.begin(TIMEOUT, self.loop.stop)

    def run(self, traffic: bool) -> float:
        """Let time pass, by the drain's own deadlines; return when it ended."""
        for _ in range(1000):
            now = self.drain.next_deadline()
            self.counters[Total.SENT_PACKETS] += traffic
            self.drain.handle_timeout(now)
            if self.loop.stopped:
                return now
        raise AssertionError("it never ends")


def test_no_new_handshakes_from_its_begin(monkeypatch) -> None:
    draining = Draining(monkeypatch)
    assert not draining.device.accepting
    assert draining.loop.timed == [draining.drain]
    assert not draining.loop.stopped


def test_nobody_left_ends_it_at_once(monkeypatch) -> None:
    assert Draining(monkeypatch, sessions=0).run(traffic=True) == 0.0


def test_sessions_that_are_used_are_served_until_the_time_is_up(monkeypatch) -> None:
    assert Draining(monkeypatch).run(traffic=True) == TIMEOUT


def test_idle_sessions_end_it_early(monkeypatch) -> None:
    assert IDLE_SECS <= Draining(monkeypatch).run(traffic=False) <= IDLE_SECS + CHECK_SECS


def test_the_last_session_that_ends_ends_it(monkeypatch) -> None:
    draining = Draining(monkeypatch)
    draining.drain.handle_timeout(0.0)
    draining.sessions = 0
    assert draining.run(traffic=True) == CHECK_SECS


def test_one_packet_in_either_direction_begins_the_wait_anew(monkeypatch) -> None:
    draining = Draining(monkeypatch)
    draining.drain.handle_timeout(0.0)
    draining.counters[Total.RECEIVED_PACKETS] += 1
    draining.drain.handle_timeout(IDLE_SECS - 0.1)
    draining.drain.handle_timeout(IDLE_SECS + 0.1)
    assert not draining.loop.stopped
    draining.drain.handle_timeout(2 * IDLE_SECS)
    assert draining.loop.stopped


def test_a_stop_takes_over_a_drain_by_hand(monkeypatch) -> None:
    draining = Draining(monkeypatch)
    ends: list[str] = []
    draining.drain.begin(TIMEOUT, lambda: ends.append("stopped"))
    while not draining.drain._is_over:
        draining.drain.handle_timeout(draining.drain.next_deadline())
    assert ends == ["stopped"]
    assert not draining.loop.stopped
    draining.drain.begin(TIMEOUT, lambda: ends.append("at once, for it is over"))
    assert ends == ["stopped", "at once, for it is over"]


def test_a_drain_that_is_taken_back_accepts_again_and_never_ends(monkeypatch) -> None:
    draining = Draining(monkeypatch)
    draining.loop.remove_timed = draining.loop.timed.remove
    draining.drain.cancel()
    assert draining.device.accepting
    assert draining.loop.timed == []
    assert draining.drain.next_deadline() is None
    assert draining.drain.left_secs is None
