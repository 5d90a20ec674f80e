"""Start, read from and end the process of the clients (`demo.clients`).

Rule: reading never blocks, and the clients end with the demonstration: they watch a pipe that only it holds open.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from demo.clients import FINISH, FleetSettings
from demo.records import Record, RecordDecoder
from oxidize.errors import StateError

END_TIMEOUT_SECS = 2.0
_READ_BYTES = 1 << 16


class FleetProcess:
    """All clients in one process. log_path: the file for its standard error, which stays empty unless it fails."""

    def __init__(self, settings: FleetSettings, log_path: Path) -> None:
        self.log_path = log_path
        self._decoder = RecordDecoder()
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "demo.clients"],
                cwd=Path(__file__).parents[1],  # the package `demo` is not installed
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,  # Ctrl-C at the terminal must not reach it
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise StateError("no pipes to the clients' process")
        self._control, self._reports = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self.ended = False
        os.set_blocking(self._reports.fileno(), False)
        self._control.write(settings.to_json().encode() + b"\n")
        self._control.flush()

    def read(self) -> list[Record]:
        """Return the records that arrived since the last call; `ended` is set after the last record."""
        records: list[Record] = []
        while not self.ended:
            try:
                data = os.read(self._reports.fileno(), _READ_BYTES)
            except BlockingIOError:
                break
            self.ended = not data
            records += self._decoder.feed(data)
        return records

    def finish(self) -> None:
        """Let clients that were started with `until_told` end their schedule."""
        with contextlib.suppress(BrokenPipeError):  # the clients have ended already, as `ended` tells
            self._control.write(FINISH)
            self._control.flush()

    def close(self) -> None:
        """End the process by closing its standard input; kill it if it does not end within END_TIMEOUT_SECS."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._control.close()
        self._reports.close()
        try:
            self._process.wait(END_TIMEOUT_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
