"""The commands' end of a holder's requests (`oxidize.holder.requests`): start a successor, wait for the end.

The rule: the holder starts a successor as its own child, with its own environment and output, and so follows it. Where
no holder answers, `oxidize reload` starts the successor itself. The name of a holder comes from the process that it
holds, so only one of this process's own user, of root or of that process's user is believed.
"""

import json
import os
import socket
from collections.abc import Container, Sequence
from pathlib import Path

from oxidize.errors import Phase, TakeoverError
from oxidize.takeover.connection import PeerProcess, credentials_of

HOLDER_VARIABLE = "OXIDIZE_HOLDER"
ANSWER_BYTES_MAX = 16_384
ANSWER_TIMEOUT_SECS = 5.0
ABSTRACT_SOCKETS = Path("/proc/net/unix")  # proc(5): a name in Linux's abstract namespace begins with "@"


def connect(name: object, uids: Container[int]) -> socket.socket | None:
    """Return a connection to the holder of that name, None where no holder of one of these users listens there."""
    if not isinstance(name, str) or not name.startswith("@"):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(ANSWER_TIMEOUT_SECS)
        connection.connect(f"\0{name[1:]}")
        if credentials_of(connection)[1] in uids:
            return connection
    except (OSError, ValueError):  # ValueError: a name that holds a zero
        pass
    connection.close()
    return None


def name_of(pid: int) -> str | None:
    """Return the name at which the holder of this pid listens, None where there is none in this network namespace."""
    start = f"@oxidize-holder-{pid}-"
    try:
        words = ABSTRACT_SOCKETS.read_text(errors="replace").split()
    except OSError:
        return None
    return next((word for word in words if word.startswith(start) and not word.endswith("-notify")), None)


def start_successor(connection: socket.socket, command: Sequence[str], control_fd: int) -> PeerProcess:
    """Make the holder start `command`, with `control_fd` as its `--control-fd`; raises TakeoverError."""
    try:
        socket.send_fds(connection, [json.dumps({"start": list(command)}).encode()], [control_fd])
        data, fds, _, _ = socket.recv_fds(connection, ANSWER_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        answer = json.loads(data or b"null")
    except (OSError, ValueError, RecursionError) as error:
        raise TakeoverError(Phase.STARTING, f"the holder gave no answer: {error}; try again") from error
    pid = answer.get("pid") if isinstance(answer, dict) else None
    if not isinstance(pid, int) or len(fds) != 1:
        for fd in fds:
            os.close(fd)
        reason = answer.get("error") if isinstance(answer, dict) else None
        raise TakeoverError(Phase.STARTING, f"the holder started no process: {reason or 'it ends'}; try again")
    return PeerProcess(pid, os.geteuid(), fds[0])
