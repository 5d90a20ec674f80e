"""Compaction of the journal: one step at a time, with short pauses while there is more to do."""

from oxidize.runtime.compactor import CHECK_SECS, PURGE_SECS, STEP_PAUSE_SECS, JournalCompactor


class FakeState:
    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.purged = 0

    def maintain(self, *, purge: bool) -> bool:
        self.purged += purge
        self.steps -= 1
        return self.steps > 0


def test_steps_of_a_compaction_follow_each_other_and_checks_are_rare() -> None:
    compactor = JournalCompactor(FakeState(3), lambda: 100.0)  # type: ignore[arg-type]
    assert compactor.next_deadline() == 100.0 + CHECK_SECS
    deadlines = []
    for now in (101.0, 102.0, 103.0, 104.0):
        compactor.handle_timeout(now)
        deadlines.append(round(compactor.next_deadline() - now, 6))
    assert deadlines == [STEP_PAUSE_SECS, STEP_PAUSE_SECS, CHECK_SECS, CHECK_SECS]


def test_the_compactor_purges_dead_keys_once_in_purge_secs() -> None:
    state = FakeState(0)
    compactor = JournalCompactor(state, lambda: 100.0)  # type: ignore[arg-type]
    for now in (101.0, 100.0 + PURGE_SECS, 101.0 + PURGE_SECS, 100.0 + 2 * PURGE_SECS):
        compactor.handle_timeout(now)
    assert state.purged == 2
