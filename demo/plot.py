"""The report: every reply's latency over time with the replacements marked, in one file that needs no network.

Rule: nothing is thinned out or averaged. Every reply is a point, so a gap in the chart is a gap in the replies. The
chart is SVG whose colours are the page's; a point is a line of length zero with round ends. Source: SVG 2, sections
8.12 (vector-effect) and 9.3 (path data).
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from string import Template

import oxidize
from demo.verdict import Action, Judged, Tally, Verdict

PAGE = Path(__file__).with_name("report_template.html")
# Readable on the grounds of both colour schemes of the page.
ACTION_COLOURS = {Action.RELOAD: "#4c6ef5", Action.REFUSED: "#c07a10", Action.KILL: "#e03f50"}
# Consecutive colours differ in hue, so that a change of the answering process is visible.
PROCESS_COLOURS = ("#4263eb", "#0ca678", "#9c36b5", "#1098ad", "#5f3dc4", "#2b8a3e", "#1971c2")
LABELS_IN_FULL_MAX = 8  # with more replacements than this, a label is only the action's name

CHART_HEIGHT = 460  # pixels, without the labels around it
NARROW_PLOT_PIXELS = 560  # of the axis in a window of 800 pixels: labels do not overlap in this or a wider one
LABEL_PIXELS = 130  # width of the longest line of a label, and some space
LABEL_LINE_PIXELS = 16
STEPS_PER_PIXEL = 10  # of the heights of points
STEPS_PER_SEC = 1000  # of their times: less than a tenth of a pixel in a run of 20 s
AXIS_MARGIN = 1.4  # room below the lowest and above the highest point, as a factor
LATENCY_MIN_MS = 1e-3  # drawn for shorter ones: a logarithm of zero does not exist
TICKS_MAX = 12  # on the axis of time
_TICKS = [b * 10.0**e for e in range(-3, 6) for b in (1, 2, 5)]


def write_report(path: Path, tally: Tally, verdict: Verdict) -> None:
    """Write the report to `path`; raises OSError if the file cannot be written."""
    origin = _origin(tally)
    path.write_text(
        Template(PAGE.read_text("utf-8")).substitute(
            title="A WireGuard server, replaced under traffic",
            badge="passed" if verdict.ok else "failed",
            badge_class="passed" if verdict.ok else "failed",
            lead=html.escape(_lead(tally, verdict)),
            reasons=_reasons(verdict),
            tiles="".join(_tile(name, value, bad) for name, value, bad in _tiles(verdict)),
            points=f"{verdict.replies:,}",
            chart=chart(tally, verdict),
            rows="".join(_row(judged, origin) for judged in verdict.replacements),
            version=html.escape(oxidize.__version__),
        ),
        "utf-8",
    )


@dataclass(frozen=True, slots=True)
class _Axes:
    """The ranges of the chart. seconds: from 0; low_ms, high_ms: on a logarithmic scale."""

    seconds: float
    low_ms: float
    high_ms: float

    def across(self, seconds: float) -> str:
        """Return the horizontal position of a time."""
        return f"{seconds / self.seconds:.3%}"

    def down(self, ms: float) -> float:
        """Return the vertical position of a latency, pixels from above."""
        part = log10(max(ms, LATENCY_MIN_MS) / self.low_ms) / log10(self.high_ms / self.low_ms)
        return CHART_HEIGHT * (1 - part)


def chart(tally: Tally, verdict: Verdict) -> str:
    """Return the chart as SVG: one path for each process that answered, and one mark for each replacement."""
    origin = _origin(tally)
    low = min((ms for _, ms in _latencies(tally)), default=0.1)
    high = max(verdict.latency_max_ms, 1.0)
    axes = _Axes(_span(tally), max(low, LATENCY_MIN_MS) / AXIS_MARGIN, high * AXIS_MARGIN)
    changes = [j.replacement.serving_at for j in verdict.replacements if j.replacement.serving_at is not None]
    processes = _by_process(tally, changes)
    in_full = len(verdict.replacements) <= LABELS_IN_FULL_MAX
    labels = [label(judged) if in_full else label(judged)[:1] for judged in verdict.replacements]
    row_pixels = LABEL_LINE_PIXELS * max(map(len, labels), default=0)
    rows = _rows_of_labels([_middle(judged, origin) for judged in verdict.replacements], axes.seconds)
    marks = [
        _mark(judged, origin, axes, lines, row * row_pixels)
        for judged, lines, row in zip(verdict.replacements, labels, rows, strict=True)
    ]
    above = row_pixels * (max(rows, default=0) + 1)
    paths = [
        f'<path stroke="{_colour(number)}" d="{_points(times, latencies, origin, axes)}"/>'
        for number, (times, latencies) in enumerate(processes)
    ]
    box = f"0 0 {axes.seconds * STEPS_PER_SEC:.0f} {CHART_HEIGHT * STEPS_PER_PIXEL}"
    legend = [
        f'<span><i style="background:{_colour(number)}"></i>process {number + 1}</span>'
        for number in range(len(processes))
    ]
    return "\n".join(
        [
            f'<svg class="chart" style="margin-top:{above}px" height="{CHART_HEIGHT}">',
            *_grid(axes),
            f'<svg class="points" viewBox="{box}" preserveAspectRatio="none" width="100%" height="100%">',
            *paths,
            "</svg>",
            *marks,
            "</svg>",
            f'<p class="legend">{"".join(legend)}</p>',
        ]
    )


def _colour(process: int) -> str:
    return PROCESS_COLOURS[process % len(PROCESS_COLOURS)]


def _points(times: Iterable[float], latencies: Iterable[float], origin: float, axes: _Axes) -> str:
    """Return the path data of points, each relative to the one before."""
    parts = []
    last_x = last_y = 0
    for at, ms in zip(times, latencies, strict=True):
        x, y = round((at - origin) * STEPS_PER_SEC), round(axes.down(ms) * STEPS_PER_PIXEL)
        parts.append(f"m{x - last_x} {y - last_y}h0")
        last_x, last_y = x, y
    return "".join(parts)


def _grid(axes: _Axes) -> list[str]:
    """Return the lines and texts of both axes."""
    step = next((tick for tick in _TICKS if axes.seconds / tick <= TICKS_MAX), axes.seconds)
    bottom = CHART_HEIGHT
    lines = []
    for number in range(int(axes.seconds / step) + 1):
        x = axes.across(number * step)
        lines.append(f'<line x1="{x}" x2="{x}" y2="{bottom}"/><text x="{x}" y="{bottom + 20}">{number * step:g}</text>')
    for ms in _TICKS:
        if axes.low_ms <= ms <= axes.high_ms:
            y = f"{axes.down(ms):.1f}"
            lines.append(f'<line x2="100%" y1="{y}" y2="{y}"/><text class="ms" x="-8" y="{y}">{ms:g}</text>')
    return [
        '<g class="grid">',
        *lines,
        f'<text x="50%" y="{bottom + 42}">seconds since the schedule began</text>',
        f'<text transform="translate(-50 {bottom // 2}) rotate(-90)">latency, ms (logarithmic)</text>',
        "</g>",
    ]


def _origin(tally: Tally) -> float:
    return tally.started_at if tally.started_at is not None else min(tally.sent_at, default=0.0)


def _latencies(tally: Tally) -> list[tuple[float, float]]:
    """Return each reply's time of arrival and latency in ms, ordered by time."""
    return sorted((r, (r - s) * 1e3) for r, s in zip(tally.received_at, tally.sent_at, strict=True))


