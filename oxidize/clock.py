"""The clock of every deadline, of a takeover and of the blackout.

The rule: predecessor and successor read the same clock, for the predecessor tells the successor since when no process
has read. Source: clock_gettime(2), CLOCK_BOOTTIME is common to all processes and counts the time of a suspend.
"""

import time


def boot_time() -> float:
    """Return the seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
