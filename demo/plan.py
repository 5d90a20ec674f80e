"""When what is done to the server, and what its commands answered. Pure.

Rule: the schedule is fixed before the run; what a command printed is shown as it was, and only the blackout is read
out of it.
"""

import re
from dataclasses import dataclass

from demo.verdict import Action

_BLACKOUT = re.compile(r", blackout (\d+(?:\.\d+)?) ms")
_GENERATION = re.compile(r"generation (\d+)")
_SUCCESS, _FAILURE = "reloaded: ", "oxidize: "

BURSTS = (1, 2, 4, 8, 16, 32)
RESTART_ALLOWANCE_SECS = 1.0  # what a restart may take on a slow machine; it takes a third of that on a good one
# What one buffer of the kernel's is charged with, measured on Linux 6.18 for bursts of 1 to 32 of our requests (880 to
# 3,900 bytes) and rounded up.
_BUFFER_OVERHEAD_BYTES = 900
_BUFFER_PACKET_BYTES = 100


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, `at` seconds after the clients' schedule began."""

    at: float
    action: Action


def plan(seconds: float, reloads: int) -> list[Step]:
    """Spread so many reloads, one refused release and one kill evenly over the run.

    The refused release and the kill stand among the reloads, so that each is followed by a planned replacement.
    """
    actions = [Action.RELOAD] * reloads
    actions.insert((reloads + 1) // 3, Action.REFUSED)
    actions.insert((2 * reloads + 2) // 3 + 1, Action.KILL)
    interval = seconds / (len(actions) + 1)
    return [Step(interval * (i + 1), action) for i, action in enumerate(actions)]


def choose_burst(buffer_bytes: int, rate: float) -> int:
    """Return how many requests each client must send at once so that a restart fits the server's receive buffer.

    rate: packets per second of all clients. The kernel charges the receive buffer for each buffer of its own rather
    than for the bytes in it (832 for a small datagram), and a burst sent with UDP_SEGMENT is one of those. What
    net.core.rmem_max allows an ordinary user by default holds a quarter of a second of single datagrams at 2,000/s.
    """
    for burst in BURSTS:
        packets = buffer_bytes / (_BUFFER_OVERHEAD_BYTES + burst * _BUFFER_PACKET_BYTES) * burst
        if packets / rate >= RESTART_ALLOWANCE_SECS:
            return burst
    return BURSTS[-1]


@dataclass(frozen=True, slots=True)
class Answer:
    """What `oxidize reload` printed: its first line, without what is shown elsewhere, and what stands in it."""

    line: str
    blackout_ms: float | None
    generation: int | None


def read_answer(output: str) -> Answer:
    """Pick the command's own answer out of what it and its successor wrote.

    The successor logs to the same file; the command's lines begin with "reloaded:" or, for a failure, "oxidize:".
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith((_SUCCESS, _FAILURE))] or lines[-1:] or ["it printed nothing"]
    line = own[0].removeprefix(_SUCCESS).removeprefix(_FAILURE)
    blackout, generation = _BLACKOUT.search(line), _GENERATION.search(line)
    return Answer(
        _BLACKOUT.sub("", line), float(blackout[1]) if blackout else None, int(generation[1]) if generation else None
    )
