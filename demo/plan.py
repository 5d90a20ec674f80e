"""The schedule of a run, and the parsing of command output. Pure.

Rule: the schedule is fixed before the run; command output is shown unchanged, except for the blackout, which is parsed.
"""

import re
from dataclasses import dataclass

from demo.verdict import Action

_BLACKOUT = re.compile(r", blackout (\d+(?:\.\d+)?) ms")
_GENERATION = re.compile(r"generation (\d+)")
_SUCCESS, _FAILURE = "reloaded: ", "oxidize: "

BURSTS = (1, 2, 4, 8, 16, 32, 64)  # 64: UDP_MAX_SEGMENTS, udp(7)
# The first start is two interpreters, the holder's and the server's, a restart is one: this leaves room for a machine
# that is four times as busy by then.
RESTART_STARTS = 2.0
# The kernel's charge for one socket buffer, measured on Linux 6.18 for bursts of 1 to 64 requests (880 to 7,000 bytes)
# and rounded up.
_BUFFER_OVERHEAD_BYTES = 900
_BUFFER_PACKET_BYTES = 100


@dataclass(frozen=True, slots=True)
class Step:
    """One action, `at` seconds after the start of the clients' schedule."""

    at: float
    action: Action


def plan(seconds: float, reloads: int) -> list[Step]:
    """Return a schedule with `reloads` reloads, one refused release and one kill, evenly spread over `seconds`.

    The refused release and the kill are placed among the reloads, so that each is followed by a planned replacement.
    """
    actions = [Action.RELOAD] * reloads
    actions.insert((reloads + 1) // 3, Action.REFUSED)
    actions.insert((2 * reloads + 2) // 3 + 1, Action.KILL)
    interval = seconds / (len(actions) + 1)
    return [Step(interval * (i + 1), action) for i, action in enumerate(actions)]


def choose_burst(buffer_bytes: int, rate: float, start_secs: float) -> int:
    """Return how many requests each client must send at once so that the receive buffer holds them during a restart.

    buffer_bytes: of the server's socket. rate: packets per second of all clients. start_secs: what the server's first
    start has taken on this machine. The largest burst is the answer also where it is too small. The kernel charges the
    receive buffer per socket buffer (832 bytes for a small datagram) and not per byte of payload, and a burst sent with
    UDP_SEGMENT is one socket buffer. The default of net.core.rmem_max, which limits an ordinary user, holds a quarter
    of a second of single datagrams at 2,000/s.
    """
    for burst in BURSTS:
        packets = buffer_bytes / (_BUFFER_OVERHEAD_BYTES + burst * _BUFFER_PACKET_BYTES) * burst
        if packets / rate >= RESTART_STARTS * start_secs:
            return burst
    return BURSTS[-1]


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of `oxidize reload`: its first line without prefix and blackout, and the values parsed from it."""

    line: str
    blackout_ms: float | None
    generation: int | None


def read_answer(output: str) -> Answer:
    """Return the command's own answer from the output that it shares with the successor's log.

    The command's lines begin with "reloaded:" or, after a failure, "oxidize:".
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith((_SUCCESS, _FAILURE))] or lines[-1:] or ["it printed nothing"]
    line = own[0].removeprefix(_SUCCESS).removeprefix(_FAILURE)
    blackout, generation = _BLACKOUT.search(line), _GENERATION.search(line)
    return Answer(
        _BLACKOUT.sub("", line), float(blackout[1]) if blackout else None, int(generation[1]) if generation else None
    )
