"""How a holder starts a process: what that process finds before its own code runs."""

import os
from pathlib import Path

from oxidize import oom_score
from oxidize.holder import generation

TELL = "cat /proc/self/oom_score_adj >&3; echo $OXIDIZE_OOM_SCORE_ADJ >&3"


def test_a_successor_has_the_highest_oom_score_before_its_first_instruction_and_its_holder_has_not() -> None:
    before = Path(oom_score.PATH).read_text()
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as told:
        started = generation.start_successor(["/bin/sh", "-c", TELL], {"PATH": "/bin:/usr/bin"}, write_end)
        os.close(write_end)
        assert told.read().split() == ["1000", before.strip()]
    assert os.waitpid(started.pid, 0)[1] == 0
    assert Path(oom_score.PATH).read_text() == before
    assert oom_score.BEFORE not in os.environ
