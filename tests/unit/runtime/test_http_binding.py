"""An address for /health and /metrics that cannot be bound keeps no node from serving, and is tried again."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest

from oxidize.runtime import http_binding
from oxidize.runtime.http_binding import LONGEST_PAUSE_SECS, HttpBinding, bind_http_if_possible
from oxidize.settings import NodeSettings
from tests.support.node_stand import Stand

pytestmark = pytest.mark.usefixtures("no_leak")


class Bench:
    """A binding on a clock of its own. listener: the adopted one. refuses: of adoptions, the errno, 0 for none."""

    def __init__(self, settings: NodeSettings) -> None:
        self.now = 100.0
        self.refuses = 0
        self.listener: socket.socket | None = None
        self.binding = HttpBinding(settings, lambda: self.listener is not None, self._adopt, lambda: self.now)

    def _adopt(self, listener: socket.socket) -> None:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.listener = listener

    def run(self, attempts: int = 1) -> list[float]:
        """Wait for that many attempts; return when each was due."""
        due: list[float] = []
        for _ in range(attempts):
            deadline = self.binding.next_deadline()
            assert deadline is not None
            self.now = deadline
            due.append(deadline)
            self.binding.handle_timeout(self.now)
        return due


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A listener that has the address of the node."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def settings(tmp_path: Path, taken: socket.socket) -> NodeSettings:
    with ExitStack() as undo:
        return Stand(tmp_path, undo).settings._replace(metrics_listen=taken.getsockname())


def test_an_address_that_is_taken_is_told_and_bound_once_it_is_free(
    settings: NodeSettings, taken: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    assert bind_http_if_possible(settings) is None
    (told,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "serving without /health and /metrics" in told
    bench = Bench(settings)
    bench.run(3)
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    assert str(bench.binding.problem).startswith(f"metrics_listen = {address}: Address already in use: expected a free")
    taken.close()
    bench.run()
    assert bench.binding.problem is None
    assert bench.binding.next_deadline() is None
    assert bench.listener is not None
    assert bench.listener.getsockname() == settings.metrics_listen
    bench.listener.close()


def test_the_pauses_between_attempts_grow_up_to_a_limit(settings: NodeSettings) -> None:
    due = Bench(settings).run(12)
    pauses = [later - earlier for earlier, later in pairwise(due)]
    assert pauses[:4] == [2.0, 4.0, 8.0, 16.0]
    assert set(pauses[4:]) == {LONGEST_PAUSE_SECS}


def test_an_attempt_before_its_time_is_none(settings: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> NoReturn:
        raise AssertionError("an attempt")

    monkeypatch.setattr(http_binding, "bind_http", fail)
    bench = Bench(settings)
    bench.binding.handle_timeout(bench.now)
    assert bench.binding.problem == "not bound yet"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_a_listener_that_the_loop_cannot_watch_is_closed_and_tried_again(
    settings: NodeSettings, taken: socket.socket, error: int
) -> None:
    taken.close()
    bench = Bench(settings)
    bench.refuses = error
    bench.run(2)
    assert os.strerror(error) in str(bench.binding.problem)
    bench.refuses = 0
    bench.run()
    assert bench.listener is not None
    bench.listener.close()


def test_an_address_that_is_not_there_yet_is_no_condition_for_serving(settings: NodeSettings) -> None:
    assert bind_http_if_possible(settings._replace(metrics_listen=("203.0.113.1", 9090))) is None


def test_http_that_is_switched_off_is_no_problem(settings: NodeSettings, caplog: pytest.LogCaptureFixture) -> None:
    off = settings._replace(metrics_listen=None)
    assert bind_http_if_possible(off) is None
    binding = Bench(off).binding
    assert (binding.problem, binding.next_deadline()) == (None, None)
    assert not caplog.records
