"""Moving named file descriptors and an opaque state from one process to its successor.

A server is a `TakeoverHost` and plugs a `Predecessor` into its loop; its next generation starts with a `Successor`.
Nothing here knows what the descriptors and the state are for.
"""

from oxidize.takeover.host import Answer, NamedFd, Offer, TakeoverHost
from oxidize.takeover.listener import Listener
from oxidize.takeover.machine import DEFAULT_TIMEOUTS, Timeouts
from oxidize.takeover.messages import Hello
from oxidize.takeover.predecessor import Predecessor
from oxidize.takeover.query import query, query_with_fds, who_listens
from oxidize.takeover.successor import Commit, Successor

__all__ = [
    "DEFAULT_TIMEOUTS",
    "Answer",
    "Commit",
    "Hello",
    "Listener",
    "NamedFd",
    "Offer",
    "Predecessor",
    "Successor",
    "TakeoverHost",
    "Timeouts",
    "query",
    "query_with_fds",
    "who_listens",
]
