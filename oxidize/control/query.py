"""Queries that a running process answers at its takeover socket, and the side that asks."""

from pathlib import Path
from typing import Any

from oxidize.control.decode import decode, printable_reasons
from oxidize.errors import OxidizeError
from oxidize.net.event_loop import boot_time
from oxidize.takeover.query import query

# What a process can be asked for at its takeover socket.
STATUS = "status"
IDENTITY = "identity"
VITALS = "vitals"  # what may be asked twice a second, however many peers there are
STATE = "state"  # journal and arena, to be read
DRAIN = "drain"  # begin to drain, and end when told to
ACCEPT = "accept"  # drain no more
QUERIES = (STATUS, IDENTITY, VITALS, STATE, DRAIN, ACCEPT)

STATUS_BYTES_MAX = 32 << 20  # that of 20,000 peers takes 8 to 10 MB, and more where each has many allowed IPs
ANSWER_BYTES_MAX = 512 << 10  # of any other: 16 takeovers with a reason of 4,096 characters, six bytes each at most


def fetch(takeover_socket: Path, what: str = STATUS) -> dict[str, Any]:
    """Return what the process that listens there answers: its STATUS, its VITALS, to any other query its IDENTITY.

    Raises OxidizeError where none does.
    """
    status = find(takeover_socket, what)
    if status is None:
        raise nothing_runs(takeover_socket)
    return status


def nothing_runs(takeover_socket: Path) -> OxidizeError:
    """Return the error for a socket at which nobody listens."""
    return OxidizeError(
        f"nothing runs: nobody listens at {takeover_socket}; start it with `oxidize server` or `oxidize client`, "
        "or check takeover_socket in the configuration"
    )


def find(takeover_socket: Path, what: str = STATUS) -> dict[str, Any] | None:
    """Return the same as `fetch`, or None where nobody listens.

    Its texts can be printed, whoever answers. Raises OxidizeError for one that gives no answer that can be read.
    """
    with printable_reasons():
        answer = query(takeover_socket, what, clock=boot_time, bytes_max=bytes_max_of(what))
    return decode(answer) if answer is not None else None


def bytes_max_of(what: str) -> int:
    """Return how long an answer to this query may be, for whoever asks."""
    return STATUS_BYTES_MAX if what == STATUS else ANSWER_BYTES_MAX
