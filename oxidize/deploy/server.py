"""The interface of the running server to a deployment.

The rule: the kernel and the service manager identify the serving process, never the server itself: a bad release may
answer anything, or nothing. A deployment knows nothing of sockets and units; `cli.running_server` implements them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from oxidize.deploy.vitals import PeerVitals, Vitals


@dataclass(frozen=True, slots=True)
class Serving:
    """The serving process. folder: that it was started from, with links resolved; "" if that is not visible."""

    pid: int
    folder: str


class Server(Protocol):
    """The server of an installation. Methods raise OxidizeError with the reason."""

    def serving(self) -> Serving | None:
        """Return the serving process, None if there is none."""

    def unreached(self) -> str:
        """Return which process runs although none listens, and how to reach it, "" where none is found."""

    def is_expected(self) -> bool:
        """Return whether the service manager runs the server or is about to start it."""

    def is_reloading(self) -> bool:
        """Return whether the service manager is reloading the server now."""

    def main_pid(self) -> int | None:
        """Return the main process from the service manager; None if there is none or it does not answer."""

    def owner(self) -> tuple[int, int] | None:
        """Return the server's user and group ids, None if none is running and none is configured."""

    def vitals(self) -> Vitals | None:
        """Return the server's vitals, None if no process listens; raises if it does not answer correctly."""

    def peers(self) -> Sequence[PeerVitals]:
        """Return the peers in the server's status; raises if it does not answer."""

    def unready(self, vitals: Vitals) -> str:
        """Return why /health does not report the server as ready, "" if it does."""

    def reload(self, program: Path) -> None:
        """Replace the process by one of this program, by takeover; raises if the old one still serves."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, and sleeping."""

    now: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
