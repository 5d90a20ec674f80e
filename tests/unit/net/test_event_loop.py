"""The loop never calls an unregistered callback or a removed timer, and handles signals between callbacks."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path

import pytest

from oxidize.clock import boot_time
from oxidize.net.event_loop import BURST_SECS, EVENTS_MAX, IDLE_WAIT_SECS, READABLE, Loop

Pipes = list[tuple[int, int]]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = [os.pipe() for _ in range(2)]
    yield pipes
    for fd in (fd for pipe in pipes for fd in pipe):
        os.close(fd)


class Timer:
    def __init__(self, due: float | None) -> None:
        self.due = due
        self.fired: list[float] = []
        self.then: Callable[[], None] = lambda: None

    def next_deadline(self) -> float | None:
        return self.due

    def handle_timeout(self, now: float) -> None:
        self.fired.append(now)
        self.due = None
        self.then()


def test_a_callback_runs_as_long_as_its_descriptor_is_readable(loop: Loop, pipes: Pipes) -> None:
    (read, write), _ = pipes
    calls = []
    loop.register(read, READABLE, lambda: calls.append(os.read(read, 1)))
    loop.run_once(0)
    assert calls == []
    os.write(write, b"ab")
    loop.run_once(0)
    loop.run_once(0)
    loop.run_once(0)
    assert calls == [b"a", b"b"]


def test_an_unregistered_callback_is_not_called_for_an_event_of_the_same_poll(loop: Loop, pipes: Pipes) -> None:
    (first, first_write), (second, second_write) = pipes
    calls = []

    def take_over(mine: int, other: int) -> None:
        calls.append(mine)
        loop.unregister(other)

    loop.register(first, READABLE, lambda: take_over(first, second))
    loop.register(second, READABLE, lambda: take_over(second, first))
    os.write(first_write, b"x")
    os.write(second_write, b"x")
    loop.run_once(0)
    assert len(calls) == 1
    loop.run_once(0)
    assert len(set(calls)) == 1


def test_a_second_registration_replaces_the_first(loop: Loop, pipes: Pipes) -> None:
    (read, write), _ = pipes
    calls = []
    loop.register(write, READABLE, lambda: calls.append("read"))
    loop.register(write, select.EPOLLOUT, lambda: calls.append("write"))
    loop.run_once(0)
    assert calls == ["write"]
    loop.unregister(write)
    loop.unregister(write)
    loop.unregister(read)
    loop.run_once(0)
    assert calls == ["write"]


def test_a_paused_descriptor_is_silent_until_it_is_registered_again(loop: Loop, pipes: Pipes) -> None:
    (read, write), _ = pipes
    calls: list[str] = []
    loop.register(read, READABLE, lambda: calls.append("before"))
    loop.pause(read)
    os.write(write, b"x")
    for _ in range(3):
        loop.run_once(0)
    assert calls == []
    loop.register(read, READABLE, lambda: calls.append("after"))
    loop.run_once(0)
    assert calls == ["after"]


def test_a_paused_descriptor_keeps_its_place_in_the_kernel(loop: Loop, pipes: Pipes) -> None:
    (read, _), _ = pipes

    def watched() -> set[int]:
        lines = Path(f"/proc/self/fdinfo/{epoll}").read_text().splitlines()
        return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}

    epoll = loop._epoll.fileno()
    loop.register(read, READABLE, lambda: None)
    loop.pause(read)
    assert read in watched()


def test_a_hang_up_of_a_paused_descriptor_wakes_the_loop_at_most_once(loop: Loop, pipes: Pipes) -> None:
    (read, write), _ = pipes
    loop.register(read, READABLE, lambda: None)
    loop.pause(read)
    os.close(write)
    loop.run_once(0)
    assert loop._epoll.poll(0) == []
    pipes[0] = (read, os.dup(read))  # for the fixture to close


def test_a_deadline_that_has_passed_is_handled_once(loop: Loop) -> None:
    past, future, never = Timer(boot_time() - 1), Timer(boot_time() + 1000), Timer(None)
    for timer in (past, future, never):
        loop.add_timed(timer)
    loop.run_once(0)
    loop.run_once(0)
    assert len(past.fired) == 1
    assert past.fired[0] <= boot_time()
    assert future.fired == never.fired == []


def test_a_timer_that_another_timeout_removes_does_not_time_out(loop: Loop) -> None:
    first, second = Timer(0.0), Timer(0.0)
    first.then = lambda: loop.remove_timed(second)
    loop.add_timed(first)
    loop.add_timed(second)
    loop.run_once(0)
    assert (len(first.fired), second.fired) == (1, [])
    loop.remove_timed(second)


def test_deadlines_are_looked_at_while_events_come_without_a_pause(
    loop: Loop, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (read, write), _ = pipes
    clock = [1000.0]
    monkeypatch.setattr(loop, "now", lambda: clock[0])
    timer = Timer(clock[0])
    loop.add_timed(timer)
    loop.register(read, READABLE, lambda: None)
    os.write(write, b"x")
    for _ in range(3):
        loop.run_once()
        assert timer.fired == [], "between a packet and its reply"
    for _ in range(2):
        clock[0] += 2 * BURST_SECS
        timer.due = clock[0]
        loop.run_once()
        assert timer.fired[-1:] == [clock[0]]


def test_a_caller_with_a_limit_finds_every_deadline_handled(loop: Loop, pipes: Pipes) -> None:
    (read, write), _ = pipes
    timer = Timer(0.0)
    loop.add_timed(timer)
    loop.register(read, READABLE, lambda: None)
    os.write(write, b"x")
    loop.run_once(0)
    assert len(timer.fired) == 1


def test_deadlines_are_looked_at_as_soon_as_no_more_events_come(
    loop: Loop, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (read, write), _ = pipes
    waits: list[float] = []
    timer = Timer(None)

    def poll(wait_secs: float, before: Callable[[float], list[tuple[int, int]]] = loop._poll) -> list[tuple[int, int]]:
        waits.append(wait_secs)
        return before(0.0)

    def start_timer() -> None:
        os.read(read, 1)
        timer.due = boot_time()

    monkeypatch.setattr(loop, "_poll", poll)
    loop.add_timed(timer)
    loop.register(read, READABLE, start_timer)
    os.write(write, b"x")
    loop.run_once()
    assert (waits, timer.fired) == ([IDLE_WAIT_SECS], [])
    loop.run_once()
    assert waits[1:] == [0.0, 0.0]
    assert len(timer.fired) == 1


def test_a_poll_waits_until_the_first_deadline(loop: Loop) -> None:
    loop.add_timed(Timer(boot_time() + 500))
    loop.add_timed(Timer(boot_time() + 5))
    loop.add_timed(Timer(inf))
    assert 4 < loop._wait_secs(None) <= 5
    assert loop._wait_secs(1.0) == 1.0
    loop.add_timed(Timer(boot_time() - 5))
    assert loop._wait_secs(None) == 0.0


def test_a_signal_is_handled_by_the_loop_and_not_by_the_signal_handler(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    calls = []
    try:
        loop.on_signal(signal.SIGUSR1, lambda: calls.append("signal"))
        os.kill(os.getpid(), signal.SIGUSR1)
        assert calls == []
        loop.run_once(0)
        assert calls == ["signal"]
        loop.run_once(0)
        assert calls == ["signal"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_loop_runs_until_it_is_stopped(loop: Loop, pipes: Pipes) -> None:
    (read, write), _ = pipes
    turns = []

    def turn() -> None:
        turns.append(1)
        if len(turns) == 3:
            loop.stop()

    loop.register(read, READABLE, turn)
    os.write(write, b"x")
    loop.run()
    assert len(turns) == 3


def test_events_that_do_not_fit_into_one_poll_are_handled_by_the_next(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(EVENTS_MAX + 10)]
    seen: set[int] = set()

    def note(fd: int) -> None:
        os.read(fd, 1)
        seen.add(fd)

    try:
        for read, write in pipes:
            loop.register(read, READABLE, partial(note, read))
            os.write(write, b"x")
        loop.run_once(0)
        loop.run_once(0)
        assert len(seen) == len(pipes)
    finally:
        for pair in pipes:
            for fd in pair:
                os.close(fd)
