"""What a server implements so that it can be taken over, and what changes hands.

The rule: a takeover moves named descriptors and maps without reading them. Their meaning is the host's.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from oxidize.errors import OxidizeError, Phase, TakeoverError

if TYPE_CHECKING:
    from oxidize.takeover.messages import Hello


class NamedFd(NamedTuple):
    """A descriptor that changes hands: its name, what it is, and what must be known to use it."""

    name: str
    fd: int
    kind: str
    options: Mapping[str, Any] = MappingProxyType({})


class Offer(NamedTuple):
    """All that a successor needs. `release` and `pid` are the predecessor's; the channel fills them in."""

    generation: int
    fds: tuple[NamedFd, ...]
    state: dict[str, Any]
    release: str = ""
    pid: int = 0

    def find(self, name: str) -> NamedFd:
        """Return the descriptor of that name; raises TakeoverError if the offer has none."""
        return _find(name, self.fds, Phase.RESTORING, "the offer")


class Answer(NamedTuple):
    """The answer to a query: bytes, and named descriptors for a process that asks for them."""

    content: bytes
    fds: tuple[NamedFd, ...] = ()

    def find(self, name: str) -> NamedFd:
        """Return the descriptor of that name; raises TakeoverError if the answer has none."""
        return _find(name, self.fds, Phase.QUERYING, "the answer")


class TakeoverHost(Protocol):
    """The server that is taken over. No method may block; one that raises makes its step of the takeover fail."""

    def offer(self, hello: "Hello") -> Offer:
        """Return all that a successor needs, and from now on only append to the state; raise to refuse with a reason.

        The descriptors stay the host's: the successor gets copies. `offer_withdrawn` follows if they cannot be sent.
        """

    def offer_withdrawn(self, reason: str) -> None:
        """Note that the successor will never own. This host kept serving; it may rewrite its state again."""
        return  # by default nothing

    def may_freeze(self, report: dict[str, Any]) -> bool:
        """Return whether a freeze would be short; False postpones it, and this host serves and appends meanwhile.

        Asked from READY on, with its `report`, until it returns True or the deadline of READY comes. It must not raise.
        """
        return True

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        """Finish the batch, stop reading, append the last of the state, and return the `info` of COMMIT.

        `report` is the successor's, from READY. `thaw` follows at once if this raises.
        """

    def thaw(self, reason: str) -> None:
        """Serve again after a freeze, from the state as it is now: a successor that is dead may have changed it.

        An exception is not caught: a process that cannot serve must end, so that another one can.
        """

    def finish(self, taken: dict[str, Any]) -> None:
        """Exit: the successor owns, and this host must never read or send again. `taken` is the `info` of TAKEN."""

    def answer(self, query: str) -> Answer | Iterator[bytes]:
        """Answer a query, at any time, also while frozen; raise to refuse, with the reason.

        A long answer comes in pieces, each of which is made between two batches. The descriptors
        stay the host's: the process that asks gets copies. A host without this method refuses all.
        """
        raise OxidizeError(f"query {query!r}: expected none, for this server answers no queries")


def _find(name: str, fds: tuple[NamedFd, ...], phase: Phase, whose: str) -> NamedFd:
    for each in fds:
        if each.name == name:
            return each
    raise TakeoverError(phase, f"{whose} has no {name!r}; it has {[each.name for each in fds]}")
