"""Keep-alives to the service manager's watchdog from the loop of the data path: a stalled loop is killed and restarted.

The rule: the interval is in the environment of a process that the manager started. A successor's environment has none,
or one that names its predecessor, so it takes the interval from the OFFER.

Source: sd_watchdog_enabled(3), systemd.service(5) WatchdogSec=.
"""

import os
from collections.abc import Callable

from oxidize.service_manager import notify


def interval_secs() -> float:
    """Return the watchdog interval that the manager set for this process, 0.0 for none."""
    if os.environ.get("WATCHDOG_PID") not in {None, str(os.getpid())}:
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0


class Watchdog:
    """Sends WATCHDOG=1 twice in each interval, from the loop. `now`: the loop's time."""

    def __init__(self, interval: float, now: Callable[[], float]) -> None:
        self.interval = interval
        self._due_at = now()

    def next_deadline(self) -> float | None:
        """Return when the next keep-alive is due, or None without a watchdog."""
        return self._due_at if self.interval else None

    def handle_timeout(self, now: float) -> None:
        """Send a keep-alive."""
        notify.notify("WATCHDOG=1")
        self._due_at = now + self.interval / 2
