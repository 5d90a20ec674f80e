"""Run all tests in three lanes at once: `make test`.

The rule: each lane in front measures traffic, one test at a time, with a processor of its own when it wants it; the
lane behind them computes, or carries little traffic, in the time that is left. Each lane is a session of its own,
because the kernel shares the processors among sessions first (sched(7), "The autogroup feature"): nice values alone
would not do.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

IN_FRONT = ("tests/interop", "tests/system")  # a lane each
BEHIND = ("tests/golden", "tests/properties", "tests/simulation", "tests/takeover", "tests/unit")
BEHIND_OPTIONS = ("--numprocesses", "2", "--dist", "worksteal", "--quiet")
NICE_BEHIND = 5  # a third of a share: what carries traffic behind keeps its deadlines


def _give_way(pid: int) -> None:
    """Lower the priority of a session; where the kernel has no autogroups, that of its first process and its heirs."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE_BEHIND))
    os.setpriority(os.PRIO_PROCESS, pid, NICE_BEHIND)


def _start(output: IO[str] | None, *arguments: str) -> "subprocess.Popen[bytes]":
    command = (sys.executable, "-m", "pytest", *arguments)
    return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def main() -> int:
    """Run the lanes, each output after that of the first; return the exit status: 1 if a test failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    first, *others = IN_FRONT
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in (*others, BEHIND)]
        behind = _start(outputs[-1], *BEHIND_OPTIONS, *BEHIND)
        _give_way(behind.pid)
        lanes = [_start(None, first), *map(_start, outputs, others), behind]
        try:
            for lane in lanes:
                lane.wait()
        except KeyboardInterrupt:  # the terminal interrupts its own session only
            for lane in lanes:
                lane.send_signal(signal.SIGINT)
            for lane in lanes:
                lane.wait()
        for names, output in zip((*others, " ".join(BEHIND)), outputs, strict=True):
            output.seek(0)
            print(f"\n--- meanwhile: {names}\n{output.read()}", end="", flush=True)
    return 1 if any(lane.returncode for lane in lanes) else 0


if __name__ == "__main__":
    sys.exit(main())
