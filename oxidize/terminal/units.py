"""Times and sizes as text.

Rule: only `ago` reads a clock, the time of day.
"""

import time

from rich.filesize import pick_unit_and_suffix

_BINARY_UNITS = ["B", "KiB", "MiB", "GiB", "TiB"]


def byte_count(number: float) -> str:
    """Return a number of bytes in binary units, such as "1.5 KiB"."""
    unit, suffix = pick_unit_and_suffix(int(number), _BINARY_UNITS, 1024)
    return f"{number:.0f} {suffix}" if unit == 1 else f"{number / unit:.1f} {suffix}"


def duration(seconds: float) -> str:
    """Return seconds as text, in the two largest units that are not 0, such as "2 min 5 s"."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole % 60, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"


def short_duration(seconds: float) -> str:
    """Return the same as `duration`, with a tenth of a second below ten seconds."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def ago(unix: float) -> str:
    """Return the age of a time in seconds since the epoch, such as "5 s ago"; "never" for 0."""
    return f"{duration(max(0.0, time.time() - unix))} ago" if unix else "never"


def clock(unix: float) -> str:
    """Return the local time of day of a time in seconds since the epoch."""
    return time.strftime("%H:%M:%S", time.localtime(unix))


def minute(unix: float) -> str:
    """Return the local date and time of day of a time in seconds since the epoch, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def milliseconds(number: float | None) -> str:
    """Return a number of milliseconds to the tenth, "-" for None."""
    return f"{number:.1f} ms" if number is not None else "-"
