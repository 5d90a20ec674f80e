"""Errors, split by whose fault they are.

The rule: a peer's bytes never raise, for the protocol answers them with a `DropReason`. Everything else raises one of
these, and its text names the value, what was expected and the remedy.
"""

from enum import StrEnum


class OxidizeError(Exception):
    """The base of all errors that this project raises on purpose."""


class DecodeError(OxidizeError):
    """Bytes from outside do not have the form that their specification requires."""


class StateError(OxidizeError):
    """This process broke one of its own rules (a bug), or reached one of its own limits."""


class StorageError(StateError):
    """The memory files of the state cannot take a change: a limit is reached, or the kernel refuses."""


class WriterBusyError(StateError):
    """Another process writes the state, and so owns what this one was about to own."""


class SnapshotError(OxidizeError):
    """A predecessor's state cannot be read; the text names the part and the reason."""


class UnreachableError(OxidizeError):
    """A client's server did not answer within the number of attempts that the operator configured."""


class ConfigError(OxidizeError):
    """The operator's configuration cannot be used; `problems` has one complete line for each mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Phase(StrEnum):
    """The step at which a takeover, a query or a reload failed, as in "failed while preparing"."""

    LISTENING = "listening"
    CONNECTING = "connecting"
    QUERYING = "querying"
    # A takeover, in its order
    OFFERING = "offering"
    AWAITING_OFFER = "waiting for the offer"
    RESTORING = "restoring"
    INHERITING = "inheriting"
    AWAITING_COMMIT = "waiting for the commit"
    AWAITING_DEATH = "waiting for the predecessor's end"
    OWNING = "taking ownership"
    # A reload, in its order
    STARTING = "starting the successor"
    PREPARING = "preparing"
    SETTING_MAIN_PID = "setting the main PID"
    TAKING_OVER = "taking over"
    RUNNING_SYSTEMCTL = "running systemctl reload"
    VERIFYING = "verifying the reload"


class TakeoverError(OxidizeError):
    """A takeover ended without a change of owner, or a query without an answer; `phase` is the step that it reached."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(f"failed while {phase}: {reason}")
        self.phase = phase
        self.reason = reason


class DeployError(OxidizeError):
    """A deployment was refused or has failed; the text gives the reason, and the release that serves."""


def reason_of(error: BaseException) -> str:
    """Return an exception as the reason within another error: without a phase, and only a bug with its type's name."""
    if isinstance(error, TakeoverError):
        return error.reason
    return str(error) if isinstance(error, OxidizeError) else f"{type(error).__name__}: {error}"
