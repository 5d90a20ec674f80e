"""Tables of aligned text that are never cut: a terminal wraps a line that is too long."""

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice

from rich.console import Console
from rich.text import Text

from oxidize.text import one_line, printable

LINES_AT_ONCE = 256  # that are printed: each call of rich costs as much as ten lines, and a server has 100,000 peers


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Set[int] = frozenset()) -> Iterator[Text]:
    """Yield the lines of a table, headings first. right: numbers of the columns that are aligned to the right."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for number, row in enumerate([headings, *rows]):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield Text("  ".join(cells).rstrip(), style="" if number else "bold")


def print_lines(lines: Iterable[Text], console: Console | None = None) -> None:
    """Print lines as they are: uncut, without markup or highlighting. console: None for standard output."""
    console = console or Console(highlight=False)
    shown = (
        line if line.plain.isprintable() else Text(printable(line.plain, None), style=line.style) for line in lines
    )
    while some := list(islice(shown, LINES_AT_ONCE)):
        console.print(Text("\n").join(some), soft_wrap=True)
