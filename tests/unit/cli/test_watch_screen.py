"""The frames and lines of `oxidize watch`, at fixed sizes."""

import dataclasses
import io
import json
import time
from collections import deque
from typing import Literal

import pytest
from rich.console import Console, Group

from oxidize.cli.watch_history import History
from oxidize.cli.watch_lines import json_lines, rate_text, text_lines
from oxidize.cli.watch_screen import ASCII_GLYPHS, GLYPHS, Glyphs, frame, live_screen
from tests.support.vitals import NOON, failed, taken, vitals


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    monkeypatch.setattr(time, "time", lambda: NOON + 6)


@pytest.fixture
def history() -> History:
    """A server with a takeover, a failed takeover, and a second without an answer."""
    history = History()
    before = [taken(2, -200_000), taken(3, -60)]
    after = [*before, taken(4, 2), failed(4, 3)]
    history.add(NOON, vitals(takeovers=before))
    history.add(NOON + 1, vitals(1, takeovers=before))
    history.add(NOON + 2, vitals(2, generation=4, pid=4300, takeovers=after[:3]))
    history.add(NOON + 3, vitals(3, generation=4, pid=4300, takeovers=after))
    history.add(NOON + 4, None)
    restored = taken(5, 5, way="restored from the store", blackout_ms=None)
    history.add(
        NOON + 5, vitals(5, generation=5, pid=4400, takeovers=[*after, restored], kernel_drops=21, uptime_secs=9)
    )
    return history


def drawn(
    history: History, width: int, height: int, glyphs: Glyphs = GLYPHS, colour: Literal["standard"] | None = None
) -> list[str]:
    """The lines of a frame as a terminal of this size shows them, one second after the last sample."""
    console = Console(
        file=io.StringIO(), width=width, height=height, highlight=False, force_terminal=True, color_system=colour
    )
    with console.capture() as capture:
        console.print(Group(*frame("server", history, NOON + 6, (width, height), glyphs)))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_frame_of_80_columns(history: History) -> None:
    assert drawn(history, 80, 24) == [
        "server  healthy",
        "generation 5, release 0.1.0, pid 4400, up 10 s, 25 peers",
        "",
        "last 5 s                  now        max                                    ▼✗ ▼",
        "sessions                   20         20                                  ▇▇▇▇ ▇",
        "packets received        100/s        100                                   ▇▇▇ ▇",
        "packets sent            100/s        100                                   ▇▇▇ ▇",
        "bytes received    100.0 KiB/s  100.0 KiB                                   ▇▇▇ ▇",
        "bytes sent         50.0 KiB/s   50.0 KiB                                   ▇▇▇ ▇",
        "dropped                  10/s         10                                   ▁▁▁ ▇",
        "",
        "takeovers   generation  release  sessions  blackout",
        "22:13:25    4 -> 5      0.1.0          20         -  restored from the store",
        "22:13:23    4 stays     -               -         -  FAILED: it does not start",
        "22:13:22    3 -> 4      0.1.0          20    0.7 ms  taken over",
        "22:12:20    2 -> 3      0.1.0          20    0.7 ms  taken over",
        "2023-11-12  1 -> 2      0.1.0          20    0.7 ms  taken over",
    ]


def test_a_frame_without_an_answer(history: History) -> None:
    history.add(NOON + 6, None)
    assert drawn(history, 80, 24)[0] == "server  no answer since 22:13:25, for 1.0 s"
    history.add(NOON + 6, None, "pid 4400 gives no answer: does it hang?")
    lines = drawn(history, 80, 24)
    assert lines[:3] == [
        "server  no answer since 22:13:25, for 1.0 s",
        "last seen: generation 5, release 0.1.0, pid 4400, up 9 s, 25 peers",
        "pid 4400 gives no answer: does it hang?",
    ]
    assert lines[5] == "sessions                    -         20" + "▇▇▇▇ ▇".rjust(38)


