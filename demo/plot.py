"""The report: every reply's latency over time with the replacements marked, in one file that needs no network.

Rule: nothing is thinned out or averaged. Every reply is a point, so a gap in the chart is a gap in the replies.
"""

import html
from collections.abc import Sequence
from math import log10
from pathlib import Path
from string import Template

import plotly.graph_objects as go

import oxidize
from demo.verdict import Action, Judged, Tally, Verdict

PAGE = Path(__file__).with_name("report_template.html")
# Readable on the grounds of both colour schemes of the page.
ACTION_COLOURS = {Action.RELOAD: "#4c6ef5", Action.REFUSED: "#c07a10", Action.KILL: "#e03f50"}
# Consecutive colours differ in hue, so that a change of the answering process is visible.
PROCESS_COLOURS = ("#4263eb", "#0ca678", "#9c36b5", "#1098ad", "#5f3dc4", "#2b8a3e", "#1971c2")
_BUTTONS = ["zoom2d", "pan2d", "resetScale2d", "toImage"]
LABELS_IN_FULL_MAX = 8  # with more replacements than this, a label is only the action's name

# Points are drawn by WebGL; a browser without it draws them as SVG, with the same result some seconds later.
_WITHOUT_WEBGL = """
const plot = document.getElementById('{plot_id}');
if (!document.createElement('canvas').getContext('webgl')) Plotly.restyle(plot, {type: 'scatter'});
"""
# The chart has the page's colours, also when the reader's scheme changes.
_COLOURS = """
const scheme = matchMedia('(prefers-color-scheme: dark)');
function recolour() {
  const page = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ['--ink', '--soft', '--line'].map((name) => page.getPropertyValue(name).trim());
  Plotly.relayout('{plot_id}', {'font.color': ink, 'modebar.color': soft, 'modebar.activecolor': ink,
                                'xaxis.gridcolor': line, 'yaxis.gridcolor': line});
}
scheme.addEventListener('change', recolour);
recolour();
"""

CHART_HEIGHT = 560  # without the labels above it
NARROW_PLOT_PIXELS = 560  # of the axis in a window of 800 pixels: labels do not overlap in this or a wider one
LABEL_PIXELS = 130  # width of the longest line of a label, and some space
LABEL_LINE_PIXELS = 16
LABELS_BELOW_PIXELS = 40  # of the top margin: the buttons
AXIS_MARGIN = 1.4  # room below the lowest and above the highest point, as a factor
LATENCY_MIN_MS = 1e-3  # drawn for shorter ones: a logarithm of zero does not exist
_TICKS_MS = [b * 10.0**e for e in range(-2, 5) for b in (1, 2, 5)]
_INK, _SOFT, _LINE = "#16202e", "#5b6b80", "#e3e8ef"
_FONT = 'system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif'


def write_report(path: Path, tally: Tally, verdict: Verdict) -> None:
    """Write the report to `path`; raises OSError if the file cannot be written."""
    origin = _origin(tally)
    chart = figure(tally, verdict).to_html(
        full_html=False,
        include_plotlyjs=True,
        post_script=[_WITHOUT_WEBGL, _COLOURS],
        config={"displaylogo": False, "responsive": True, "modeBarButtons": [_BUTTONS]},
    )
    path.write_text(
        Template(PAGE.read_text("utf-8")).substitute(
            title="A WireGuard server, replaced under traffic",
            badge="passed" if verdict.ok else "failed",
            badge_class="passed" if verdict.ok else "failed",
            lead=html.escape(_lead(tally, verdict)),
            reasons=_reasons(verdict),
            tiles="".join(_tile(name, value, bad) for name, value, bad in _tiles(verdict)),
            points=f"{verdict.replies:,}",
            chart=chart,
            rows="".join(_row(judged, origin) for judged in verdict.replacements),
            version=html.escape(oxidize.__version__),
        ),
        "utf-8",
    )


