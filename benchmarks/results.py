"""Tables of figures: printed row by row, and kept for the page of `make bench`.

A row is the figures of all runs of one server; rows of one group are compared, and the first of them is the base of the
ratios.
"""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = "BENCHMARK_RESULTS"  # the environment's name of the file to which rows are appended, a line of JSON each


@dataclass(frozen=True)
class Row:
    """The figures of one server. more: what else was seen, as text."""

    table: str
    unit: str
    group: str
    server: str
    figures: list[float]
    more: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass
class Table:
    """A table whose figures are of one unit."""

    title: str
    unit: str
    _bases: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        print(f"{self.title}, {self.unit}: median (lowest-highest), ratio to the first", flush=True)

    def add(self, group: str, server: str, figures: Sequence[float], more: str = "") -> None:
        """Print a row, and keep it."""
        row = Row(self.title, self.unit, group, server, list(figures), more)
        base = self._bases.setdefault(group, row.median)
        ratio = f"{row.median / base:5.2f}x" if base else ""
        spread = f"({min(figures):.2f}-{max(figures):.2f})"
        print(f"{group:36} {server:36} {row.median:8.2f} {spread:17} {ratio:6}  {more}".rstrip(), flush=True)
        if path := os.environ.get(RESULTS):
            with Path(path).open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return the rows that were kept in a file."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]
