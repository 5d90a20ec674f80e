"""ping(8) in a namespace, and the evaluation of its output.

Rule: a request is lost if the number of its reply never appears; the last ones, whose replies may be in flight when
ping is stopped, are not counted. Source: ping(8) of iputils.
"""

import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.receive_buffers import enlarge_buffers
from tests.support.traffic.server import Lab, kill, wait_for

_REPLY = re.compile(r"icmp_seq=(\d+) (?:ttl|hlim)=")
_SUMMARY = re.compile(r"^(\d+) packets transmitted, (\d+) received", re.MULTILINE)
INTERVAL_SECS = 0.02  # with 10 ms or less ping spins, and takes processor time from the measured processes
ON_THEIR_WAY_SECS = 0.3


@dataclass(frozen=True, slots=True)
class PingResult:
    """The result of one ping."""

    transmitted: int
    lost: tuple[int, ...]
    duplicated: tuple[int, ...]
    errors: tuple[str, ...]  # lines with ICMP errors

    def summary(self) -> str:
        """Return one line, with lost numbers as ranges."""
        runs: list[list[int]] = []
        for number in self.lost:
            if runs and runs[-1][1] == number - 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return f"{self.transmitted} sent, lost {len(self.lost)}: {runs}, {len(self.duplicated)} twice"


def _read(text: str, *, on_their_way: int) -> PingResult:
    summary = _SUMMARY.search(text)
    assert summary is not None, text
    transmitted = int(summary[1])
    replies = Counter(int(number) for number in _REPLY.findall(text))
    lost = tuple(number for number in range(1, transmitted + 1 - on_their_way) if not replies[number])
    duplicated = tuple(number for number, times in replies.items() if times > 1)
    errors = tuple(line for line in text.splitlines() if "nreachable" in line or "sendmsg" in line)
    return PingResult(transmitted, lost, duplicated, errors)


def wait_for_replies(pings: "Sequence[Ping]", more: int) -> None:
    """Wait until each ping has had `more` further replies."""
    wanted = [(ping, ping.replies() + more) for ping in pings]
    for ping, replies in wanted:
        ping.wait_until(replies)


class Ping:
    """Requests every `interval` seconds until `stop`."""

    OPTIONS: tuple[str, ...] = ()

    def __init__(
        self, lab: Lab, namespace: Namespace, target: str, name: str, *, interval: float = INTERVAL_SECS
    ) -> None:
        self._lab = lab
        self.name = name
        self._interval = interval
        self._log: Path = lab.folder / f"{name}.log"
        with namespace.entered():
            self._pid = lab.spawn(("/usr/bin/ping", "-n", "-O", *self.OPTIONS, "-i", str(interval), target), name)
        self._read_to = self._replies = 0

    def replies(self) -> int:
        """Return the number of replies so far."""
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            lines = log.read().rpartition(b"\n")[0]
        self._read_to += len(lines)
        self._replies += lines.count(b" ttl=") + lines.count(b" hlim=")
        return self._replies

    def wait_until(self, replies: int) -> None:
        """Wait until there have been so many replies."""
        wait_for(f"{replies} replies ({self.name})", lambda: self.replies() >= replies)

    def wait_for_replies(self, more: int) -> None:
        wait_for_replies([self], more)

    def enlarge_buffers(self) -> None:
        """Enlarge the receive buffer for a backlog of replies; call it after the first reply."""
        enlarge_buffers(self._pid)

    def stop(self) -> PingResult:
        """End ping and return its result."""
        kill(self._pid, signal.SIGINT)
        self._lab.wait_ended(self._pid)
        return _read(self._log.read_text(), on_their_way=round(ON_THEIR_WAY_SECS / self._interval))


def ping(
    lab: Lab, namespace: Namespace, target: str, count: int = 5, *, interval: float = 0.05, wait: int = 10
) -> None:
    """Fail unless each of `count` requests is answered once; the first may wait for a handshake."""
    log = lab.folder / "ping.log"
    log.unlink(missing_ok=True)
    with namespace.entered():
        pid = lab.spawn(("/usr/bin/ping", "-n", "-c", str(count), "-i", str(interval), "-W", str(wait), target), "ping")
    lab.wait_ended(pid, wait + count * interval + 10)
    result = _read(log.read_text(), on_their_way=0)
    assert (result.transmitted, result.lost, result.duplicated) == (count, (), ()), log.read_text()
