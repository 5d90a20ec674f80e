"""The report and the screens show every point and every text; the report needs no other file."""

import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from demo.__main__ import _remedy
from demo.plot import (
    ACTION_COLOURS,
    CHART_HEIGHT,
    LABEL_PIXELS,
    NARROW_PLOT_PIXELS,
    PROCESS_COLOURS,
    STEPS_PER_PIXEL,
    STEPS_PER_SEC,
    _rows_of_labels,
    chart,
    label,
    write_report,
)
from demo.records import Kind, Record
from demo.screen import View, _live_table, open_screen, print_verdict
from demo.verdict import Action, Judged, Replacement, Tally, Verdict, judge
from oxidize.net.udp import SOCKET_BUFFER_BYTES

START = 500.0
REPLIES = 2000
BYTES_PER_REPLY_MAX = 12
PAGE_BYTES_MAX = 16_000
REASON = "refused: <b>this & that</b>"
REPLACEMENTS = (
    Replacement(Action.RELOAD, START + 2, START + 2.4, True, 3.125, "20 sessions moved", START + 2.3),
    Replacement(Action.REFUSED, START + 4, START + 4.3, True, None, REASON),
    Replacement(Action.KILL, START + 6, START + 6.2, True, None, "started again", START + 6.2),
)


@pytest.fixture(scope="module")
def tally() -> Tally:
    tally = Tally()
    tally.add([Record(Kind.STARTED, 0, 0, START), Record(Kind.HANDSHAKE, 0, 1, START)])
    for i in range(REPLIES):
        sent_at = START + i * 10 / REPLIES
        tally.add([Record(Kind.SENT, 0, i, sent_at), Record(Kind.REPLY, 0, i, sent_at + 0.0005, sent_at)])
    tally.add([Record(Kind.FINISHED, 0, 0, START + 10)])
    return tally


@pytest.fixture(scope="module")
def verdict(tally: Tally) -> Verdict:
    return judge(tally, REPLACEMENTS, 1, 3)


