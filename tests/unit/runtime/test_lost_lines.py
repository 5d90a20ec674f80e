"""Lines that the log loses are counted by the owner, and reported when the log takes lines again."""

from collections.abc import Iterator

import pytest

from oxidize.log_output import Losses
from oxidize.net.event_loop import Loop
from oxidize.protocol.counters import Total
from oxidize.runtime.lost_lines import REPORT_PAUSE_SECS, LostLines
from tests.support.counters import ArraySlots


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_lines_are_counted_by_the_owner_and_reported_when_there_is_room(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_room = False
    monkeypatch.setattr("oxidize.logs.report_losses", lambda: has_room)
    counters, losses = ArraySlots(8).counters, Losses()
    lines = LostLines(counters, loop, losses)
    losses.note()
    assert counters[Total.LOG_LINES_LOST] == 0  # of another owner
    lines.begin()
    losses.note()
    assert counters[Total.LOG_LINES_LOST] == 2
    assert loop._timed == [lines]
    due = lines.next_deadline()
    lines.handle_timeout(due)
    assert loop._timed == [lines]
    assert lines.next_deadline() == due + REPORT_PAUSE_SECS
    has_room = True
    lines.handle_timeout(lines.next_deadline())
    assert loop._timed == []
    lines.end()
    losses.note()
    assert counters[Total.LOG_LINES_LOST] == 2
