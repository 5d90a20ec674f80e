"""The loop: what was unregistered or removed is never called again, and signals arrive between callbacks."""

import os
import signal
from collections.abc import Iterator
from math import inf

import pytest

from oxidize.net.event_loop import EVENTS_MAX, READABLE, WRITABLE, Loop, boot_time


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    pipes = [os.pipe() for _ in range(2)]
    yield pipes
    for fd in (fd for pipe in pipes for fd in pipe):
        os.close(fd)


class Timer:
    def __init__(self, due: float | None) -> None:
        self.due = due
        self.fired: list[float] = []
        self.then = lambda: None

    def next_deadline(self) -> float | None:
        return self.due

    def handle_timeout(self, now: float) -> None:
        self.fired.append(now)
        self.due = None
        self.then()


def test_a_readable_descriptor_is_called_back_as_long_as_it_is_readable(loop, pipes) -> None:
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


def test_what_one_callback_unregisters_is_not_called_for_an_event_of_the_same_poll(loop, pipes) -> None:
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


def test_a_second_registration_replaces_the_first(loop, pipes) -> None:
    (read, write), _ = pipes
    calls = []
    loop.register(write, READABLE, lambda: calls.append("read"))
    loop.register(write, WRITABLE, lambda: calls.append("write"))
    loop.run_once(0)
    assert calls == ["write"]
    loop.unregister(write)
    loop.unregister(write)
    loop.unregister(read)
    loop.run_once(0)
    assert calls == ["write"]


def test_deadlines_that_have_passed_end_once(loop) -> None:
    past, future, never = Timer(boot_time() - 1), Timer(boot_time() + 1000), Timer(None)
    for timer in (past, future, never):
        loop.add_timed(timer)
    loop.run_once(0)
    loop.run_once(0)
    assert len(past.fired) == 1
    assert past.fired[0] <= boot_time()
    assert future.fired == never.fired == []


def test_what_one_timeout_removes_does_not_time_out(loop) -> None:
    first, second = Timer(0.0), Timer(0.0)
    first.then = lambda: loop.remove_timed(second)
    loop.add_timed(first)
    loop.add_timed(second)
    loop.run_once(0)
    assert (len(first.fired), second.fired) == (1, [])
    loop.remove_timed(second)


def test_the_wait_ends_with_the_first_deadline(loop) -> None:
    loop.add_timed(Timer(boot_time() + 500))
    loop.add_timed(Timer(boot_time() + 5))
    loop.add_timed(Timer(inf))
    assert 4 < loop._wait_secs(None) <= 5
    assert loop._wait_secs(1.0) == 1.0
    loop.add_timed(Timer(boot_time() - 5))
    assert loop._wait_secs(None) == 0.0


def test_a_signal_is_handled_by_the_loop_and_not_where_it_strikes(loop) -> None:
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


def test_it_runs_until_it_is_stopped(loop, pipes) -> None:
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


def test_more_events_than_fit_into_one_poll_all_have_their_turn(loop) -> None:
    pipes = [os.pipe() for _ in range(EVENTS_MAX + 10)]
    seen = set()
    try:
        for read, write in pipes:
            loop.register(read, READABLE, lambda fd=read: seen.add(os.read(fd, 1) and fd))
            os.write(write, b"x")
        loop.run_once(0)
        loop.run_once(0)
        assert len(seen) == len(pipes)
    finally:
        for pair in pipes:
            for fd in pair:
                os.close(fd)
