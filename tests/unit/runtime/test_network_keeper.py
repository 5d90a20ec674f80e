"""The keeper of the host's network, over parts whose state the test changes and a clock that it moves."""

from collections.abc import Callable

import pytest

from oxidize.errors import OxidizeError
from oxidize.hostnet.part import IncompleteError, Steps
from oxidize.protocol.counters import TOTALS_WORDS, Total
from oxidize.runtime.network_keeper import DELAY_LIMIT_SECS, QUIET_SECS, REPAIRS_AT_ONCE, SLOW_SLICE_SECS, NetworkKeeper


class FakePart:
    """A part with things that another program takes away, and may refuse to have put back."""

    def __init__(self, name: str = "interface ox0", slices: int = 3) -> None:
        self.name = name
        self.missing: list[str] = []
        self.refusal: Exception | None = None
        self.compared = 0
        self.repaired = 0
        self._slices = slices
        self.work: Callable[[], None] = lambda: None  # done in each slice

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        for _ in range(self._slices):
            self.work()
            yield 0.0
        self.compared += 1
        if self.missing and self.refusal is not None and repair:
            raise self.refusal
        found = list(self.missing)
        if repair:
            self.repaired += bool(found)
            self.missing.clear()
        return found


class Scene:
    """A keeper in a loop of its own."""

    def __init__(self, *parts: FakePart) -> None:
        self.now = 1_000.0
        self.owns = True
        self.reports: list[list[str]] = []
        self.counters = memoryview(bytearray(8 * TOTALS_WORDS)).cast("Q")
        self.keeper = NetworkKeeper(
            parts, self.counters, lambda: self.now, lambda: self.owns, lambda: self.reports.append(self.keeper.missing)
        )

    def pass_time(self, secs: float = 0.0) -> int:
        """Let the loop run for so long; return the number of its calls."""
        end, calls = self.now + secs, 0
        while (due := self.keeper.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.keeper.handle_timeout(self.now)
            calls += 1
        self.now = end
        return calls

    def take_away(self, part: FakePart, what: str = "address +10.9.0.1/24") -> None:
        part.missing.append(what)
        self.keeper.note_change(self.now)
        self.pass_time(0.1)

    @property
    def repairs(self) -> int:
        return self.counters[Total.NETWORK_REPAIRS]


@pytest.fixture
def part() -> FakePart:
    return FakePart()


@pytest.fixture
def scene(part: FakePart) -> Scene:
    return Scene(part)


def test_what_is_taken_away_is_put_back_counted_and_logged_once(
    scene: Scene, part: FakePart, caplog: pytest.LogCaptureFixture
) -> None:
    scene.take_away(part)
    assert not part.missing
    assert scene.repairs == 1
    assert scene.keeper.missing == []
    scene.pass_time(300.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "put back what was missing" in caplog.text


def test_a_change_elsewhere_changes_nothing(scene: Scene, part: FakePart, caplog: pytest.LogCaptureFixture) -> None:
    scene.keeper.note_change(scene.now)
    scene.pass_time(300.0)
    assert part.compared == 1
    assert scene.repairs == 0
    assert not caplog.records


def test_a_comparison_takes_one_slice_in_each_iteration_of_the_loop(scene: Scene) -> None:
    scene.keeper.begin()
    assert scene.pass_time() == 3 + 1


@pytest.mark.parametrize("took", [SLOW_SLICE_SECS / 2, 4 * SLOW_SLICE_SECS])
def test_traffic_is_served_for_as_long_as_a_slow_slice_took(scene: Scene, part: FakePart, took: float) -> None:
    def work() -> None:
        scene.now += took

    part.work = work
    pauses = list(scene.keeper.settle(part, is_repair=False))
    assert pauses == pytest.approx([took if took > SLOW_SLICE_SECS else 0.0] * 3)
    scene.keeper.begin()
    began_at = scene.now
    scene.keeper.handle_timeout(began_at)
    assert scene.keeper.next_deadline() == pytest.approx(began_at + took + pauses[0])


def test_a_change_during_a_comparison_leads_to_another_one(scene: Scene, part: FakePart) -> None:
    scene.keeper.begin()
    scene.keeper.handle_timeout(scene.now)
    scene.keeper.note_change(scene.now)
    scene.pass_time(10.0)
    assert part.compared == 2


def test_all_parts_are_compared_although_one_fails() -> None:
    broken, whole = FakePart("broken"), FakePart("whole")
    scene = Scene(broken, whole)
    broken.missing, broken.refusal = ["route"], OxidizeError("broken: no room")
    scene.take_away(whole)
    assert whole.repaired == 1
    assert scene.keeper.missing == ["broken: no room"]


@pytest.mark.parametrize(
    "refusal", [OxidizeError("no room"), OSError("no descriptor"), IncompleteError(["no room"], [])]
)
def test_what_cannot_be_put_back_is_known_until_it_is(scene: Scene, part: FakePart, refusal: Exception) -> None:
    part.refusal = refusal
    scene.take_away(part)
    (missing,) = scene.keeper.missing
    assert "no " in missing
    scene.pass_time(300.0)
    assert scene.keeper.missing == [missing]
    part.refusal = None
    scene.pass_time(DELAY_LIMIT_SECS)
    assert scene.keeper.missing == []
    assert not part.missing
    assert scene.reports == [[missing], []]


def test_attempts_at_what_cannot_be_put_back_become_rare_and_are_logged_once(
    scene: Scene, part: FakePart, caplog: pytest.LogCaptureFixture
) -> None:
    part.refusal = OxidizeError("no room")
    scene.take_away(part)
    scene.pass_time(600.0)
    assert 10 <= part.compared <= 20
    assert len(caplog.records) == 1


def test_what_can_never_be_put_back_is_tried_for_as_long_as_the_process_serves(scene: Scene, part: FakePart) -> None:
    """A machine runs for months, and every change in its network leads to another comparison."""
    part.refusal = OxidizeError("no room")
    scene.take_away(part)
    for _ in range(3):
        scene.pass_time(40_000.0)
        assert scene.keeper.missing == ["no room"]
    compared = part.compared
    assert compared > 1_100, "more than there are powers of two in a float"
    scene.pass_time(10 * DELAY_LIMIT_SECS)
    assert compared + 9 <= part.compared <= compared + 11


def test_the_reason_why_something_cannot_be_put_back_is_told_while_the_next_attempt_waits(
    scene: Scene, part: FakePart
) -> None:
    part.refusal = OxidizeError("this needs root")
    scene.take_away(part)
    for _ in range(3):
        scene.pass_time(0.3)
        scene.keeper.note_change(scene.now)
        scene.pass_time(0.1)
        assert scene.keeper.missing == ["this needs root"]


def test_what_another_program_has_put_back_is_put_back_at_once_the_next_time(scene: Scene, part: FakePart) -> None:
    part.refusal = OxidizeError("no room")
    scene.take_away(part)
    scene.pass_time(100.0)
    part.missing.clear()
    part.refusal = None
    scene.keeper.note_change(scene.now)
    scene.pass_time(0.3)
    assert scene.keeper.missing == []
    scene.take_away(part)
    assert not part.missing
    assert scene.repairs == 1


def test_changes_of_an_incomplete_part_are_counted_apart_from_what_is_missing(scene: Scene, part: FakePart) -> None:
    part.refusal = IncompleteError(["route: no room"], ["address"])
    scene.take_away(part)
    assert scene.repairs == 1
    assert scene.keeper.missing == ["route: no room"]


def test_a_program_that_takes_something_away_again_and_again_is_met_with_growing_pauses(
    scene: Scene, part: FakePart, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(6_000):  # 600 s
        if not part.missing:
            part.missing.append("rule")
        scene.keeper.note_change(scene.now)
        scene.pass_time(0.1)
    assert REPAIRS_AT_ONCE + 5 <= scene.repairs <= REPAIRS_AT_ONCE + 20
    said = [record for record in caplog.records if "again and again" in record.getMessage()]
    assert len(said) == 1
    assert len(caplog.records) <= REPAIRS_AT_ONCE + 2
    assert "missing now: rule" in scene.keeper.missing[0]


def test_a_contended_part_is_put_back_at_once_again_after_a_quiet_time(scene: Scene, part: FakePart) -> None:
    for _ in range(REPAIRS_AT_ONCE + 2):
        scene.take_away(part)
        scene.pass_time(5.0)
    scene.pass_time(QUIET_SECS + DELAY_LIMIT_SECS)
    assert scene.keeper.missing == []
    before = scene.repairs
    for _ in range(REPAIRS_AT_ONCE - 1):
        scene.take_away(part)
        scene.pass_time(0.3)
    assert scene.repairs == before + REPAIRS_AT_ONCE - 1


def test_what_is_there_again_while_its_repair_waits_is_not_missing(scene: Scene, part: FakePart) -> None:
    for _ in range(REPAIRS_AT_ONCE):
        scene.take_away(part)
        scene.pass_time(0.3)
    scene.take_away(part)
    assert scene.keeper.missing
    part.missing.clear()
    scene.pass_time(0.3)
    scene.keeper.note_change(scene.now)
    scene.pass_time(0.1)
    assert scene.keeper.missing == []


def test_a_process_that_does_not_own_compares_nothing(scene: Scene, part: FakePart) -> None:
    scene.owns = False
    scene.take_away(part)
    assert part.compared == 0
    scene.owns = True
    scene.keeper.stop()
    scene.keeper.begin()
    scene.pass_time()
    assert not part.missing


def test_the_comparison_of_a_start_is_no_repair(scene: Scene, part: FakePart, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    part.missing = ["state up"]
    assert list(scene.keeper.settle(part, is_repair=False)) == [0.0] * 3
    assert scene.repairs == 0
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_what_a_reload_finds_missing_of_unchanged_settings_is_a_repair(scene: Scene, part: FakePart) -> None:
    part.missing = ["state up"]
    list(scene.keeper.settle(part, is_repair=True))
    assert scene.repairs == 1