def _by_process(tally: Tally, changes: Sequence[float]) -> list[tuple[list[float], list[float]]]:
    """Split the replies at the times in `changes`, at which another process took over."""
    parts: list[tuple[list[float], list[float]]] = [([], [])]
    pending = sorted(changes)
    for at, ms in _latencies(tally):
        while pending and at >= pending[0]:
            pending.pop(0)
            parts.append(([], []))
        parts[-1][0].append(at)
        parts[-1][1].append(ms)
    return parts


def _span(tally: Tally) -> float:
    """Return the seconds that the axis shows."""
    return max(max(tally.received_at, default=0.0) - _origin(tally), 1.0)


def _middle(judged: Judged, origin: float) -> float:
    return (judged.replacement.started_at + judged.replacement.ended_at) / 2 - origin


def _rows_of_labels(centres: Sequence[float], span: float) -> list[int]:
    """Return the row of each label, 0 for the lowest: the first in which it does not overlap the ones before it."""
    width = LABEL_PIXELS * span / NARROW_PLOT_PIXELS
    ends: list[float] = []
    rows = []
    for centre in centres:
        free = (row for row, end in enumerate(ends) if end <= centre - width / 2)
        row = next(free, len(ends))
        ends[row : row + 1] = [centre + width / 2]
        rows.append(row)
    return rows


