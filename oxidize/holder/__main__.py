"""Run a holder in this process, from `oxidize server` and `oxidize client`.

`python -m oxidize.holder server|client CONFIG LOG_LEVEL TAKEOVER_SOCKET`: the last argument is for commands that look
for the holder of that path.
"""

import ctypes
import os
import sys
from pathlib import Path

from oxidize.holder.foreground import Foreground, clean_up_arguments, main_command
from oxidize.holder.processes import LISTEN_FDS_START

_PR_SET_NAME = 15


def main() -> int:
    """Hold until the service ends; return the exit status."""
    role, config_path, log_level, _ = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"oxidize-holder", 0, 0, 0)
    command = main_command(sys.executable, role, Path(config_path), log_level)
    return Foreground(command, os.environ, _passed(), clean_up_arguments(role, Path(config_path))).run()


def _passed() -> dict[int, str]:
    """Return the descriptors that this process was passed (sd_listen_fds(3)), with their names."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    number = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    passed = {}
    for position in range(number):
        fd = LISTEN_FDS_START + position
        os.set_inheritable(fd, False)
        passed[fd] = names[position] if position < len(names) and names[position] else "unknown"
    return passed


if __name__ == "__main__":
    sys.exit(main())
