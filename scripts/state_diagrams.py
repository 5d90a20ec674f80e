"""Write the state diagrams of the documentation from the transition tables in the code.

The rule: a diagram is generated, never drawn. This script changes a page only between the markers that name a diagram,
`<!-- generated: predecessor -->` and `<!-- end generated -->`, and a unit test holds the page equal to its output.

Run `make docs` after a change of a table; `--check` only compares.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

from oxidize.protocol import link_machine
from oxidize.protocol.counters import LinkState
from oxidize.takeover import machine
from oxidize.takeover.machine import PredecessorMachine, PredecessorState, SuccessorMachine, SuccessorState

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
END = "<!-- end generated -->"
COLUMNS = 120

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
A = TypeVar("A", bound=Enum)


class Transition(NamedTuple):
    """One entry of a table, by the names of its state, event, actions and next state."""

    before: str
    event: str
    actions: tuple[str, ...]
    after: str


@dataclass(frozen=True)
class Diagram:
    """What is shown of one table.

    theory: paragraphs of the docstring of the table's module, each named by its first word. marked: the states with a
    thick border; mark says what it means.
    """

    name: str
    transitions: tuple[Transition, ...]
    initial: Enum
    module_doc: str | None
    theory: tuple[str, ...]
    marked: tuple[str, ...]
    mark: str


def transitions_of(table: Mapping[tuple[S, E], tuple[S, tuple[A, ...]]]) -> tuple[Transition, ...]:
    """Return the entries of a table, its states in the order of the table and the events of each as they are declared.

    A part of a table may have been made from a set, so its own order says nothing about events.
    """
    states = list(dict.fromkeys(before for before, _ in table))
    events = [event for _, event in table][:1]
    order = list(type(events[0]))
    entries = sorted(table.items(), key=lambda entry: (states.index(entry[0][0]), order.index(entry[0][1])))
    return tuple(
        Transition(before.name, event.name, tuple(action.name for action in actions), after.name)
        for (before, event), (after, actions) in entries
    )


def diagrams() -> Iterator[Diagram]:
    """Yield every diagram of the page."""
    mark = "A thick border marks the states in which this side owns the sockets."
    owning = tuple(state.name for state in PredecessorState if _owns(PredecessorMachine(), state))
    table, initial = transitions_of(machine.PREDECESSOR_TABLE), PredecessorState.LISTENING
    yield Diagram("predecessor", table, initial, machine.__doc__, ("Theory", "Predecessor"), owning, mark)
    owning = tuple(state.name for state in SuccessorState if _owns(SuccessorMachine(), state))
    table = transitions_of(machine.SUCCESSOR_TABLE)
    yield Diagram("successor", table, SuccessorState.CONNECTING, machine.__doc__, ("Successor",), owning, mark)
    mark = "A thick border marks the state in which packets are sent at once."
    table = transitions_of(link_machine.LINK_TABLE)
    yield Diagram("link", table, LinkState.CONNECTING, link_machine.__doc__, ("Theory",), ("CONNECTED",), mark)


def _owns(side: PredecessorMachine | SuccessorMachine, state: Enum) -> bool:
    setattr(side, "state", state)  # noqa: B010 - a state of its own, which the type of a union cannot say
    return side.owns


def render(diagram: Diagram) -> str:
    """Return the Markdown of a diagram: the theory, the picture, and every transition as a table."""
    legend = f"{diagram.mark} An arrow shows the events that lead along it; the table below has their actions."
    return "\n\n".join(
        [
            *_theory(diagram.module_doc or "", diagram.theory),
            f"```mermaid\n{_picture(diagram)}\n```",
            textwrap.fill(legend, COLUMNS),
            f"<details>\n<summary>Every transition of the {diagram.name}</summary>",
            _rows(diagram.transitions),
            "</details>",
        ]
    )


def _theory(module_doc: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the paragraphs that begin with each name and a full stop, without the name; raises ValueError for none."""
    paragraphs = [" ".join(each.split()) for each in module_doc.split("\n\n")]
    for name in names:
        (paragraph,) = (each for each in paragraphs if each.startswith(f"{name}. "))
        yield textwrap.fill(paragraph.removeprefix(f"{name}. "), COLUMNS, break_on_hyphens=False)


def _picture(diagram: Diagram) -> str:
    """Return a state diagram with one arrow for all events that lead from one state to another."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for before, event, _, after in diagram.transitions:
        if after != before:
            arrows.setdefault((before, after), []).append(event)
    left = {before for before, _ in arrows}
    final = dict.fromkeys(after for _, after in arrows if after not in left)
    lines = [
        "stateDiagram-v2",
        f"    [*] --> {diagram.initial.name}",
        *(f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()),
        *(f"    {state} --> [*]" for state in final),
        "    classDef marked stroke-width:4px",
        *(f"    class {state} marked" for state in diagram.marked),
    ]
    return "\n".join(lines)


def _rows(transitions: Iterable[Transition]) -> str:
    """Return a table with one row for all events that do the same in a state."""
    rows: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for before, event, actions, after in transitions:
        rows.setdefault((before, actions, after), []).append(event)
    lines = ["| state | events | actions | next state |", "| --- | --- | --- | --- |"]
    for (before, actions, after), events in rows.items():
        following = after if after != before else "the same"
        lines.append(f"| {before} | {', '.join(events)} | {', '.join(actions) or 'none'} | {following} |")
    return "\n".join(lines)


def update(page: str, diagrams: Iterable[Diagram]) -> str:
    """Return the page with every diagram between its markers; raises ValueError where they are missing."""
    for diagram in diagrams:
        start = f"<!-- generated: {diagram.name} -->"
        before, found, rest = page.partition(f"{start}\n")
        _, ended, after = rest.partition(END)
        if not found or not ended or re.search("<!-- generated", rest.partition(END)[0]):
            raise ValueError(f"the page has no section from {start!r} to {END!r}; expected one: add the two lines")
        page = f"{before}{start}\n\n{render(diagram)}\n\n{END}{after}"
    return page


def main() -> int:
    """Update the page, or with --check return 1 where it is out of date."""
    parser = argparse.ArgumentParser(description="Write the state diagrams of docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="compare the page and change nothing")
    is_check = parser.parse_args().check
    page = PAGE.read_text("utf-8")
    updated = update(page, diagrams())
    if is_check and updated != page:
        print(f"{PAGE} is out of date: run make docs", file=sys.stderr)
        return 1
    if not is_check:
        PAGE.write_text(updated, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
