"""The history of `oxidize watch`: samples with rates, each takeover once, and gaps."""

import pytest

from oxidize.cli.watch_history import ASCII_BLOCKS, SAMPLES_MAX, History, sparkline
from tests.support.vitals import NOON, failed, parsed, taken, vitals


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 3, "   "),
        ([1.0], 3, "  ▇"),
        ([0, 1, 2, 3, 4, 5, 6], 7, "▁▂▃▄▅▆▇"),
        ([0.0, 0.0], 2, "▁▁"),
        ([9, 0, 1, 2], 2, "▄▇"),
        ([None, 5, None, 5], 4, " ▇ ▇"),
        ([None, None], 2, "  "),
        ([1e-9, 1e9, 0.0], 3, "▂▇▁"),
        ([1, 2], 0, ""),
        ([1, 2], -1, ""),
    ],
)
def test_a_sparkline_scales_to_its_largest_value(values: list[float | None], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


@pytest.mark.parametrize("highest", [0.1, 0.7, 1 / 3, 123_456.789, 5e-324, 1e308])
def test_the_largest_value_has_the_highest_block_whatever_it_is(highest: float) -> None:
    assert sparkline([highest, 0], 2, ASCII_BLOCKS) == "#_"


# --- Samples ---


def test_the_first_sample_has_no_rates() -> None:
    sample = History().add(NOON, vitals())
    assert (sample.flow, sample.drops_rate, sample.is_loss, sample.is_return) == (None, None, False, False)


def test_rates_cover_the_time_since_the_last_answer() -> None:
    history = History()
    history.add(NOON, vitals())
    sample = history.add(NOON + 2, vitals(2, drops={"malformed": 8, "no_route": 3, "draining": 1}, kernel_drops=2))
    assert sample.flow is not None
    assert (sample.flow.received, sample.flow.sent) == (100, 100)
    assert (sample.flow.received_bytes, sample.flow.sent_bytes) == (102_400, 51_200)
    assert sample.drops_rate == 2


def test_counters_that_went_back_give_no_negative_drops() -> None:
    history = History()
    history.add(NOON, vitals())
    assert history.add(NOON + 1, vitals(1, drops={}, kernel_drops=3)).drops_rate == 2
    assert history.add(NOON + 1, vitals(1, drops={}, kernel_drops=9)).drops_rate == 0  # no time has passed


def test_a_loss_is_reported_once_and_a_return_with_its_duration() -> None:
    history = History()
    history.add(NOON, vitals())
    lost = [history.add(NOON + second, None, "why") for second in (1, 2)]
    assert [(sample.is_loss, sample.away_secs, sample.reason) for sample in lost] == [
        (True, 0, "why"),
        (False, 2, "why"),
    ]
    back = history.add(NOON + 3, vitals(3))
    assert (back.is_return, back.away_secs) == (True, 3)
    assert back.flow is not None
    assert back.flow.received == 100
    assert not history.add(NOON + 4, vitals(4)).is_return


def test_the_history_keeps_a_limited_number_of_samples() -> None:
    history = History()
    for second in range(SAMPLES_MAX + 5):
        history.add(NOON + second, vitals(second))
    assert len(history.samples) == SAMPLES_MAX
    assert [sample.at_unix - NOON for sample in history.last(2)] == [SAMPLES_MAX + 3, SAMPLES_MAX + 4]
    assert len(history.last(10 * SAMPLES_MAX)) == SAMPLES_MAX
    assert history.last(0) == history.last(-1) == []


# --- Takeovers ---


def test_a_takeover_is_new_once_and_those_from_before_are_not() -> None:
    history = History()
    assert history.add(NOON, vitals(takeovers=[taken(2), taken(3)])).takeovers == ()
    seen = history.add(
        NOON + 1, vitals(1, generation=4, pid=5, takeovers=[taken(3), failed(3, 1), taken(4, 1)])
    ).takeovers
    assert seen == (parsed(failed(3, 1)), parsed(taken(4, 1)))
    assert history.add(NOON + 2, vitals(2, generation=4, pid=5, takeovers=[taken(4, 1)])).takeovers == ()
    assert [found.generation for found in history.takeovers] == [4, 3, 3, 2]


def test_a_takeover_is_parsed() -> None:
    done, broken, empty = parsed(taken(4)), parsed(failed(3)), parsed({})
    assert (done.at_unix, done.succeeded, done.what, done.generation) == (NOON, True, "taken over", 4)
    assert (done.release, done.sessions, done.blackout_ms) == ("0.1.0", 20, 0.74)
    assert (broken.at_unix, broken.succeeded, broken.what, broken.generation) == (NOON, False, "it does not start", 3)
    assert (empty.at_unix, empty.succeeded, empty.what, empty.generation) == (0.0, False, "", None)


@pytest.mark.parametrize(
    ("entry", "expected"), [(taken(4), "3 -> 4"), (taken(1), "1"), (failed(3), "3 stays"), ({"result": "success"}, "-")]
)
def test_the_generations_of_a_takeover(entry: dict[str, object], expected: str) -> None:
    assert parsed(entry).generations == expected


def test_a_server_without_its_predecessors_state_is_a_takeover_entry() -> None:
    history = History()
    history.add(NOON, vitals(takeovers=[taken(3)]))
    (found,) = history.add(NOON + 1, vitals(1, generation=1, pid=5, sessions=0)).takeovers
    assert (found.at_unix, found.succeeded, found.what) == (NOON + 1, True, "started without sessions")
    assert (found.generation, found.release, found.sessions) == (1, "0.1.0", 0)
    assert history.add(NOON + 2, vitals(2, generation=1, pid=5, sessions=0)).takeovers == ()
    assert list(history.takeovers) == [found, parsed(taken(3))]


def test_an_unrecorded_replacement_is_a_takeover_entry() -> None:
    history = History()
    history.add(NOON, vitals())
    (found,) = history.add(NOON + 1, vitals(1, generation=4, pid=5, takeovers=[failed(3)])).takeovers[1:]
    assert (found.what, found.generations) == ("replaced", "3 -> 4")
