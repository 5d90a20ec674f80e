"""Numbered datagrams through the tunnel between two processes, and the verdict on losses and duplicates.

Rule: each end counts independently, so every loss or duplicate belongs to one direction. See `stage/numbered.py`.
"""

import json
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import Lab, kill, wait_for
from tests.system.machine import prioritize

# In each direction, so that the server relays 10,000/s. Twice as many pass on two otherwise idle cores;
# with less, it is the machine that loses packets, before the service does.
PACKETS_PER_SECOND = 5_000
BESIDE_DEPLOYMENTS = 1_000  # packets per second: builds and the commands of a deployment need processor time too
PORT = 7
NUMBERED = Path(__file__).parent / "stage" / "numbered.py"
WARM_UP_SECS = 0.1  # of replies
ON_THEIR_WAY_MAX = 300  # requests: 30 ms
_PROGRESS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The counts of a run. lost_runs: the first and last number of each run of unanswered requests."""

    sent: int
    seconds: float
    lost_up: int
    lost_down: int
    duplicated: int
    reordered: int
    longest_gap_secs: float
    unsent: int
    lost_runs: list[tuple[int, int]]

    def assert_unharmed(self, *, crashes: int = 0) -> None:
        """Fail on any duplicate, and on any loss beyond one batch in each direction per crash."""
        at_most = crashes * BATCH_PACKETS_MAX
        assert max(self.lost_up, self.lost_down) <= at_most, str(self)
        assert (self.duplicated, self.reordered, self.unsent) == (0, 0, 0), str(self)

    def __str__(self) -> str:
        return (
            f"{self.sent} sent in {self.seconds:.1f} s, lost {self.lost_up} up, {self.lost_down} down "
            f"{self.lost_runs[:5]}, duplicated {self.duplicated}, reordered {self.reordered}, unsent {self.unsent}, "
            f"longest gap {self.longest_gap_secs * 1000:.0f} ms"
        )


class NumberedTraffic:
    """Requests from one namespace to an address in another, from construction until `stop`."""

    def __init__(self, lab: Lab, client: Namespace, server: Namespace, address: str, rate: int) -> None:
        self._lab = lab
        self._warm_up_replies = round(WARM_UP_SECS * rate)
        name = "numbered"
        self._files = {end: lab.folder / f"{name}-{end}.json" for end in ("echo", "send")}
        python = (sys.executable, "-P", str(NUMBERED))
        with server.entered():
            self._echo = lab.spawn((*python, "echo", str(PORT), str(self._files["echo"])), f"{name}-echo")
        wait_for("the echo to be bound", self._progress_file("echo").exists)
        with client.entered():
            command = ("send", address, str(PORT), str(rate), str(self._files["send"]))
            self._send = lab.spawn((*python, *command), f"{name}-send")
        for pid in (self._echo, self._send):
            prioritize(pid)
        self.wait_for_replies(100)

    def _progress_file(self, end: str) -> Path:
        return self._files[end].with_name(self._files[end].name + ".progress")

    def _progress(self) -> tuple[int, int]:
        try:
            sent, replies = _PROGRESS.unpack(self._progress_file("send").read_bytes())
        except (FileNotFoundError, struct.error):
            return 0, 0
        return sent, replies

    def replies(self) -> int:
        """Return the number of requests answered so far."""
        return self._progress()[1]

    def wait_until_caught_up(self, forgiven: int = 0) -> None:
        """Wait until the backlog of a pause is processed, so that a slow machine is not overloaded.

        forgiven: requests that may be lost.
        """
        self.wait_for_replies(self._warm_up_replies)

        def look() -> bool:
            sent, replies = self._progress()
            return sent - replies <= ON_THEIR_WAY_MAX + forgiven

        try:
            wait_for("the backlog to be served", look)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.stop()}") from None

    def wait_for_replies(self, more: int) -> None:
        """Wait until the given number of further requests is answered."""
        wanted = self.replies() + more
        wait_for(f"{more} more replies", lambda: self.replies() >= wanted)

    def stop(self) -> Verdict:
        """Stop sending, wait for datagrams in flight, and return the verdict."""
        ends = {}
        for end, pid in (("send", self._send), ("echo", self._echo)):
            kill(pid, signal.SIGTERM)
            assert self._lab.wait_ended(pid) == 0
            ends[end] = json.loads(self._files[end].read_text())
        send, echo = ends["send"], ends["echo"]
        return Verdict(
            sent=send["sent"],
            seconds=send["seconds"],
            lost_up=send["sent"] - echo["distinct"],
            lost_down=echo["distinct"] - send["distinct"],
            duplicated=send["duplicated"] + echo["duplicated"],
            reordered=send["reordered"] + echo["reordered"],
            longest_gap_secs=send["longest_gap_secs"],
            unsent=send["unsent"] + echo["unsent"],
            lost_runs=[tuple(run) for run in send["lost"]],
        )
