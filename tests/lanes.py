"""Run all tests in two lanes at once: `make test`.

The rule: the lane in front measures traffic, one test at a time, with the whole machine when it wants it; the lane
behind it computes, or carries little traffic, in the time that is left. Each lane is a session of its own, because the
kernel shares the processors among sessions first (sched(7), "The autogroup feature"): nice values alone would not do.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

IN_FRONT = ("tests/interop", "tests/system")
# Of these folders, what carries little traffic and loses none by being late:
LITTLE_TRAFFIC = (
    "tests/interop/test_client_names.py",
    "tests/interop/test_client_routing.py",
    "tests/interop/test_provision.py",
    "tests/interop/test_stages.py",
    "tests/interop/test_tun.py",
    "tests/interop/test_wireguard_go.py",
)
BEHIND = ("tests/golden", "tests/properties", "tests/simulation", "tests/takeover", "tests/unit")
BEHIND_OPTIONS = ("--numprocesses", "2", "--dist", "worksteal", "--quiet")
NICE_BEHIND = 5  # a third of a share: what carries traffic behind keeps its deadlines


def _give_way(pid: int) -> None:
    """Lower the priority of a session; where the kernel has no autogroups, that of its first process and its heirs."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE_BEHIND))
    os.setpriority(os.PRIO_PROCESS, pid, NICE_BEHIND)


def main() -> int:
    """Run both lanes, the output of the second after that of the first; return the exit status: 1 if a test failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pytest = (sys.executable, "-m", "pytest")
    with tempfile.TemporaryFile("w+") as output:
        behind = subprocess.Popen(
            (*pytest, *BEHIND_OPTIONS, *BEHIND, *LITTLE_TRAFFIC), stdout=output, stderr=output, start_new_session=True
        )
        _give_way(behind.pid)
        ignored = [f"--ignore={path}" for path in LITTLE_TRAFFIC]
        lanes = [subprocess.Popen((*pytest, *IN_FRONT, *ignored), start_new_session=True), behind]
        try:
            for lane in lanes:
                lane.wait()
        except KeyboardInterrupt:  # the terminal interrupts its own session only
            for lane in lanes:
                lane.send_signal(signal.SIGINT)
            for lane in lanes:
                lane.wait()
        output.seek(0)
        print(f"\n--- meanwhile: {' '.join((*BEHIND, *LITTLE_TRAFFIC))}\n{output.read()}", end="", flush=True)
    return 1 if any(lane.returncode for lane in lanes) else 0


if __name__ == "__main__":
    sys.exit(main())
