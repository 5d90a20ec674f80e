"""The lanes of `make test`: which tests run at the same time, each lane in a process of its own (pytest-xdist).

The rule: tests that measure traffic run one after the other, in one lane. Only those of PARALLEL, which mostly wait,
run beside them, in a second one. Tests that only compute take the processor time that both leave: what measures traffic
must not lose packets to them. An interrupt reaches every lane, so that each test ends its own processes.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from oxidize.holder.processes import children

COMPUTING = ("golden", "properties", "simulation", "unit")  # folders of tests
PARALLEL = (
    "test_a_tunnel_survives_outages_of_every_kind",
    "test_a_journal_is_compacted_under_traffic_while_its_server_is_replaced_and_killed",
    "test_two_hundred_generations_lose_nothing_and_grow_by_nothing",
)
TESTS = Path(__file__).parents[1]
NICE_OF_COMPUTING, NICE_OF_TRAFFIC = 10, -10


def lane_of(nodeid: str) -> str | None:
    """Return the name of the lane in which a test must run, None for any that is free."""
    if nodeid.split("/")[1] in COMPUTING:
        return None
    return "parallel" if nodeid.rpartition("::")[2] in PARALLEL else "traffic"


class Lane:
    """Plugin of a process that runs one lane."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, _interrupt_once)  # execnet lets its processes ignore it

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Give the test, and the processes that it starts, their share of the processors."""
        if os.geteuid() == 0:
            nice = NICE_OF_COMPUTING if lane_of(item.nodeid) is None else NICE_OF_TRAFFIC
            os.setpriority(os.PRIO_PROCESS, 0, nice)


class Lanes:
    """Plugin of the process that distributes the tests."""

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> "_Scheduling":
        return _Scheduling(config, log)

    def pytest_keyboard_interrupt(self) -> None:
        """Interrupt the lanes; each ends what its test has started."""
        for pid in children():
            os.kill(pid, signal.SIGINT)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    def _split_scope(self, nodeid: str) -> str:
        return lane_of(nodeid) or nodeid


def _interrupt_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    raise KeyboardInterrupt
