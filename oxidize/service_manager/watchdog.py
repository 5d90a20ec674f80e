"""The service manager's watchdog, fed by the loop of the data path: a loop that stalls is killed and started again.

The interval comes with the environment of a process that the manager started. A successor's environment has none, or
one that names its predecessor: it takes the interval from the offer.

Source: sd_watchdog_enabled(3), systemd.service(5) WatchdogSec=.
"""

import os
from collections.abc import Callable, Mapping

from oxidize.service_manager import notify


def interval_secs(environ: Mapping[str, str] = os.environ) -> float:
    """Return the watchdog's interval that the manager gave to this process, 0.0 for none."""
    if environ.get("WATCHDOG_PID") not in {None, str(os.getpid())}:
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0


class Watchdog:
    """Says WATCHDOG=1 at half of the interval, for as long as the loop calls it. `now`: the loop's time."""

    def __init__(self, interval: float, now: Callable[[], float]) -> None:
        self.interval = interval
        self._now = now
        self._due_at = now()

    def next_deadline(self) -> float | None:
        """Return when the next sign of life is due, or None without a watchdog."""
        return self._due_at if self.interval else None

    def handle_timeout(self, now: float) -> None:
        """Give a sign of life."""
        notify.notify("WATCHDOG=1")
        self._due_at = now + self.interval / 2
