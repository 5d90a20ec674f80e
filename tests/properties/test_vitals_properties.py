"""Any answer of a server gives usable vitals or a DecodeError."""

from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.cli.watch_history import History
from oxidize.deploy.vitals import Vitals, rates
from oxidize.errors import DecodeError
from tests.support.vitals import NOON, answer, parsed, taken

GOOD = {**answer(), "takeovers": [taken(3)], "errors_before": 4}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["3", "1e3"])
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(taken(3))) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


def use(vitals: Vitals) -> None:
    """Use vitals as a deployment does; nothing may raise."""
    assert vitals.blackout_ms is None or vitals.blackout_ms >= 0
    later = Vitals.of(answer(1.0))
    for earlier, now in ((vitals, later), (later, vitals), (vitals, vitals)):
        assert isfinite(rates(earlier, now).received + rates(earlier, now).sent)
    assert vitals.total("errors_logged") >= 0
    history = History()
    history.add(NOON, later)
    history.add(NOON + 1, vitals)
    assert all(takeover.generations for takeover in vitals.takeovers)


@given(JSON)
def test_any_json_gives_vitals_or_a_named_problem(said: Any) -> None:
    with pytest.raises(DecodeError):
        Vitals.of(said)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, min_size=1))
def test_vitals_with_fields_of_any_type_are_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        vitals = Vitals.of({**GOOD, **changes})
    except DecodeError:
        return
    use(vitals)


@given(st.sampled_from(sorted(taken(3))), JSON)
def test_a_takeover_with_fields_of_any_type_is_read_or_refused(name: str, value: Any) -> None:
    try:
        vitals = Vitals.of({**GOOD, "takeovers": [taken(2), {**taken(3), name: value}]})
    except DecodeError:
        return
    use(vitals)


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_rates_of_vitals_at_any_distance_in_time_are_finite(first: float, second: float) -> None:
    try:
        vitals = [
            Vitals.of({**GOOD, "at_boot_secs": at, "totals": {"sent_packets": 2**64 - 1}}) for at in (first, second)
        ]
    except DecodeError:
        return
    assert isfinite(rates(*vitals).sent)


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": True},
        {"pid": 0},
        {"pid": 1 << 40},
        {"generation": 3.0},
        {"sessions": "3"},
        {"sessions": -1},
        {"kernel_drops": 1 << 64},
        {"at_boot_secs": float("nan")},
        {"at_boot_secs": float("inf")},
        {"at_boot_secs": 10**400},
        {"uptime_secs": -1.0},
        {"uptime_secs": False},
        {"state": None},
        {"release": 1},
        {"release_folder": None},
        {"totals": []},
        {"totals": {"a": "1"}},
        {"totals": {1: 1}},
        {"drops": None},
        {"drops": {"a": 0.5}},
        {"takeovers": None},
        {"takeovers": {}},
        {"takeovers": "ab"},
        {"takeovers": [[]]},
        {"takeovers": [{"blackout_ms": "0.7"}]},
        {"takeovers": [{"generation": []}]},
        {"takeovers": [{"at_unix": None}]},
        {"metrics_listen": 9090},
        {"errors_before": -1},
        {"errors_before": True},
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(DecodeError, match=rf"vitals cannot be read: {name}\b.*: expected "):
        Vitals.of({**GOOD, **changes})


@pytest.mark.parametrize(
    "name", sorted(GOOD.keys() - {"release_folder", "takeovers", "metrics_listen", "errors_before"})
)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(DecodeError, match=f"'{name}' is missing"):
        Vitals.of({field: value for field, value in GOOD.items() if field != name})


def test_vitals_of_an_older_release_may_lack_fields() -> None:
    least = {
        name: GOOD[name] for name in GOOD.keys() - {"release_folder", "takeovers", "metrics_listen", "errors_before"}
    }
    vitals = Vitals.of(least)
    assert (vitals.release_folder, vitals.takeovers, vitals.metrics_listen, vitals.errors_before) == (
        "",
        (),
        None,
        None,
    )
    assert Vitals.of({**GOOD, "errors_before": 4}).errors_before == 4
    assert Vitals.of({**least, "metrics_listen": None, "errors_before": None}) == vitals


def test_unknown_fields_of_a_newer_release_are_ignored() -> None:
    vitals = Vitals.of({**GOOD, "takeovers": [{**taken(3), "blackout_ms": None, "more": {"of": ["it"]}}]})
    assert vitals.takeovers == (parsed({**taken(3), "blackout_ms": None}),)
    assert vitals.blackout_ms is None
