"""The state diagrams of docs/architecture.md are what scripts/state_diagrams.py makes of the transition tables."""

import re
from enum import Enum, auto

import pytest

from oxidize.takeover.machine import PREDECESSOR_TABLE, SUCCESSOR_TABLE
from scripts.state_diagrams import PAGE, Diagram, diagrams, render, transitions_of, update

ALL = list(diagrams())
each_diagram = pytest.mark.parametrize("diagram", ALL, ids=lambda diagram: diagram.name)


class Light(Enum):
    GREEN = auto()
    RED = auto()
    BROKEN = auto()


class Event(Enum):
    TIME = auto()
    BUTTON = auto()
    FAULT = auto()


class Do(Enum):
    SWITCH = auto()
    RING = auto()


TABLE = {
    (Light.GREEN, Event.FAULT): (Light.BROKEN, ()),
    (Light.GREEN, Event.BUTTON): (Light.RED, (Do.SWITCH, Do.RING)),
    (Light.GREEN, Event.TIME): (Light.RED, (Do.SWITCH,)),
    (Light.RED, Event.TIME): (Light.GREEN, (Do.SWITCH,)),
    (Light.RED, Event.BUTTON): (Light.RED, ()),
}
LIGHT = Diagram(
    "light",
    transitions_of(TABLE),
    Light.GREEN,
    "A light.\n\nTheory. It changes\nwith time.\n",
    ("Theory",),
    ("RED",),
    "A thick border marks a light that stops traffic.",
)
RENDERED = """\
It changes with time.

```mermaid
stateDiagram-v2
    [*] --> GREEN
    GREEN --> RED: TIME, BUTTON
    GREEN --> BROKEN: FAULT
    RED --> GREEN: TIME
    BROKEN --> [*]
    classDef marked stroke-width:4px
    class RED marked
```

A thick border marks a light that stops traffic. An arrow shows the events that lead along it; the table below has their
actions.

<details>
<summary>Every transition of the light</summary>

| state | events | actions | next state |
| --- | --- | --- | --- |
| GREEN | TIME | SWITCH | RED |
| GREEN | BUTTON | SWITCH, RING | RED |
| GREEN | FAULT | none | BROKEN |
| RED | TIME | SWITCH | GREEN |
| RED | BUTTON | none | the same |

</details>"""


def test_the_page_shows_the_tables_of_the_code() -> None:
    page = PAGE.read_text("utf-8")
    assert update(page, ALL) == page, "out of date: run make docs"


def test_a_diagram_is_rendered_from_its_table() -> None:
    assert render(LIGHT) == RENDERED


def test_only_the_section_of_a_diagram_is_written() -> None:
    page = "before\n<!-- generated: light -->\nold\n<!-- end generated -->\nafter\n"
    updated = update(page, [LIGHT])
    assert updated == f"before\n<!-- generated: light -->\n\n{RENDERED}\n\n<!-- end generated -->\nafter\n"
    assert update(updated, [LIGHT]) == updated


@pytest.mark.parametrize(
    "page",
    [
        "nothing",
        "<!-- generated: light -->\n",
        "<!-- generated: light -->\n<!-- generated: other -->\n<!-- end generated -->\n",
    ],
)
def test_a_page_without_the_markers_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="no section"):
        update(page, [LIGHT])


@each_diagram
def test_every_transition_is_in_the_table_of_its_diagram(diagram: Diagram) -> None:
    rows = [line.split(" | ") for line in render(diagram).splitlines() if re.match(r"\| [A-Z_]+ \|", line)]
    shown = sum(len(events.split(", ")) for _, events, _, _ in rows)
    assert shown == len(diagram.transitions)


def test_both_sides_of_a_takeover_are_shown_whole() -> None:
    shown = {diagram.name: len(diagram.transitions) for diagram in ALL}
    assert shown["predecessor"] == len(PREDECESSOR_TABLE)
    assert shown["successor"] == len(SUCCESSOR_TABLE)


@each_diagram
def test_a_diagram_is_small_enough_to_be_read(diagram: Diagram) -> None:
    arrows = re.findall(r"^    \w+ --> \w+:", render(diagram), re.MULTILINE)
    assert len(arrows) <= 24
