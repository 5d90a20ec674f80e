"""Draining: it ends when no session is left, when all are idle, or when the time is up."""

from types import SimpleNamespace

import pytest

from oxidize.net.event_loop import Loop, Timed
from oxidize.protocol.counters import Total
from oxidize.runtime import drain as drain_module
from oxidize.runtime.drain import CHECK_SECS, IDLE_SECS, Drain
from tests.support.counters import ArraySlots

TIMEOUT = 30.0


class FakeLoop(Loop):
    def __init__(self) -> None:
        self.timed: list[Timed] = []
        self.stopped = False

    def add_timed(self, timed: Timed) -> None:
        self.timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        if timed in self.timed:
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
        self.generation = 1
        self.drain = self.next_drain()
        self.drain.begin(TIMEOUT, self.loop.stop)

    def next_drain(self) -> Drain:
        return Drain(self.device, self.counters, self.loop, lambda: self.generation)  # type: ignore[arg-type]  # a fake device

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


# --- The next generation ---


def test_the_next_generation_continues_a_drain_with_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    draining.device.accepting = True
    monkeypatch.setattr(drain_module, "boot_time", lambda: 20.0)
    draining.generation = 2
    draining.drain = draining.next_drain()
    assert draining.drain.resume(draining.loop.stop)
    assert not draining.device.accepting
    assert draining.drain.left_secs == TIMEOUT - 20.0
    assert draining.run(traffic=True) == TIMEOUT


def test_the_next_generation_does_not_repeat_a_drain_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    ended_at = draining.run(traffic=False)
    assert ended_at < TIMEOUT
    monkeypatch.setattr(drain_module, "boot_time", lambda: ended_at)
    draining.generation = 2
    draining.drain = draining.next_drain()
    draining.loop.stopped = False
    assert draining.drain.resume(draining.loop.stop)
    assert draining.drain.left_secs == 0.0
    assert draining.loop.stopped
    assert not draining.device.accepting


@pytest.mark.parametrize(("generations", "continued"), [(0, True), (1, True), (2, False)])
def test_a_release_without_drains_in_between_has_ended_the_drain(
    monkeypatch: pytest.MonkeyPatch, generations: int, continued: bool
) -> None:
    draining = Draining(monkeypatch)
    draining.generation += generations
    draining.drain = draining.next_drain()
    assert draining.drain.resume(draining.loop.stop) is continued
    assert draining.device.accepting is not continued
    draining.generation += 1
    draining.drain = draining.next_drain()
    assert draining.drain.resume(draining.loop.stop) is continued


def test_a_drain_that_was_cancelled_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    draining = Draining(monkeypatch)
    draining.drain.cancel()
    draining.drain = draining.next_drain()
    assert not draining.drain.resume(draining.loop.stop)
    assert draining.device.accepting
