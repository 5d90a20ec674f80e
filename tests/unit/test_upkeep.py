"""Upkeep: one step at a time, soon again while there is more to do."""

from oxidize.runtime.upkeep import CHECK_SECS, STEP_PAUSE_SECS, Upkeep


class FakeState:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def maintain(self) -> bool:
        self.steps -= 1
        return self.steps > 0


def test_steps_follow_each_other_and_looks_are_rare() -> None:
    upkeep = Upkeep(FakeState(3), lambda: 100.0)  # type: ignore[arg-type]
    assert upkeep.next_deadline() == 100.0 + CHECK_SECS
    deadlines = []
    for now in (101.0, 102.0, 103.0, 104.0):
        upkeep.handle_timeout(now)
        deadlines.append(round(upkeep.next_deadline() - now, 6))
    assert deadlines == [STEP_PAUSE_SECS, STEP_PAUSE_SECS, CHECK_SECS, CHECK_SECS]
