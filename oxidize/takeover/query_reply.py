"""The reply to a query: a memfd that the answer is written to, at once or in pieces.

The rule: an answer that grows with the number of peers is made in pieces, one in each turn of the loop, so that no
packet waits for all of it.
"""

import os
from collections.abc import Iterator

from oxidize.errors import StateError
from oxidize.takeover.channel import FDS_PER_MESSAGE_MAX
from oxidize.takeover.host import Answer
from oxidize.takeover.messages import FdEntry, Reply, encode

ANSWER_BYTES_MAX = 320 << 20  # of a query; the status of 100,000 peers takes 40 to 50 MB


class QueryReply:
    """A reply that is being written.

    message, fds: what is sent once it is whole. is_in_pieces: whether it takes more than one call. due_at: of the next.
    """

    def __init__(self, answer: Answer | Iterator[bytes]) -> None:
        """Begin; raises StateError if the answer cannot be sent, and OSError."""
        whole = answer if isinstance(answer, Answer) else None
        given = whole.fds if whole is not None else ()
        if len(given) >= FDS_PER_MESSAGE_MAX:  # one is the content's
            raise StateError(f"the answer has {len(given)} descriptors; expected at most {FDS_PER_MESSAGE_MAX - 1}")
        self.message = Reply(tuple(FdEntry(named.name, named.kind, dict(named.options)) for named in given))
        encode(self.message)  # an answer that cannot be encoded is found here, where it can still be refused
        self.is_in_pieces = whole is None
        self.due_at = 0.0
        self._pieces = answer if not isinstance(answer, Answer) else iter([answer.content])
        self._size = 0
        self._memfd = os.memfd_create("takeover-reply")
        self.fds = [self._memfd, *(named.fd for named in given)]

    def write(self) -> bool:
        """Write the next piece, or all; return whether nothing is left.

        Raises StateError if the answer is too long, what making the piece raises, and OSError.
        """
        piece = next(self._pieces, None)
        if piece is None:
            return True
        self._size += len(piece)
        if self._size > ANSWER_BYTES_MAX:
            raise StateError(f"the answer has {self._size} bytes; expected at most {ANSWER_BYTES_MAX}")
        written = 0
        while written < len(piece):
            written += os.write(self._memfd, memoryview(piece)[written:])
        return not self.is_in_pieces

    def close(self) -> None:
        """Close the memfd; the process that asked has a descriptor of its own."""
        os.close(self._memfd)
