"""The running server as a deployment sees it from outside, and what it can ask of it.

The rule: who serves is told by the kernel and the service manager, never by the server itself: a release that is bad
may answer anything, or nothing. A deployment knows nothing of sockets and units; whoever starts it brings them
(`cli.running_server`).
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from oxidize.deploy.vitals import PeerVitals, Vitals


@dataclass(frozen=True, slots=True)
class Serving:
    """The process that serves. folder: that it was started from, with links resolved; "" where that cannot be seen."""

    pid: int
    folder: str


class Server(Protocol):
    """The one server of an installation. What raises is an OxidizeError with the reason."""

    def serving(self) -> Serving | None:
        """Return the process that serves, None where there is none."""

    def is_expected(self) -> bool:
        """Tell whether the service manager has it running, or is about to start it."""

    def is_reloading(self) -> bool:
        """Tell whether the service manager is replacing its process just now."""

    def main_pid(self) -> int | None:
        """Return its main process as the service manager has it; None where that has none or cannot be asked."""

    def owner(self) -> tuple[int, int] | None:
        """Return the user and group ids that it runs as, None where nothing runs and none is configured."""

    def vitals(self) -> Vitals | None:
        """Return how it is, None where nobody listens; raises for one that gives no answer that can be read."""

    def peers(self) -> Sequence[PeerVitals]:
        """Return the peers of its status; raises where nobody answers."""

    def unready(self, vitals: Vitals) -> str:
        """Return why its /health does not call it ready, "" where it does."""

    def reload(self, program: Path) -> None:
        """Replace its process by one of this program, by takeover; raises with the reason where it serves on."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, and how it is passed."""

    now: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def is_root() -> bool:
    """Tell whether this process may become another user."""
    return os.geteuid() == 0
