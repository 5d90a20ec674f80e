"""The clock of a takeover where its user brings none.

The rule: both processes read the same clock, for the predecessor tells the successor since when it has not served.
Source: clock_gettime(2), CLOCK_BOOTTIME is common to all processes and counts the time of a suspend.
"""

import time


def boot_time() -> float:
    """Return the seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