def _mark(judged: Judged, origin: float, axes: _Axes, lines: Sequence[str], shift_pixels: int) -> str:
    """Return the mark of a replacement: its time, its hand-off, and its label, so far above the chart."""
    replacement = judged.replacement
    begin, end = replacement.started_at - origin, replacement.ended_at - origin
    switched = replacement.ended_at if replacement.serving_at is None else replacement.serving_at
    x = axes.across(begin if replacement.action is Action.KILL else switched - origin)
    dash = ' stroke-dasharray="2 4"' if replacement.action is Action.REFUSED else ""
    middle = axes.across((begin + end) / 2)
    first = -shift_pixels - LABEL_LINE_PIXELS * len(lines) + LABEL_LINE_PIXELS // 2
    text = "".join(
        f'<tspan x="{middle}" y="{first + LABEL_LINE_PIXELS * number}">{line}</tspan>'
        for number, line in enumerate(lines)
    )
    return (
        f'<g class="mark" style="color:{ACTION_COLOURS[replacement.action]}">'
        f'<rect x="{axes.across(begin)}" width="{axes.across(end - begin)}" height="100%"/>'
        f'<line x1="{x}" x2="{x}" y2="100%"{dash}/><text>{text}</text></g>'
    )


def label(judged: Judged) -> list[str]:
    """Return the lines of text above a replacement's mark."""
    replacement = judged.replacement
    name = "refused" if replacement.action is Action.REFUSED else replacement.action.value
    lines = [name + ("" if replacement.succeeded else " failed")]
    if replacement.blackout_ms is not None:
        lines.append(f"blackout {replacement.blackout_ms:.1f} ms")
    lines.append(f"silence {judged.gap_ms:.1f} ms")
    if replacement.action is Action.KILL:
        lines.append(f"{judged.lost} lost in its batch")
    return lines


def _lead(tally: Tally, verdict: Verdict) -> str:
    seconds = (tally.finished_at or 0.0) - _origin(tally)
    return (
        f"{verdict.clients} clients, {verdict.sent:,} numbered echo requests in {max(seconds, 0.0):.0f} s; "
        f"median latency {verdict.latency_median_ms:.2f} ms, longest {verdict.latency_max_ms:.1f} ms."
    )


def _tiles(verdict: Verdict) -> list[tuple[str, str, bool]]:
    """Return name, value and whether the value fails the run, for each tile."""
    beyond = verdict.lost - verdict.lost_in_hand
    return [
        ("requests sent", f"{verdict.sent:,}", False),
        ("replies", f"{verdict.replies:,}", not verdict.replies),
        ("lost", f"{beyond:,}", beyond > 0),
        ("lost with the kill", f"{verdict.lost_in_hand:,}", False),
        ("duplicated", f"{verdict.duplicated:,}", verdict.duplicated > 0),
        ("reordered", f"{verdict.reordered:,}", False),
        ("handshakes", f"{verdict.handshakes:,}", verdict.handshakes < verdict.clients),
        ("sessions lost", f"{verdict.sessions_lost:,}", verdict.sessions_lost > 0),
    ]


def _tile(name: str, value: str, bad: bool) -> str:
    return f'<div class="tile{" bad" if bad else ""}"><b>{value}</b><span>{name}</span></div>'


def _reasons(verdict: Verdict) -> str:
    if verdict.ok:
        return ""
    return '<ul class="reasons">' + "".join(f"<li>{html.escape(reason)}</li>" for reason in verdict.reasons) + "</ul>"


def _row(judged: Judged, origin: float) -> str:
    replacement = judged.replacement
    blackout = "none" if replacement.blackout_ms is None else f"{replacement.blackout_ms:.1f} ms"
    cells = [
        f"{replacement.started_at - origin:.1f} s",
        f"{(replacement.ended_at - replacement.started_at) * 1e3:.0f} ms",
        blackout,
        f"{judged.gap_ms:.1f} ms",
        f"{judged.lost}",
    ]
    name = replacement.action.value + ("" if replacement.succeeded else " (failed)")
    return (
        f'<tr><td class="what"><i style="background:{ACTION_COLOURS[replacement.action]}"></i>{name}</td>'
        + "".join(f'<td class="n">{cell}</td>' for cell in cells)
        + f'<td class="detail">{html.escape(replacement.detail)}</td></tr>'
    )
