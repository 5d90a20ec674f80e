"""A generation gives way to another one only as its successor."""

import os
import socket
import subprocess
import sys

import pytest

from oxidize.cpu_priority import LOW_NICE

# A generation whose run ends at once; its exit status is its nice value.
GENERATION = """
import os
from pathlib import Path
from oxidize.cli.generation import Generation, serve
from oxidize.runtime import daemon
daemon.run = lambda *_: os.getpriority(os.PRIO_PROCESS, 0)
serve(Generation("server", Path("/server.toml"), "info", %s))
"""


def nice_of_generation(control_fd: int | None) -> int:
    fds = [control_fd] if control_fd is not None else []
    return subprocess.run([sys.executable, "-c", GENERATION % control_fd], pass_fds=fds, check=False).returncode


@pytest.mark.root
def test_a_successor_gives_way_from_its_first_import_on() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert nice_of_generation(theirs.fileno()) == LOW_NICE


def test_a_generation_without_a_coordinator_gives_way_to_no_process() -> None:
    assert nice_of_generation(None) == os.getpriority(os.PRIO_PROCESS, 0)
