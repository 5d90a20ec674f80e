"""The clients' observations as records of one fixed size: the only input of the verdict.

Rule: a record is written at the time of the event and never altered. All times are seconds of CLOCK_BOOTTIME, which is
the same clock in the clients' process and in the demonstration's. Pure: bytes in, values out.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum, unique
from typing import NamedTuple

from oxidize.errors import DecodeError

_RECORD = struct.Struct("<BHQdd")
RECORD_SIZE = _RECORD.size


@unique
class Kind(IntEnum):
    """The kinds of event at a client."""

    SENT = 1  # number: of the request; at: when it was handed to the kernel
    REPLY = 2  # number: of the request; sent_at: from its payload; at: when the reply was read
    CORRUPTED = 3  # an inner packet arrived that answers no request of this client
    HANDSHAKE = 4  # number: handshakes that this client has completed, including this one
    UNREACHABLE = 5  # the kernel reported ICMP port unreachable: no process held the server's port
    STARTED = 6  # every client has its session, the schedule starts at `at`
    FINISHED = 7  # the last request was sent and the wait for its reply has ended
    DROPPED = 8  # number: the protocol.counters.DropReason for which a client's device refused what the server sent


class Record(NamedTuple):
    """One event; `sent_at` is 0.0 unless the kind is REPLY."""

    kind: Kind
    client: int
    number: int
    at: float
    sent_at: float = 0.0


def encode(records: Iterable[Record]) -> bytes:
    """Return the records as RECORD_SIZE bytes each."""
    return b"".join([_RECORD.pack(*record) for record in records])


class RecordDecoder:
    """Decoder of a byte stream that arrives in chunks of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yield the records that `data` completes; raises DecodeError for an unknown kind."""
        data = self._rest + data
        whole = len(data) - len(data) % RECORD_SIZE
        self._rest = data[whole:]
        for kind, client, number, at, sent_at in _RECORD.iter_unpack(data[:whole]):
            try:
                yield Record(Kind(kind), client, number, at, sent_at)
            except ValueError:
                raise DecodeError(f"record of kind {kind}: expected 1 to {len(Kind)}; not a client's stream") from None
