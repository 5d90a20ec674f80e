"""Dates and date-times at which the access of a peer ends."""

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest

from oxidize.config.expiry import unix_time
from oxidize.config.values import InvalidValueError
from tests.support.config_files import PRIVATE, SERVER, load, peer, problem, secret

NEW_YEAR = datetime(2031, 1, 1, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine five hours behind UTC."""
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (date(2030, 12, 31), NEW_YEAR + 5 * 3600),
        ("2030-12-31", NEW_YEAR + 5 * 3600),
        (datetime(2030, 12, 31, 19), NEW_YEAR),
        ("2030-12-31 19:00", NEW_YEAR),
        ("2030-12-31T19:00:00", NEW_YEAR),
        (datetime(2031, 1, 1, tzinfo=UTC), NEW_YEAR),
        (datetime(2031, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), NEW_YEAR),
        ("2031-01-01T01:00:00+01:00", NEW_YEAR),
        ("2031-01-01t00:00:00z", NEW_YEAR),
        ("2031-01-01T00:00:00.5Z", NEW_YEAR + 0.5),
        ("9999-12-31", datetime(10_000 - 1, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp() + 5 * 3600 + 1),
    ],
)
def test_a_date_lasts_until_its_end_and_local_time_is_the_machines(value: object, expected: float) -> None:
    assert unix_time(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "soon",
            "2030-13-01",
            "2030-02-30",
            "2030-1-1",
            "20301231",
            "2030-W01-1",
            "31.12.2030",
            "2030-12-31T25:00",
        ),
        *("0001-01-01", "1969-12-31T23:59:59Z", "2030-12-31T18:00:00+99:99", "\u0662030-12-31"),
        *(True, 1_900_000_000, 1.5, [], {}, None, date(1, 1, 1), datetime.min),
        datetime(2030, 1, 1).time(),
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(InvalidValueError, match="such as 2030-12-31 or 2030-12-31T18:00"):
        unix_time(value)


def test_the_configuration_takes_toml_dates_and_text(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    for written in ("2030-12-31", '"2030-12-31"', "2031-01-01T05:00:00Z", "2031-01-01T00:00:00"):
        (found,) = load(tmp_path, SERVER + peer(more=f"expires = {written}")).peers
        assert found.expires == NEW_YEAR + 5 * 3600
    line = problem(tmp_path, SERVER + peer(more="expires = 18:00:00"))
    assert line == (
        "oxidize.toml: peer.alice.expires = 18:00:00: expected a date, or a date with a time, such as 2030-12-31 or "
        "2030-12-31T18:00:00+01:00; correct it, or remove the line"
    )
