"""The process that removes a client's rules and name servers when the client can no longer do so itself.

The rule: it knows by a pipe whose write end only the client's generations hold. Its end of file means that none of them
is left, however they ended; a line in it says what the newest one has set. So the guard needs no signal, no pid and no
time-out, and holds nothing of the tunnel. It is not for systemd, which ends it with the unit: there ExecStopPost= does
the same. The rules of a client that has started meanwhile are left alone, see `policy_routing`.

It waits for days and then has a moment's work, so it imports what that needs only then.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TypedDict

_READ_BYTES = 4_096  # one write of less is whole, pipe(7)


class Setting(TypedDict):
    """What the newest generation has set. record: the name of its record in resolvconf, or None."""

    interface_index: int
    record: str | None


def start_guard(setting: Setting) -> int:
    """Start a guard and return the write end of its pipe, close-on-exec; raises OSError."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        command = [sys.executable, "-P", "-m", "oxidize.hostnet.cleanup_guard", json.dumps(setting)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("LISTEN_", "NOTIFY_"))}
        actions = [(os.POSIX_SPAWN_DUP2, read_end, 0)]
        # A session of its own, out of reach of the terminal's ^C and of whoever ends the client's process group.
        os.posix_spawn(command[0], command, environ, file_actions=actions, setsid=True, setsigmask=[])
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    return write_end


def update_guard(write_end: int, setting: Setting | None) -> bool:
    """Tell the guard what is set now, None for nothing; False where it is gone."""
    try:
        os.write(write_end, json.dumps(setting).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Wait for the end of the client and remove what it had set; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the client, at a shutdown too
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    setting: Setting | None = json.loads(arguments[0])
    rest = b""
    while data := os.read(0, _READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            setting = json.loads(lines[-1])
    return _remove(setting) if setting is not None else 0


def _remove(setting: Setting) -> int:
    from oxidize.errors import OxidizeError  # noqa: PLC0415 - late, as above
    from oxidize.hostnet.dns_config import revert_dns  # noqa: PLC0415
    from oxidize.hostnet.policy_routing import remove_policy  # noqa: PLC0415

    failures = 0
    try:
        remove_policy(indexes=[setting["interface_index"]])
    except OxidizeError as error:
        failures += _complain(error)
    if setting["record"] is not None:
        try:
            revert_dns(None, setting["record"])
        except OxidizeError as error:
            failures += _complain(error)
    return min(failures, 1)


def _complain(error: Exception) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"oxidize: after the client's end: {error}; the next client removes what is left\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
