"""`oxidize stop`: end what runs, after its sessions have had time to end, and wait for it.

The rule: the kernel says which process listens at the takeover socket, and its pidfd gets the signal; what that process
answers only leads to its holder. A process of a unit is left to systemd, which would start it again; root has systemd
stop it, with the sockets that would start it again at the next packet.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import click

from oxidize import config
from oxidize.cli.common import echo, fail, role_options
from oxidize.control import holder, query
from oxidize.errors import OxidizeError
from oxidize.service_manager import systemctl
from oxidize.takeover.channel import PeerProcess, connect_socket

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
    for _ in range(REPLACEMENTS_MAX):
        connection = connect_socket(takeover_socket, CONNECT_TIMEOUT_SECS)
        if connection is None:
            raise query.NothingListensError(takeover_socket)
        with connection:
            process = PeerProcess.of(connection)
        with contextlib.closing(process):
            _stop_unit_of(process.pid, role)
            started = time.monotonic()
            _end(process, takeover_socket)
        if _is_free(takeover_socket):
            echo(f"stopped: pid {process.pid}, after {time.monotonic() - started:.1f} s")
            return
    raise OxidizeError(f"{takeover_socket}: a new process listens there each time: find out what starts it")


def _is_free(takeover_socket: Path) -> bool:
    """Return whether the takeover socket no longer has a listener."""
    connection = connect_socket(takeover_socket, CONNECT_TIMEOUT_SECS)
    if connection is not None:
        connection.close()
    return connection is None


def _end(process: PeerProcess, takeover_socket: Path) -> None:
    """Tell the process to end, and wait for the end of it and of its holder."""
    connection = _holder_of(process, takeover_socket)
    try:
        signal.pidfd_send_signal(process.fileno(), signal.SIGTERM)
    except ProcessLookupError:
        return
    except OSError as error:
        raise OxidizeError(
            f"pid {process.pid} cannot be told to end: {error.strerror}; run this as its user"
        ) from error
    select.select([process.fileno()], [], [])
    if connection is not None:
        connection.settimeout(HOLDER_TIMEOUT_SECS)
        with contextlib.suppress(OSError):
            connection.recv(holder.ANSWER_BYTES_MAX)  # the holder's last message, or its end
        # Left open until this process has ended: as PID 1 the holder, which waits for that, would end this one first.
        connection.detach()


def _holder_of(process: PeerProcess, takeover_socket: Path) -> socket.socket | None:
    try:
        name = query.fetch(takeover_socket, query.IDENTITY).get("holder")
    except OxidizeError:
        return None
    return holder.connect(name, {0, os.geteuid(), process.uid})


def _stop_unit_of(pid: int, role: config.Role) -> None:
    """Stop the unit that the process belongs to and exit; return if it belongs to none."""
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
