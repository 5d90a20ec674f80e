"""The end of a peer's access: a date or a date with a time, as TOML has them, or the same as text.

The rule: a date lasts until its end. What names no offset is in this machine's time zone, as the operator's watch is.
Sources: TOML 1.0, sections "Offset Date-Time", "Local Date-Time" and "Local Date"; RFC 3339.
"""

import contextlib
import re
from datetime import date, datetime, time

from oxidize.config.values import InvalidValueError

_LAST_SECOND = time(23, 59, 59)  # of a day; the next day may have no midnight
_EXPECTED = "a date, or a date with a time, such as 2030-12-31 or 2030-12-31T18:00:00+01:00"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?([Zz]|[+-]\d{2}:\d{2})?", re.ASCII)


def parse(value: object) -> date | datetime:
    """Return the date or date-time of a value; raises InvalidValueError for anything else, also a time of day."""
    if isinstance(value, date):  # a datetime is one too
        return value
    try:
        if isinstance(value, str) and _DATE.fullmatch(value):
            return date.fromisoformat(value)
        if isinstance(value, str) and _DATE_TIME.fullmatch(value):
            return datetime.fromisoformat(value.upper())
    except ValueError:
        raise InvalidValueError(f"{_EXPECTED}, that there is") from None
    raise InvalidValueError(_EXPECTED)


def unix_time(value: object) -> float:
    """Return the moment at which access ends, seconds since the epoch; raises InvalidValueError."""
    ends = parse(value)
    with contextlib.suppress(ValueError, OverflowError, OSError):  # what the system's calendar has not
        unix = ends.timestamp() if isinstance(ends, datetime) else _end_of_day(ends)
        if unix >= 0:
            return unix
    raise InvalidValueError(f"{_EXPECTED}, after 1970")


def _end_of_day(day: date) -> float:
    return datetime.combine(day, _LAST_SECOND).timestamp() + 1
