"""The page of `make bench`: what every benchmark printed, and a plot of each table.

A plot is an SVG of bars: the median, with a line from the lowest figure to the highest. Source: SVG 2.
"""

import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from benchmarks.results import Row

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 960, 300, 90  # pixels
BAR, GAP, HEAD = 16, 10, 56
COLOURS = ("#4263eb", "#0ca678", "#9c36b5", "#e8590c", "#1098ad", "#868e96")

STYLE = """\
<style>
text { font: 12px sans-serif; dominant-baseline: middle }
.group { text-anchor: end }
.title { font-weight: bold }
</style>"""


@dataclass(frozen=True)
class Section:
    """One benchmark: its name, what its module says of itself, what it printed, the rows that it kept, its status."""

    name: str
    about: str
    output: str
    rows: list[Row]
    status: int = 0


def tables(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each table, in the order in which they were kept."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.table, []).append(row)
    return list(found.values())


def plot(rows: Sequence[Row]) -> str:
    """Return the SVG of one table."""
    colours = {server: COLOURS[n % len(COLOURS)] for n, server in enumerate(dict.fromkeys(row.server for row in rows))}
    high = max(max(row.figures) for row in rows) or 1.0
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / high
    parts, y = [], HEAD + GAP
    for group, members in groupby(rows, key=lambda row: row.group):
        drawn = list(members)
        middle = y + BAR * len(drawn) / 2
        parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{middle:.0f}" class="group">{escape(group)}</text>')
        for row in drawn:
            parts += _bar(row, y, scale, colours[row.server])
            y += BAR
        y += GAP
    legend = "".join(
        f'<tspan fill="{colour}" dx="{16 if number else 0}">\N{BLACK SQUARE} {escape(server)}</tspan>'
        for number, (server, colour) in enumerate(colours.items())
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">',
            STYLE,
            f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>',
            f'<text x="8" y="16" class="title">{escape(rows[0].table)}: {escape(rows[0].unit)}</text>',
            f'<text x="8" y="38">{legend}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _bar(row: Row, y: int, scale: float, colour: str) -> list[str]:
    low, high, middle = (LABEL_WIDTH + scale * value for value in (min(row.figures), max(row.figures), row.median))
    line = y + (BAR - 2) / 2
    return [
        f'<rect x="{LABEL_WIDTH}" y="{y}" width="{middle - LABEL_WIDTH:.1f}" height="{BAR - 2}" fill="{colour}"/>',
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{line}" y2="{line}" stroke="#212529"/>',
        f'<text x="{max(high, middle) + 6:.1f}" y="{line}">{row.median:.2f}</text>',
    ]


def machine() -> str:
    """Return what the figures depend on, as one paragraph."""
    return (
        f"Linux {platform.release()} on {platform.machine()}, {len(os.sched_getaffinity(0))} processors; "
        f"{platform.python_implementation()} {platform.python_version()}, cryptography {version('cryptography')}."
    )


def write_page(folder: Path, sections: Sequence[Section], revision: str) -> Path:
    """Write the page and its plots into a folder, and remove the plots that were there; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.svg"):
        stale.unlink()
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on revision {revision}. {machine()}",
        "",
        "Both ends and the load share this machine, so compare rows of one table only.",
        "A bar is the median of the runs; the line over it goes from the lowest to the highest.",
    ]
    for section in sections:
        lines += ["", f"## {section.name.capitalize()}", "", section.about, ""]
        if section.status != 0:
            lines += [f"**This benchmark failed, with status {section.status}; what it found before that:**", ""]
        for number, rows in enumerate(tables(section.rows), 1):
            path = folder / f"{section.name}-{number}.svg"
            path.write_text(plot(rows))
            lines += [f"![{rows[0].table}]({path.name})", ""]
        lines += ["```text", section.output.rstrip(), "```"]
    page = folder / "README.md"
    page.write_text("\n".join(lines) + "\n")
    return page


def first_paragraphs(docstring: str) -> str:
    """Return what a module says of itself, without how it is started."""
    return re.sub(r": `python -m benchmarks[^`]*`[^.\n]*\.", ".", docstring.strip(), count=1)