def figure(tally: Tally, verdict: Verdict) -> go.Figure:
    """Return the chart: one trace per process that answered, and one mark per replacement."""
    origin = _origin(tally)
    chart = go.Figure()
    changes = [j.replacement.serving_at for j in verdict.replacements if j.replacement.serving_at is not None]
    for number, (x, y) in enumerate(_by_process(tally, changes)):
        chart.add_trace(
            go.Scattergl(
                x=[round(at - origin, 5) for at in x],
                y=[round(max(ms, LATENCY_MIN_MS), 4) for ms in y],
                mode="markers",
                name=f"process {number + 1}",
                marker={"size": 3.5, "opacity": 0.45, "color": PROCESS_COLOURS[number % len(PROCESS_COLOURS)]},
                hovertemplate="%{x:.3f} s: %{y:.2f} ms<extra>process " + str(number + 1) + "</extra>",
            )
        )
    in_full = len(verdict.replacements) <= LABELS_IN_FULL_MAX
    labels = [label(judged) if in_full else label(judged)[:1] for judged in verdict.replacements]
    row_pixels = LABEL_LINE_PIXELS * max(map(len, labels), default=0)
    rows = _rows_of_labels([_middle(judged, origin) for judged in verdict.replacements], _span(tally))
    for judged, lines, row in zip(verdict.replacements, labels, rows, strict=True):
        _mark(chart, judged, origin, "<br>".join(lines), row * row_pixels)
    above = LABELS_BELOW_PIXELS + row_pixels * (max(rows, default=0) + 1)
    low = min((ms for _, ms in _latencies(tally)), default=0.1)
    high = verdict.latency_max_ms
    chart.update_layout(
        template="none",
        height=CHART_HEIGHT + above,
        margin={"l": 64, "r": 24, "t": above, "b": 56},
        font={"family": _FONT, "size": 13, "color": _INK},
        legend={"orientation": "h", "y": -0.14, "yanchor": "top", "x": 0, "itemsizing": "constant"},
        hoverlabel={"font": {"family": _FONT}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _SOFT, "activecolor": _INK},
        xaxis={
            "title": {"text": "seconds since the schedule began", "font": {"size": 13}, "standoff": 12},
            "gridcolor": _LINE,
            "zeroline": False,
        },
        yaxis={
            "title": {"text": "latency, ms (logarithmic)", "font": {"size": 13}},
            "type": "log",
            "tickvals": _TICKS_MS,
            "ticktext": [f"{ms:g}" for ms in _TICKS_MS],
            "gridcolor": _LINE,
            "zeroline": False,
            "range": [log10(max(low, LATENCY_MIN_MS) / AXIS_MARGIN), log10(max(high, 1.0) * AXIS_MARGIN)],
        },
    )
    return chart


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


def _mark(chart: go.Figure, judged: Judged, origin: float, text: str, shift_pixels: int) -> None:
    """Mark a replacement: its time, its hand-off, and its label, so far above the chart."""
    replacement = judged.replacement
    colour = ACTION_COLOURS[replacement.action]
    begin, end = replacement.started_at - origin, replacement.ended_at - origin
    chart.add_vrect(x0=begin, x1=end, fillcolor=colour, opacity=0.07, line_width=0, layer="below")
    switched = replacement.ended_at if replacement.serving_at is None else replacement.serving_at
    chart.add_vline(
        x=begin if replacement.action is Action.KILL else switched - origin,
        line={"color": colour, "width": 1.5, "dash": "dot" if replacement.action is Action.REFUSED else "solid"},
    )
    chart.add_annotation(
        x=(begin + end) / 2,
        y=1.01,
        yshift=shift_pixels,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        align="center",
        font={"color": colour, "size": 12},
        text=text,
    )


def label(judged: Judged) -> list[str]:
    """Return the lines of text above a replacement's mark."""
    replacement = judged.replacement
    name = "refused" if replacement.action is Action.REFUSED else replacement.action.value
    lines = [f"<b>{name}</b>" + ("" if replacement.succeeded else " failed")]
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
