"""Draining: it ends when no session is left, when all are idle, or when the time is up."""

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

    def remove_timed(self, timed: object) -> None:
        self.timed.remove(timed)

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

    def due(self) -> float:
        deadline = self.drain.next_deadline()
        assert deadline is not None
        return deadline

    def run(self, traffic: bool) -> float:
        """Let time pass, by the drain's own deadlines; return when it ended."""
        for _ in range(1000):
            now = self.due()
            self.counters[Total.SENT_PACKETS] += traffic
            self.drain.handle_timeout(now)
            if self.loop.stopped:
                return now
        raise AssertionError("it never ends")


def test_a_drain_refuses_new_handshakes_from_its_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    assert not draining.device.accepting
    assert draining.loop.timed == [draining.drain]
    assert not draining.loop.stopped


def test_a_drain_without_sessions_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Draining(monkeypatch, sessions=0).run(traffic=True) == 0.0


def test_a_drain_serves_active_sessions_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Draining(monkeypatch).run(traffic=True) == TIMEOUT


def test_a_drain_with_idle_sessions_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert IDLE_SECS <= Draining(monkeypatch).run(traffic=False) <= IDLE_SECS + CHECK_SECS


def test_a_drain_ends_with_the_last_session(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    draining.drain.handle_timeout(0.0)
    draining.sessions = 0
    assert draining.run(traffic=True) == CHECK_SECS


def test_a_packet_in_either_direction_restarts_the_idle_wait_of_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    draining.drain.handle_timeout(0.0)
    draining.counters[Total.RECEIVED_PACKETS] += 1
    draining.drain.handle_timeout(IDLE_SECS - 0.1)
    draining.drain.handle_timeout(IDLE_SECS + 0.1)
    assert not draining.loop.stopped
    draining.drain.handle_timeout(2 * IDLE_SECS)
    assert draining.loop.stopped


def test_a_stop_takes_over_a_drain_that_the_operator_began(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    ends: list[str] = []
    draining.drain.begin(TIMEOUT, lambda: ends.append("stopped"))
    while not draining.drain._is_over:
        draining.drain.handle_timeout(draining.due())
    assert ends == ["stopped"]
    assert not draining.loop.stopped
    draining.drain.begin(TIMEOUT, lambda: ends.append("at once, for it is over"))
    assert ends == ["stopped", "at once, for it is over"]


def test_a_cancelled_drain_accepts_handshakes_again_and_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    draining.drain.cancel()
    assert draining.device.accepting
    assert draining.loop.timed == []
    assert draining.drain.next_deadline() is None
    assert draining.drain.left_secs is None
