"""The process that removes a client's rules, packet filter and DNS settings when the client can no longer do so itself.

The rule: the guard reads a pipe whose write end only the client's generations hold. End of file means that none of them
is left, however they ended; a line in it states what the newest one has set. So the guard needs no signal, no pid and
no time-out, and holds no part of the tunnel. A holder of these generations holds the write end as well, so that a crash
between two of them removes nothing. The guard is not for systemd, which would end it with the unit: there
ExecStopPost= does the same. The rules of a client that has started since are left alone, see `policy_routing`.

A kill switch stays, unless the client was about to end as planned. The guard writes to the client's log alone, and
holds no pipe of a command that started it. It waits for days and then works for a moment, so it imports what that work
needs only then.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NotRequired, TypedDict

STORED_AS = "guard"  # the name of the write end in a holder's fd store
_READ_BYTES = 4_096  # one write of less is whole, pipe(7)


class Cleanup(TypedDict):
    """What the newest generation has set and the guard removes; an old guard reads what a new client tells it.

    record: the name of its resolvconf record, or None. interface: the name, by which the packet filter is found.
    is_ending: whether the client ends as planned.
    """

    interface_index: int
    record: str | None
    interface: NotRequired[str]
    is_ending: NotRequired[bool]


def start_guard(cleanup: Cleanup, log_fd: int) -> int:
    """Start a guard and return the write end of its pipe, close-on-exec; raises OSError.

    log_fd: of the client's log.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        command = [sys.executable, "-P", "-m", "oxidize.hostnet.cleanup_guard", json.dumps(cleanup)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("LISTEN_", "NOTIFY_"))}
        actions = [
            (os.POSIX_SPAWN_DUP2, read_end, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, log_fd, 2),
        ]
        # A session of its own, out of reach of the terminal's ^C and of signals to the client's process group.
        os.posix_spawn(command[0], command, environ, file_actions=actions, setsid=True, setsigmask=[])
    except BaseException:  # cleans up, and raises it again
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    return write_end


def update_guard(write_end: int, cleanup: Cleanup | None) -> bool:
    """Tell the guard what is set now, None for nothing; return False if the guard is gone."""
    try:
        os.write(write_end, json.dumps(cleanup).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Wait for the client's end and remove what it had set; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the guard ends with the client, at a shutdown too
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    cleanup: Cleanup | None = json.loads(arguments[0])
    rest = b""
    while data := os.read(0, _READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            cleanup = json.loads(lines[-1])
    return _remove(cleanup) if cleanup is not None else 0


def _remove(cleanup: Cleanup) -> int:
    from oxidize.errors import OxidizeError  # noqa: PLC0415 - a guard that waits needs none
    from oxidize.hostnet.dns_config import revert_dns  # noqa: PLC0415 - a guard that waits needs none
    from oxidize.hostnet.packet_filter import remove_filter  # noqa: PLC0415 - a guard that waits needs none
    from oxidize.hostnet.part import run  # noqa: PLC0415 - a guard that waits needs none
    from oxidize.hostnet.policy_routing import remove_policy  # noqa: PLC0415 - a guard that waits needs none

    failures = 0
    interface = cleanup.get("interface")
    if interface is not None and not _is_used_again(interface, cleanup["interface_index"]):
        try:
            remove_filter([interface], spare_kill_switch=not cleanup.get("is_ending", False))
        except OxidizeError as error:
            failures += _print_error(error)
    try:
        run(remove_policy(indexes=[cleanup["interface_index"]]))
    except OxidizeError as error:
        failures += _print_error(error)
    if cleanup["record"] is not None:
        try:
            run(revert_dns(None, cleanup["record"]))
        except OxidizeError as error:
            failures += _print_error(error)
    return min(failures, 1)


def _is_used_again(interface: str, index: int) -> bool:
    """Return whether a client that has started since has an interface of this name, and so the packet filter."""
    try:
        return socket.if_nametoindex(interface) != index
    except OSError:
        return False


def _print_error(error: Exception) -> int:
    from oxidize.text import one_line  # noqa: PLC0415 - a guard that waits needs none

    with contextlib.suppress(OSError):
        reason = one_line(str(error))
        sys.stderr.write(f"oxidize: after the client's end: {reason}; the next client removes what is left\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
