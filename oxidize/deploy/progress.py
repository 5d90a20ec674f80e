"""What a deployment tells while it goes on. How that looks is for whoever listens to decide (`deploy.screen`)."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Step(Enum):
    """The steps, in their order; the value is what the operator reads."""

    REPAIR = "repair"
    BUILD = "build"
    CHECK = "configuration"
    REHEARSAL = "rehearsal"
    TRAFFIC = "traffic"
    SWITCH = "switch"
    WATCH = "watch"
    ROLL_BACK = "roll back"
    TIDY = "tidy"


@dataclass(slots=True)
class Done:
    """A step that has ended, and what came of it."""

    step: Step
    ok: bool
    text: str
    seconds: float


class Progress(Protocol):
    """Listens to a deployment."""

    def begin(self, step: Step) -> None:
        """Note that a step has begun."""

    def show(self, text: str) -> None:
        """Note where the step is."""

    def end(self, done: Done) -> None:
        """Note that a step has ended."""

    def note(self, text: str) -> None:
        """Note what the operator should know besides."""


@dataclass(slots=True)
class Recorder:
    """Listens, and remembers what came of it."""

    done: list[Done] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def begin(self, step: Step) -> None:
        """Do nothing."""

    def show(self, text: str) -> None:
        """Do nothing."""

    def end(self, done: Done) -> None:
        """Remember it."""
        self.done.append(done)

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)
