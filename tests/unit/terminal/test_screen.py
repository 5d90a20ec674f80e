"""Output on a terminal: a live picture, plain lines, and tables."""

import io
import time

import pytest
from rich.console import Console
from rich.text import Text

from oxidize.terminal import screen
from oxidize.terminal.screen import LiveScreen, can_draw, print_line
from oxidize.terminal.table import print_lines, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "environment", "expected"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (io.StringIO(), {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_only_a_capable_terminal_can_be_drawn_on(
    file: io.StringIO, environment: dict[str, str], expected: bool
) -> None:
    assert can_draw(Console(file=file, _environ=environment)) is expected


def test_a_live_screen_redraws_its_view_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def render(view: int) -> Text:
        drawn.append((view, now[0]))
        return Text(str(view))

    with LiveScreen(Console(file=io.StringIO(), force_terminal=True), render) as live:
        live.show(7)
        live.wait(2 * screen.REDRAW_SECS + 0.5)
    assert set(drawn) == {(7, 0.0), (7, screen.REDRAW_SECS), (7, 2 * screen.REDRAW_SECS)}
    assert now[0] == 2 * screen.REDRAW_SECS + 0.5


def test_a_line_is_printed_whole_and_as_it_is() -> None:
    file = io.StringIO()
    print_line(Console(file=file, width=20), "[bold] 12 " + "x" * 40)
    assert file.getvalue() == "[bold] 12 " + "x" * 40 + "\n"


def test_a_table_is_aligned_and_never_cut() -> None:
    file = io.StringIO()
    lines = table(("name", "size", ""), [("a", "1", "[x]"), ("long name " * 3, "1000", "")], right={1})
    print_lines(lines, Console(file=file, width=20))
    assert file.getvalue().splitlines() == [
        "name                            size",
        "a                                  1  [x]",
        "long name long name long name   1000",
    ]


def test_the_last_picture_of_a_full_screen_stays_on_the_terminal() -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=40, height=10, _environ={"TERM": "xterm"})
    with LiveScreen[str](console, Text, is_fullscreen=True) as shown:
        shown.show("first")
        shown.show("last")
    _, left, after = file.getvalue().rpartition("\x1b[?1049l")  # xterm: back from the alternate screen
    assert left
    assert "last" in after
    assert "first" not in after
