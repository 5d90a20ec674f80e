"""Interrupts of tests that run in several processes (pytest-xdist): each test ends what it has started.

The rule: an interrupt reaches every process that runs tests, once; a second one would interrupt the cleaning up.
"""

import os
import signal

from demo.processes import children


class InterruptedOnce:
    """Plugin of a process that runs tests."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, _interrupt_once)  # execnet lets its processes ignore it


class PassesInterrupts:
    """Plugin of the process that distributes the tests."""

    def pytest_keyboard_interrupt(self) -> None:
        """Interrupt the processes that run tests."""
        for pid in children():
            os.kill(pid, signal.SIGINT)


def _interrupt_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
