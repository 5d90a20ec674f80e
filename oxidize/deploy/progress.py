"""The progress of a deployment: the steps that have ended, the present one, and notes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from oxidize.text import printable


class Step(Enum):
    """The steps, in their order. The value is shown to the operator and stored in the history."""

    REPAIR = "repair"
    BUILD = "build"
    UNPACK = "unpack"
    CHECK = "configuration"
    REHEARSAL = "rehearsal"
    TRAFFIC = "traffic"
    SWITCH = "switch"
    WATCH = "watch"
    ROLL_BACK = "roll back"
    TIDY = "tidy"


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a step has ended."""

    step: Step
    ok: bool
    text: str
    seconds: float

    @property
    def first_line(self) -> str:
        """The first line of the text; the whole text is printed at the end of the deployment."""
        first, *more = printable(self.text).splitlines() or [""]
        return f"{first} ..." if more else first


@dataclass(slots=True)
class Progress:
    """What a deployment has done so far. on_event: called with a line of text for each event (`deploy.screen`)."""

    on_event: Callable[[str], None] = lambda _line: None
    results: list[StepResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    step: Step | None = None
    detail: str = ""  # of the present step

    def begin(self, step: Step) -> None:
        """Record that a step has begun."""
        self.step, self.detail = step, ""
        self.on_event(f"{step.value} ...")

    def show(self, detail: str) -> None:
        """Record how far the present step is."""
        self.detail = printable(detail)

    def end(self, result: StepResult) -> None:
        """Record how a step has ended."""
        self.step = None
        self.results.append(result)
        outcome = "ok" if result.ok else "FAILED"
        self.on_event(f"{result.step.value} {outcome}, {result.seconds:.1f} s: {result.first_line}")

    def note(self, text: str) -> None:
        """Record what else the operator should know."""
        text = printable(text)
        self.notes.append(text)
        self.on_event(f"note: {text}")
