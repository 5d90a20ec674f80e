"""Times and sizes as text."""

import time

import pytest

from oxidize.terminal.units import ago, byte_count, clock, duration, milliseconds, short_duration

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
        (86_400 * 400, "400 d"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 40, "1.0 TiB"), (1 << 60, "1048576.0 TiB")],
)
def test_bytes_are_counted_in_binary_units(number: int, expected: str) -> None:
    assert byte_count(number) == expected


def test_an_age_is_a_duration_and_zero_is_never() -> None:
    assert ago(0.0) == "never"
    assert ago(NOW - 3) == "3 s ago"
    assert ago(NOW + 3) == "0 s ago"  # the clock was set back


@pytest.mark.parametrize(("seconds", "expected"), [(0.56, "0.6 s"), (9.9, "9.9 s"), (10.4, "10 s"), (125, "2 min 5 s")])
def test_short_durations_have_tenths_of_a_second(seconds: float, expected: str) -> None:
    assert short_duration(seconds) == expected


def test_a_clock_shows_the_time_of_day() -> None:
    assert clock(NOW) == "22:13:20"


def test_unknown_milliseconds_are_a_dash() -> None:
    assert [milliseconds(number) for number in (0.0, 0.74, 1234.56, None)] == ["0.0 ms", "0.7 ms", "1234.6 ms", "-"]
