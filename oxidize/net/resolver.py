"""A resolver of names beside the loop.

The rule: the loop never waits for a resolver. A literal address needs none; a name is looked up in a separate thread,
which reports the outcome to the loop through a pipe.

Source: getaddrinfo(3), which may take half a minute where no name server answers (resolv.conf(5), `timeout`).
"""

import os
import threading
from collections.abc import Callable

from oxidize.net.event_loop import READABLE, Loop
from oxidize.protocol.endpoint import Endpoint

LOOKUP_PAUSE_SECS = 1.0  # between the first two lookups of a name; doubled with each ...
LOOKUP_PAUSE_SECS_MAX = 30.0  # ... up to this

Lookup = Callable[[str], list[Endpoint]]
Outcome = list[Endpoint] | OSError


class Resolver:
    """Looks up one name on demand, one lookup at a time.

    lookup: runs in the thread. done: called from the loop with the endpoints, or with the error.
    """

    def __init__(self, text: str, lookup: Lookup, loop: Loop, done: Callable[[Outcome], None]) -> None:
        self._text = text
        self._lookup = lookup
        self._loop = loop
        self._done = done
        self._pipe_end: int | None = None

    @property
    def is_asking(self) -> bool:
        """Whether a lookup is under way."""
        return self._pipe_end is not None

    def ask(self) -> None:
        """Begin a lookup; a no-op while one is under way."""
        if self._pipe_end is not None:
            return
        outcome: list[Outcome] = []
        try:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            try:
                self._loop.register(read_end, READABLE, lambda: self._finish(outcome))
            except OSError:
                os.close(read_end)
                os.close(write_end)
                raise
        except OSError as error:  # out of descriptors or room: it is asked again later, and the process must not end
            self._done(error)
            return
        self._pipe_end = read_end
        try:
            threading.Thread(target=self._run, args=(write_end, outcome), name="resolver", daemon=True).start()
        except RuntimeError:  # out of threads: the closed pipe reports a lookup without an answer
            os.close(write_end)

    def stop(self) -> None:
        """Abandon a lookup that is under way: its outcome is not reported."""
        if self._pipe_end is not None:
            self._loop.unregister(self._pipe_end)
            os.close(self._pipe_end)
            self._pipe_end = None

    def _run(self, write_end: int, outcome: list[Outcome]) -> None:
        try:
            outcome.append(self._lookup(self._text))
        except OSError as error:
            outcome.append(error)
        except ValueError as error:  # a name that cannot be encoded, an answer that cannot be read
            outcome.append(OSError(str(error)))
        finally:
            os.close(write_end)  # the reader sees end of file

    def _finish(self, outcome: list[Outcome]) -> None:
        self.stop()
        self._done(outcome[0] if outcome else OSError("the lookup ended without an answer"))