def drawn(svg: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the colour of each path with its points: seconds, and pixels from above."""
    paths = []
    for colour, data in re.findall(r'<path stroke="(#\w+)" d="([^"]*)"/>', svg):
        assert re.fullmatch(r"(m-?\d+ -?\d+h0)*", data)
        x = y = 0
        points = []
        for across, down in re.findall(r"m(-?\d+) (-?\d+)h0", data):
            x, y = x + int(across), y + int(down)
            points.append((x / STEPS_PER_SEC, y / STEPS_PER_PIXEL))
        paths.append((colour, points))
    return paths


def test_every_reply_is_drawn_once_in_the_colour_of_its_process(tally: Tally, verdict: Verdict) -> None:
    svg = chart(tally, verdict)
    paths = drawn(svg)
    assert sum(len(points) for _, points in paths) == REPLIES
    ends = [[round(points[0][0], 1), round(points[-1][0], 1)] for _, points in paths]
    assert ends == [[0.0, 2.3], [2.3, 6.2], [6.2, 10.0]]
    assert len({colour for colour, _ in paths}) == 3
    (height,) = {y for _, points in paths for _, y in points}
    (line,) = re.findall(r'y1="([\d.]+)" y2="[\d.]+"/><text class="ms" x="-8" y="[\d.]+">0.5<', svg)
    assert height == pytest.approx(float(line), abs=0.1)
    (seconds,) = re.findall(rf'viewBox="0 0 (\d+) {CHART_HEIGHT * STEPS_PER_PIXEL}"', svg)
    assert int(seconds) / STEPS_PER_SEC == pytest.approx(max(x for _, points in paths for x, _ in points), abs=0.001)


def test_the_chart_marks_the_replacements(tally: Tally, verdict: Verdict) -> None:
    marks = re.findall(r'<g class="mark".*?</g>', chart(tally, verdict))
    lines = [re.findall(r'<line x1="([\d.]+)%" x2="\1%" y2="100%"( stroke-dasharray)?', mark) for mark in marks]
    assert [(round(float(percent) / 10, 1), bool(dash)) for ((percent, dash),) in lines] == [
        (2.3, False),
        (4.3, True),
        (6.0, False),
    ]
    assert [re.findall(r"<tspan[^>]*>([^<]*)<", mark)[0] for mark in marks] == ["reload", "refused", "kill -9"]


def test_a_label_shows_blackout_silence_and_loss() -> None:
    assert label(Judged(REPLACEMENTS[0], 4.25, 0)) == ["reload", "blackout 3.1 ms", "silence 4.2 ms"]
    assert label(Judged(REPLACEMENTS[2], 200.0, 7)) == ["kill -9", "silence 200.0 ms", "7 lost in its batch"]


def test_the_report_is_one_file_that_needs_no_network(tmp_path: Path, tally: Tally, verdict: Verdict) -> None:
    path = tmp_path / "report.html"
    write_report(path, tally, verdict)
    page = path.read_text("utf-8")
    assert not re.search(r"<(?:script|link|img|iframe)|(?:src|href)\s*=|url\(|@import", page)
    assert len(page) <= REPLIES * BYTES_PER_REPLY_MAX + PAGE_BYTES_MAX
    assert "this &amp; that" in page
    assert REASON not in page
    assert ">passed<" in page
    assert "$" not in page, "every place in the template is filled"


def test_a_failed_report_gives_its_reasons(tmp_path: Path) -> None:
    empty = Tally()
    write_report(tmp_path / "report.html", empty, judge(empty, [], 2, 1))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert ">failed<" in page
    assert "<li>no reply arrived: expected one for each request</li>" in page


def view(elapsed: float, events: tuple[tuple[float, Judged], ...] = (), doing: str = "") -> View:
    return View(elapsed, 20.0, 2000.4, 1999.6, 4000, 3999, 1, 0, 20, 3, 4711, doing, events)


EVENT = (2.0, Judged(REPLACEMENTS[0], 4.8, 0))


def test_plain_lines_appear_once_a_second_and_once_per_action() -> None:
    out = io.StringIO()
    with open_screen(Console(file=out, width=132), table=True) as show:
        for elapsed in (0.0, 0.5, 1.1):
            show(view(elapsed))
        show(view(1.2, (EVENT,)))
        show(view(1.3, (EVENT,)))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert len(lines) == 3
    assert lines[1] == "1.1 s 2,000 sent/s 2,000 replies/s 1 lost generation 3 pid 4711"
    assert lines[2] == "1.2 s at 2.0 s: reload, blackout 3.1 ms, longest silence 4.8 ms: 20 sessions moved"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_table_shows_the_current_action() -> None:
    out = Terminal()
    console = Console(file=out, width=132, _environ={"TERM": "xterm"})
    with open_screen(console, table=False) as show:
        show(view(3.0))
    assert "lost so far" not in out.getvalue()
    with open_screen(console, table=True) as show:
        show(view(3.0, (EVENT,), doing="kill -9"))
    for text in ("lost so far", "4,000", "4711", "20 sessions moved", "kill -9 ..."):
        assert text in out.getvalue()


def test_the_printed_verdict_is_complete(tally: Tally, verdict: Verdict) -> None:
    out = io.StringIO()
    print_verdict(Console(file=out, width=132), verdict, START)
    text = out.getvalue()
    assert REASON in text, "what a command printed is no markup"
    assert "passed" in text
    assert f"{REPLIES:,}" in text


@pytest.mark.parametrize("width", [60, 80])
def test_no_result_is_cut_in_a_narrow_terminal(width: int) -> None:
    slow = Replacement(Action.KILL, START + 16, START + 18.2, True, 2137.5, "started again", START + 18.2)
    out = io.StringIO()
    console = Console(file=out, width=width)
    print_verdict(console, judge(Tally(), [*REPLACEMENTS, slow], 1, 4), START)
    lines = out.getvalue().splitlines()
    assert f"4.0 s refused release: {REASON}" in lines
    assert max(map(len, lines)) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in out.getvalue()
    assert any(line.split()[:5] == ["kill", "-9", "16.0", "s", "2137.5"] for line in lines)


def test_the_reasons_of_a_failure_are_printed() -> None:
    out = io.StringIO()
    print_verdict(Console(file=out, width=132), judge(Tally(), [], 2, 1), START)
    assert "no reply arrived" in out.getvalue()
    assert "passed" not in out.getvalue()


@pytest.mark.parametrize(
    ("granted", "remedy"), [(425_984, "rmem_max=8388608"), (2 * SOCKET_BUFFER_BYTES, "busy with other work")]
)
def test_a_full_receive_buffer_is_raised_only_where_it_can_be(granted: int, remedy: str) -> None:
    assert remedy in _remedy(granted)


@pytest.mark.parametrize("gap", [0.1, 1.0, 2.5, 4.0])
def test_labels_do_not_overlap_in_a_window_of_800_pixels(gap: float) -> None:
    centres = [1 + gap * number for number in range(8)]
    rows = _rows_of_labels(centres, 20.0)
    pixels = [centre * NARROW_PLOT_PIXELS / 20.0 for centre in centres]
    for row in set(rows):
        placed = [at for at, its_row in zip(pixels, rows, strict=True) if its_row == row]
        assert all(later - earlier >= LABEL_PIXELS for earlier, later in pairwise(placed))
    assert max(rows) <= LABEL_PIXELS / (gap * NARROW_PLOT_PIXELS / 20.0)


def test_the_page_and_its_chart_follow_the_colour_scheme(tmp_path: Path, tally: Tally, verdict: Verdict) -> None:
    path = tmp_path / "report.html"
    write_report(path, tally, verdict)
    page = path.read_text("utf-8")
    names = set(re.findall(r"var\((--\w+)\)", page)) | {"--ink", "--soft", "--line"}
    dark = page[page.index("prefers-color-scheme: dark") :].partition("</style>")[0]
    assert names <= set(re.findall(r"(--\w+):", dark))
    colours = set(re.findall(r'(?:stroke="|(?:background|color):)(#\w+)', chart(tally, verdict)))
    assert colours <= {*PROCESS_COLOURS, *ACTION_COLOURS.values()}, "all others are the page's"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_table_names_every_counter_in_full(width: int, verdict: Verdict) -> None:
    view = View(12.5, 20.0, 2000.0, 1999.0, 25_000, 24_990, 1, 2, 20, 4, 43_210, "reload", events=())
    out = io.StringIO()
    Console(file=out, width=width).print(_live_table(view, width))
    shown = out.getvalue()
    assert "…" not in shown
    for name in (
        "time",
        "sent/s",
        "replies/s",
        "lost so far",
        "duplicated",
        "handshakes",
        "generation",
        "pid",
        "43210",
    ):
        assert name in shown
    assert max(map(len, shown.splitlines())) <= width
