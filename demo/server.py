"""The server of the demonstration: `oxidize server` in the foreground, which becomes a holder of its generations.

Rule: the server is used as its operator uses it: by its commands, by signals and by the query that `oxidize watch`
sends. Nothing here waits for it but `start` and `close`, and no process of it is left after `close`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from demo.processes import children, end_children
from oxidize.clock import boot_time
from oxidize.control.query import STATUS, VITALS, find
from oxidize.errors import OxidizeError, StateError
from oxidize.holder.processes import Subreaper
from oxidize.net.udp import SOCKET_BUFFER_BYTES
from oxidize.net.udp_cmsg import SO_RCVBUFFORCE

START_TIMEOUT_SECS = 30.0
COMMAND_TIMEOUT_SECS = 60.0
STOP_TIMEOUT_SECS = 3.0  # for each of two SIGTERM
TURN_SECS = 0.02


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The end of a command: its exit status (negative: the signal), its output, and when it ended."""

    status: int
    output: str
    ended_at: float


class HeldServer:
    """One server under its holder.

    directory: private; has the takeover socket, and gets the logs. drops: datagrams that the kernel dropped at the
    server's socket because its receive buffer was full, as of the last answer.
    """

    def __init__(self, config_path: Path, takeover_socket: Path, directory: Path) -> None:
        self._config_arguments = ("-c", str(config_path))
        self._takeover_socket = takeover_socket
        self._directory = directory
        self.log_path = directory / "server.log"
        self._subreaper = Subreaper()
        self._spared: set[int] = set()
        self._holder: subprocess.Popen[bytes] | None = None
        self._command: subprocess.Popen[bytes] | None = None
        self._command_ends_at = 0.0
        self._command_log = directory / "command.log"
        self.drops = 0

    def start(self) -> float:
        """Start the server; return the seconds until it served. Raises StateError if it cannot be started."""
        self._subreaper.enter()
        self._spared = children()
        started_at = boot_time()
        with self.log_path.open("ab") as log:
            self._holder = self._spawn([sys.executable, "-P", "-m", "oxidize", "server", *self._config_arguments], log)
        while self.vitals() is None:
            if not self.is_held:
                raise StateError(f"the server ended before it was ready; see {self.log_path}")
            if boot_time() > started_at + START_TIMEOUT_SECS:
                raise StateError(f"the server was not ready within {START_TIMEOUT_SECS:g} s; see {self.log_path}")
            time.sleep(TURN_SECS)
        return boot_time() - started_at

    def address(self) -> tuple[str, int]:
        """Return the address of the server's socket; raises OxidizeError if no process serves."""
        status = find(self._takeover_socket, STATUS)
        if status is None:
            raise StateError("the server has no address: no process serves")
        host, _, port = str(status["listen"]).rpartition(":")
        return host, int(port)

    @property
    def is_held(self) -> bool:
        """Whether the holder, the process that was started, lives."""
        return self._holder is not None and self._holder.poll() is None

    def vitals(self) -> dict[str, Any] | None:
        """Return the figures of the generation that serves, None while none does."""
        try:
            found = find(self._takeover_socket, VITALS)
        except OxidizeError:
            return None
        if found is not None:
            self.drops = int(found["kernel_drops"])
        return found

    def start_command(self, python: str, *arguments: str) -> None:
        """Start a command of the release that this interpreter belongs to; `poll_command` tells its end."""
        with self._command_log.open("wb") as log:
            command = [python, "-P", "-m", "oxidize", *arguments, *self._config_arguments]
            self._command = self._spawn(command, log)
        self._command_ends_at = boot_time() + COMMAND_TIMEOUT_SECS

    def poll_command(self) -> CommandResult | None:
        """Return the result of the command, None while it runs; one that takes COMMAND_TIMEOUT_SECS is killed."""
        if self._command is None:
            raise StateError("no command was started")
        if boot_time() > self._command_ends_at:
            self._command.kill()
        status = self._command.poll()
        if status is None:
            return None
        return CommandResult(status, self._command_log.read_text("utf-8", "replace"), boot_time())

    def close(self) -> None:
        """End the server, drained if it can, and every other process that it has started; idempotent."""
        if self._holder is None:
            return
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self._holder.send_signal(number)
            try:
                self._holder.wait(STOP_TIMEOUT_SECS)
                break
            except subprocess.TimeoutExpired:
                continue
        end_children(self._spared)
        self._subreaper.leave()
        self._holder = None

    @staticmethod
    def _spawn(command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
        """Start a process that neither Ctrl-C at the terminal nor a service manager of the demonstration reaches."""
        left_out = ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, process_group=0)


def granted_receive_buffer() -> int:
    """Return the bytes of the receive buffer that the kernel grants a server of this user, tried on another socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)
        except PermissionError:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        return trial.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
