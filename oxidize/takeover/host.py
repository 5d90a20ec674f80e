"""What a server must be able to do so that it can be taken over, and what changes hands.

The rule: the takeover moves named descriptors and maps that it does not look into. What they mean is the host's.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.takeover.messages import Hello


@dataclass(frozen=True, slots=True)
class NamedFd:
    """A descriptor that changes hands: what it is called, what it is, and what must be known to use it."""

    name: str
    fd: int
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """Everything that a successor needs. `release` and `pid` are the predecessor's, filled in on the way."""

    generation: int
    fds: tuple[NamedFd, ...]
    state: dict[str, Any]
    release: str = ""
    pid: int = 0

    def find(self, name: str) -> NamedFd:
        """Return the descriptor of that name; raises TakeoverError where the offer has none."""
        return _find(name, self.fds, Phase.RESTORING, "the offer")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query came to: some bytes and, for whoever has a use for them, named descriptors."""

    content: bytes
    fds: tuple[NamedFd, ...] = ()

    def find(self, name: str) -> NamedFd:
        """Return the descriptor of that name; raises TakeoverError where the answer has none."""
        return _find(name, self.fds, Phase.QUERYING, "the answer")


class TakeoverHost(Protocol):
    """The server that is taken over. Nothing here may block; what raises counts as a failure of that step."""

    def offer(self, hello: Hello) -> Offer:
        """Return everything, and from now on only append to the state; raise to refuse, with the reason.

        The descriptors stay the host's: the successor gets copies. Should sending them fail, `offer_withdrawn` follows.
        """

    def offer_withdrawn(self, reason: str) -> None:
        """Note that the successor will never own. This host kept serving; it may rewrite its state again."""
        return  # by default nothing

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        """Stop: finish the batch, read nothing more, append the last of the state; return what COMMIT tells.

        `report` is what the successor said with READY. Where this raises, `thaw` follows at once.
        """

    def thaw(self, reason: str) -> None:
        """Serve again after a freeze, from the state as it is now: a successor may have owned it, and it is dead.

        What this raises is not caught: a process that cannot serve must end, so that somebody else can.
        """

    def finish(self, taken: dict[str, Any]) -> None:
        """Exit, for the successor owns; `taken` is what it said with TAKEN. Must not thaw, read or send any more."""

    def answer(self, query: str) -> Answer:
        """Answer a query, at any time, also while frozen; raise to refuse, with the reason.

        The descriptors stay the host's: the process that asks gets copies. A host without this method refuses all.
        """
        raise OxidizeError(f"query {query!r}: expected none, for this server answers no queries")


def _find(name: str, fds: tuple[NamedFd, ...], phase: Phase, whose: str) -> NamedFd:
    for each in fds:
        if each.name == name:
            return each
    raise TakeoverError(phase, f"{whose} has no {name!r}; it has {[each.name for each in fds]}")


def reason_of(error: BaseException) -> str:
    """Return an exception as a reason for the other side: our own errors speak for themselves."""
    return str(error) if isinstance(error, OxidizeError) else f"{type(error).__name__}: {error}"