def test_a_frame_of_the_first_poll() -> None:
    history = History()
    history.add(NOON, vitals())
    lines = drawn(history, 80, 24)
    assert lines[4].endswith("20  " + " " * 37 + "▇")
    assert lines[5] == "packets received            -          -"
    assert lines[-1] == "no takeovers yet"


def test_a_frame_of_a_narrow_terminal(history: History) -> None:
    assert drawn(history, 44, 30) == [
        "server  healthy",
        "generation 5, release 0.1.0, pid 4400",
        "up 10 s, 25 peers",
        "",
        "last 5 s                  now           ▼✗ ▼",
        "sessions                   20         ▇▇▇▇ ▇",
        "packets received        100/s          ▇▇▇ ▇",
        "packets sent            100/s          ▇▇▇ ▇",
        "bytes received    100.0 KiB/s          ▇▇▇ ▇",
        "bytes sent         50.0 KiB/s          ▇▇▇ ▇",
        "dropped                  10/s          ▁▁▁ ▇",
        "",
        "takeovers   generation",
        "22:13:25    4 -> 5      restored from the s…",
        "22:13:23    4 stays     FAILED: it does not…",
        "22:13:22    3 -> 4      0.7 ms, taken over",
        "22:12:20    2 -> 3      0.7 ms, taken over",
        "2023-11-12  1 -> 2      0.7 ms, taken over",
    ]


@pytest.mark.parametrize("width", [1, 2, 10, 31, 33, 59, 60, 67, 68, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 19, 20, 24, 60])
def test_a_frame_is_never_larger_than_the_terminal(history: History, width: int, height: int) -> None:
    for _ in range(300):
        history.add(NOON + 6, None)
    lines = list(frame("server", history, NOON + 6, (width, height)))
    assert 0 < len(lines) <= height
    assert max(line.cell_len for line in lines) <= width


def test_the_maximum_covers_only_the_visible_samples() -> None:
    history = History()
    history.add(NOON, vitals(sessions=1000))
    for second in range(1, 39):
        history.add(NOON + second, vitals(second))
    assert drawn(history, 80, 24)[4] == "sessions                   20         20  " + "▇" * 38


def test_a_frame_without_unicode_is_ascii(history: History) -> None:
    text = "\n".join(drawn(history, 80, 24, ASCII_GLYPHS))
    assert text.isascii()
    assert "vx v\n" in text
    assert "___ #\n" in text


def test_states_other_than_healthy_and_takeovers_have_colours(history: History) -> None:
    history.add(NOON + 6, vitals(6, generation=5, pid=4400, state="draining", takeovers=[]))
    lines = drawn(history, 80, 24, colour="standard")
    assert "\x1b[1;33mdraining\x1b[0m" in lines[0]
    assert "\x1b[1;36m▼\x1b[0m" in lines[3]
    assert "\x1b[1;31m✗\x1b[0m" in lines[3]
    assert "\x1b[1;36m▇\x1b[0m" in lines[4]


def test_the_live_screen_leaves_the_terminal_as_it_was(history: History) -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    with console.capture() as capture, live_screen("server", console, history) as screen:
        screen.show(history.samples[-1])
    output = capture.get()
    assert output.startswith("\x1b[?1049h")
    assert "packets received" in output
    pictures, _, after = output.partition("\x1b[?25h\x1b[?1049l")
    assert "takeovers" in pictures
    assert any(line.startswith("packets received") for line in after.splitlines()), "the last state stays"
    assert "?1049" not in after


# --- Lines ---


