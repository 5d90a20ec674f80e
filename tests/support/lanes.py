"""The lanes of `make test`: which tests run at the same time, each lane in a process of its own (pytest-xdist).

The rule: tests that measure traffic run one after the other, in one lane. Only those marked `parallel`, which mostly
wait, run beside them, in a second one. Tests that only compute take the processor time that both leave: what measures
traffic must not lose packets to them. An interrupt reaches every lane, so that each test ends its own processes.
"""

import os
import signal
from pathlib import Path

import pytest

from oxidize.holder.processes import children

COMPUTING = ("golden", "properties", "simulation", "unit")  # folders of tests
TESTS = Path(__file__).parents[1]
NICE_OF_COMPUTING, NICE_OF_TRAFFIC = 10, -10


def lane_of(item: pytest.Item) -> str | None:
    """Return the name of the lane in which a test must run, None for any that is free."""
    if _is_computing(item):
        return None
    return "parallel" if item.get_closest_marker("parallel") else "traffic"


def _is_computing(item: pytest.Item) -> bool:
    return item.path.relative_to(TESTS).parts[0] in COMPUTING


class Lane:
    """Plugin of a process that runs one lane."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, _interrupt_once)  # execnet lets its processes ignore it

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Give the test, and the processes that it starts, their share of the processors."""
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, 0, NICE_OF_COMPUTING if _is_computing(item) else NICE_OF_TRAFFIC)


class Lanes:
    """Plugin of the process that distributes the tests."""

    def pytest_keyboard_interrupt(self) -> None:
        """Interrupt the lanes; each ends what its test has started."""
        for pid in children():
            os.kill(pid, signal.SIGINT)


def _interrupt_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    raise KeyboardInterrupt
