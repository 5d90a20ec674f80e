"""`oxidize stop`: end what runs, after its sessions have had time to end, and wait for it.

The rule: the kernel says which process listens at the takeover socket, and its pidfd gets the signal; what that process
answers only leads to its holder. Where none listens a holder may wait for its next start: it gets the signal. Nothing
is reported as stopped that still runs. A process of a unit is left to systemd, which would start it again; root has
systemd stop it, with the sockets that would start it again at the next packet.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Container
from pathlib import Path

import click

from oxidize import config
from oxidize.cli.common import role_options
from oxidize.cli.lines import echo, fail
from oxidize.control import holder, query
from oxidize.control.who_runs import holders_of
from oxidize.errors import OxidizeError
from oxidize.service_manager import systemctl
from oxidize.takeover.connection import PeerProcess, connect_socket, credentials_of

UNITS = {
    "server": ("oxidize-daemon.service", "oxidize.socket", "oxidize-http.socket"),
    "client": ("oxidize-client.service",),
}
CONNECT_TIMEOUT_SECS = 5.0
HOLDER_TIMEOUT_SECS = 5.0  # from the end of the last process to that of its holder
REPLACEMENTS_MAX = 5  # of a process that hands over as it is told to end


@click.command(short_help="End the running process, drained.")
@role_options("Stop a client instead of a server.")
def stop(config_path: Path, role: config.Role) -> None:
    """End the running process: it accepts no new session, and ends when the sessions are idle.

    The wait is limited by drain_timeout_secs. Ctrl-C ends this command and not the drain; a second `oxidize stop` ends
    the process at once. Exit status 1 if nothing runs.
    """
    takeover_socket = config.takeover_socket_of(config_path, role)
    started = time.monotonic()
    ended: set[int] = set()
    process = _process_of(takeover_socket, ended)
    if process is None:
        raise query.NothingListensError(takeover_socket)
    for _ in range(REPLACEMENTS_MAX):
        last = process
        with contextlib.closing(process):
            ended |= _end(process, takeover_socket, role)
        process = _process_of(takeover_socket, ended)
        if process is None:
            echo(f"stopped: pid {last.pid}, after {time.monotonic() - started:.1f} s")
            return
    raise OxidizeError(f"{takeover_socket}: a new process listens there each time: find out what starts it")


def _process_of(takeover_socket: Path, ended: Container[int]) -> PeerProcess | None:
    """Return the process that listens, else a holder that has not `ended`; None where neither is found."""
    connection = connect_socket(takeover_socket, CONNECT_TIMEOUT_SECS)
    if connection is not None:
        with connection:
            return PeerProcess.of(connection)
    for pid in holders_of(takeover_socket):
        if pid in ended:
            continue
        with contextlib.suppress(ProcessLookupError):
            process = PeerProcess(pid, os.geteuid(), os.pidfd_open(pid))
            if pid in holders_of(takeover_socket):  # still, and so the pidfd is that of the holder
                return process
            process.close()
    return None


def _end(process: PeerProcess, takeover_socket: Path, role: config.Role) -> set[int]:
    """Tell the process to end, wait for the end of it and of its holder, and return their pids."""
    connection = _holder_of(process, takeover_socket)
    keeper = credentials_of(connection)[0] if connection is not None else process.pid
    for pid in {process.pid, keeper}:
        _stop_unit_of(pid, role)
    try:
        for number in (signal.SIGCONT, signal.SIGTERM):  # Ctrl-Z may have stopped a holder
            signal.pidfd_send_signal(process.fileno(), number)
    except ProcessLookupError:
        return set()
    except OSError as error:
        raise OxidizeError(
            f"pid {process.pid} cannot be told to end: {error.strerror}; run this as its user"
        ) from error
    watched = [process.fileno(), *([connection.fileno()] if connection is not None else [])]
    select.select(watched, [], [])
    if connection is None:
        return {process.pid}
    connection.settimeout(HOLDER_TIMEOUT_SECS)
    try:
        connection.recv(holder.ANSWER_BYTES_MAX)  # the holder's last message, or its end
    except OSError:
        return {process.pid}
    finally:
        # Left open until this process has ended: as PID 1 the holder, which waits for that, would end this one first.
        connection.detach()
    return {process.pid, keeper}


def _holder_of(process: PeerProcess, takeover_socket: Path) -> socket.socket | None:
    """Return a connection to the holder of a process, or to that process where it is a holder; None without one."""
    users = {0, os.geteuid(), process.uid}
    try:
        return holder.connect(query.fetch(takeover_socket, query.IDENTITY).get("holder"), users)
    except OxidizeError:
        return holder.connect(holder.name_of(process.pid), users)


def _stop_unit_of(pid: int, role: config.Role) -> None:
    """Stop the unit whose main process this is and exit; return if it belongs to none."""
    service = systemctl.service_of(pid)
    if service is None or systemctl.property_of(service, "MainPID") != str(pid):
        return
    units = UNITS[role] if service == UNITS[role][0] else (service,)
    command = " ".join(("systemctl stop", *units))
    if os.geteuid() != 0:
        fail(1, f"pid {pid} belongs to {service}, which systemd would start again: run `{command}` as root")
    done = subprocess.run(["systemctl", "stop", *units], check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        fail(1, f"`{command}`: exit status {done.returncode}")
    echo(f"stopped: {service}, by `{command}`")
    raise SystemExit(0)