def test_text_lines_of_a_history(history: History) -> None:
    lines = [line for sample in history.samples for line in text_lines(sample)]
    numbers = "received     100 packets/s  100.0 KiB/s  sent     100 packets/s   50.0 KiB/s  dropped"
    assert lines == [
        "22:13:20  generation 3  pid 4242  20 sessions",
        f"22:13:21  generation 3  pid 4242  20 sessions  {numbers} 0/s",
        "22:13:22  taken over: generation 3 -> 4, release 0.1.0, 20 sessions, blackout 0.7 ms",
        f"22:13:22  generation 4  pid 4300  20 sessions  {numbers} 0/s",
        "22:13:23  takeover FAILED, generation 4 still serves: it does not start",
        f"22:13:23  generation 4  pid 4300  20 sessions  {numbers} 0/s",
        "22:13:24  no answer: no process listens",
        "22:13:25  restored from the store: generation 4 -> 5, release 0.1.0, 20 sessions",
        "22:13:25  answers again, 2.0 s after the last answer",
        f"22:13:25  generation 5  pid 4400  20 sessions  {numbers} 10/s",
    ]


def test_a_text_line_names_a_state_other_than_healthy() -> None:
    (line,) = text_lines(History().add(NOON, vitals(state="draining", sessions=1)))
    assert line == "22:13:20  draining, generation 3  pid 4242  1 session"


def test_a_text_line_has_the_reason_of_a_loss(history: History) -> None:
    assert list(text_lines(history.add(NOON + 6, None, "it hangs"))) == ["22:13:26  no answer: it hangs"]
    assert list(text_lines(history.add(NOON + 7, None, "it hangs"))) == []


def test_json_lines_of_a_history(history: History) -> None:
    objects = [json.loads(line) for sample in history.samples for line in json_lines(sample)]
    assert [found["type"] for found in objects] == [
        *("sample", "sample", "takeover", "sample", "takeover", "sample", "lost", "takeover", "back", "sample")
    ]
    assert objects[0]["received_packets_rate"] is objects[0]["drops_rate"] is None
    assert objects[2] == {"type": "takeover", **taken(4, 2)}
    sessionless = {"release": None, "sessions": None, "blackout_ms": None}
    assert objects[4] == {"type": "takeover", **failed(4, 3, "it does not start"), **sessionless}
    assert objects[6] == {"type": "lost", "at_unix": NOON + 4, "reason": None}
    assert objects[8] == {"type": "back", "at_unix": NOON + 5, "away_secs": 2.0}
    assert objects[9] == {
        "type": "sample",
        "at_unix": NOON + 5,
        "state": "healthy",
        "generation": 5,
        "release": "0.1.0",
        "pid": 4400,
        "uptime_secs": 9.0,
        "sessions": 20,
        "peers": 25,
        "received_packets_rate": 100.0,
        "sent_packets_rate": 100.0,
        "received_bytes_rate": 102_400.0,
        "sent_bytes_rate": 51_200.0,
        "drops_rate": 10.0,
    }


@pytest.mark.parametrize(("rate", "expected"), [(0, "0"), (0.26, "0.3"), (9.96, "10.0"), (10, "10"), (1234.5, "1,234")])
def test_small_rates_have_tenths(rate: float, expected: str) -> None:
    assert rate_text(rate) == expected


def test_a_release_that_does_not_fit_is_left_out_of_the_takeovers(history: History) -> None:
    name = "0.1.0-20261128T113850Z-5c3d83a"
    history.takeovers = deque(dataclasses.replace(one, release=name) for one in history.takeovers)
    for width, is_shown in ((80, False), (120, True)):
        lines = drawn(history, width, 24)
        (headings,) = [line for line in lines if line.startswith("takeovers")]
        assert ("release" in headings, "sessions   blackout" in headings or "sessions  blackout" in headings) == (
            is_shown,
            True,
        )
        assert max(map(len, lines)) <= width
        assert not any(line.endswith("…") for line in lines)
        assert any(name in line for line in lines[2:]) == is_shown


def test_json_lines_name_the_installed_release() -> None:
    name = "0.1.0-20261128T113850Z-5c3d83a"
    sample = History().add(NOON, vitals(release="0.1.0", release_folder=f"/opt/oxidize/releases/{name}"))
    assert [json.loads(line)["release"] for line in json_lines(sample)] == [name]
