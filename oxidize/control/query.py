"""The queries that a running process answers at its takeover socket, and the client that sends them."""

from pathlib import Path
from typing import Any

from oxidize.control.decode import decode, printable_reasons
from oxidize.errors import OxidizeError, TakeoverError
from oxidize.takeover.queries import QUERY_TIMEOUT, query

# The names of the queries, on the wire.
STATUS = "status"
PEERS = "peers"  # of a status what a command needs that changes the peers, at a tenth of the cost
IDENTITY = "identity"
VITALS = "vitals"  # cheap enough for two queries a second, however many peers there are
STATE = "state"  # journal and arena, read-only
SETTINGS = "settings"  # the file of `runtime.validated`, which has no key
DRAIN = "drain"  # begin to drain, and end when told to
ACCEPT = "accept"  # end a drain
QUERIES = (STATUS, PEERS, IDENTITY, VITALS, STATE, SETTINGS, DRAIN, ACCEPT)

STATUS_SECS_MAX = 20.0  # a loaded server makes it between batches of packets: of 100,000 peers in some seconds
STATUS_BYTES_MAX = 160 << 20  # PEERS_MAX peers take 40 to 50 MB, and more where each has many allowed IPs
OF_ALL_PEERS = frozenset({STATUS, PEERS})  # these limits are theirs
ANSWER_BYTES_MAX = 512 << 10  # of any other: 16 takeovers with a reason of 4,096 characters, six bytes each at most


def fetch(takeover_socket: Path, what: str = STATUS) -> dict[str, Any]:
    """Return the answer of the process that listens there: STATUS, PEERS, VITALS, to any other query its IDENTITY.

    Raises NothingListensError where no process listens, and OxidizeError where it gives no answer.
    """
    status = find(takeover_socket, what)
    if status is None:
        raise NothingListensError(takeover_socket)
    return status


class NothingListensError(OxidizeError):
    """No process listens at a takeover socket; `control.who_runs` tells what runs all the same."""

    def __init__(self, takeover_socket: Path) -> None:
        self.takeover_socket = takeover_socket
        way = "start it with `oxidize server` or `oxidize client`, or check takeover_socket in the configuration"
        super().__init__(self.text_with(way))

    def text_with(self, remedy: str) -> str:
        """Return the error with another remedy."""
        return f"nothing runs: no process listens at {self.takeover_socket}; {remedy}"


def find(takeover_socket: Path, what: str = STATUS) -> dict[str, Any] | None:
    """Return the same as `fetch`, or None where no process listens.

    Every text is printable, whatever process answers. Raises OxidizeError for a process without a readable answer.
    """
    with printable_reasons():
        timeout = STATUS_SECS_MAX if what in OF_ALL_PEERS else QUERY_TIMEOUT
        answer = query(takeover_socket, what, timeout=timeout, bytes_max=bytes_max_of(what))
    return decode(answer) if answer is not None else None


def find_peers(takeover_socket: Path) -> dict[str, Any] | None:
    """Return the same as `find`, with `pid`, `listen`, and of each of `peers` its `public_key` and `has_session`.

    A process of an older release answers with its whole status.
    """
    try:
        return find(takeover_socket, PEERS)
    except TakeoverError as error:
        if not error.reason.startswith(f"query {PEERS!r}"):
            raise
    return find(takeover_socket)


def bytes_max_of(what: str) -> int:
    """Return the limit for the length of an answer to this query."""
    return STATUS_BYTES_MAX if what in OF_ALL_PEERS else ANSWER_BYTES_MAX
