"""A process that prepares a replacement gives way to the one that serves, where it can end that again."""

import os
import subprocess
import sys
import threading
import time

import pytest

from oxidize import cpu_priority
from oxidize.cpu_priority import LOW_NICE, CpuPriority

UNPRIVILEGED = """
import os, resource
from oxidize.cpu_priority import CpuPriority
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
with CpuPriority():
    low = os.getpriority(os.PRIO_PROCESS, 0)
print(low, os.getpriority(os.PRIO_PROCESS, 0))
"""
ROOT = pytest.mark.root


def own_nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_a_process_that_could_not_raise_its_priority_again_keeps_it() -> None:
    before = str(own_nice())
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [before, before]


@ROOT
def test_the_priority_is_low_until_it_is_restored_and_no_thread_is_left() -> None:
    before, threads = own_nice(), threading.active_count()
    priority = CpuPriority()
    priority.lower()
    priority.lower()
    assert own_nice() == LOW_NICE
    priority.restore()
    priority.restore()
    assert (own_nice(), threading.active_count()) == (before, threads)


@ROOT
def test_a_preparation_that_gets_no_time_ends_at_full_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_priority, "LOW_SECS_MAX", 0.01)
    before = own_nice()
    with CpuPriority():
        while own_nice() != before:  # the test would hang
            time.sleep(0.001)
    assert own_nice() == before


def test_a_kernel_that_refuses_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")  # a filter of system calls

    before = own_nice()
    monkeypatch.setattr(os, "setpriority", refuse)
    with CpuPriority():
        assert own_nice() == before


@ROOT
def test_a_priority_that_stays_low_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    before, allowed = own_nice(), os.setpriority
    with monkeypatch.context() as changed:
        with CpuPriority():
            changed.setattr(os, "setpriority", lambda *_: None)
        assert f"nice {LOW_NICE} instead of {before}" in caplog.text
    allowed(os.PRIO_PROCESS, 0, before)
