"""A process that does not serve yet is the first that the kernel ends, and no longer once it serves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oxidize import oom_score
from oxidize.oom_score import OomScore

SCORE = Path("/proc/self/oom_score_adj")
# In a process without any right, which may not be dumped: its files in /proc are root's by then.
UNPRIVILEGED = """
import ctypes, os, sys
from oxidize.oom_score import OomScore
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
score = OomScore()
score.raise_()
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
before = open("/proc/self/oom_score_adj").read().strip()
score.restore()
print(before, open("/proc/self/oom_score_adj").read().strip())
"""


def test_the_score_is_the_highest_until_it_is_restored() -> None:
    before = SCORE.read_text()
    score = OomScore()
    score.raise_()
    score.raise_()
    assert SCORE.read_text() == "1000\n"
    score.restore()
    score.restore()
    assert SCORE.read_text() == before


def test_children_that_are_started_meanwhile_keep_the_score() -> None:
    with OomScore():
        child = subprocess.run(["cat", SCORE], capture_output=True, text=True, check=True)
    assert child.stdout == "1000\n"
    assert subprocess.run(["cat", SCORE], capture_output=True, text=True, check=True).stdout == SCORE.read_text()


def test_a_child_that_inherits_a_raised_score_returns_to_the_one_before() -> None:
    program = (
        "from oxidize.oom_score import *; score = OomScore(); score.raise_(); score.restore(); print(open(PATH).read())"
    )
    with OomScore():
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.split() == SCORE.read_text().split()
    assert oom_score.BEFORE not in os.environ


def test_a_process_without_rights_lowers_its_score_again() -> None:
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000", SCORE.read_text().strip()]


def test_a_kernel_that_refuses_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SCORE.read_text()
    monkeypatch.setattr(oom_score, "PATH", "/proc/self/nothing")
    with OomScore():
        assert SCORE.read_text() == before
