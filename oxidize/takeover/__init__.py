"""Hand over named file descriptors and an opaque state from one process to its successor, under traffic.

The promise: at most two processes exist at a time, at every instant at most one of them serves, and whatever fails
before the successor owns leaves the predecessor serving.

A server implements `TakeoverHost` and drives an `Upgrader` from its loop (examples/replaceable_echo.py is a whole one).
A server whose loop calls back for descriptors and deadlines can use the two sides by themselves: `Predecessor` and
`Successor`. docs/takeover-protocol.md describes the messages. Nothing here knows what the descriptors and the state are
for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oxidize.errors import TakeoverError
    from oxidize.takeover.connection import who_listens
    from oxidize.takeover.host import Answer, NamedFd, Offer, TakeoverHost
    from oxidize.takeover.listener import Listener
    from oxidize.takeover.machine import DEFAULT_TIMEOUTS, Timeouts
    from oxidize.takeover.messages import Hello
    from oxidize.takeover.path_lock import PathLock
    from oxidize.takeover.predecessor import Predecessor
    from oxidize.takeover.queries import query, query_with_fds
    from oxidize.takeover.successor import Commit, Successor
    from oxidize.takeover.upgrader import Upgrader
else:
    # A process that starts after a crash serves before it can be taken over: each part is imported at its first use.
    _MODULES = {
        "connection": ("who_listens",),
        "host": ("Answer", "NamedFd", "Offer", "TakeoverHost"),
        "listener": ("Listener",),
        "machine": ("DEFAULT_TIMEOUTS", "Timeouts"),
        "messages": ("Hello",),
        "path_lock": ("PathLock",),
        "predecessor": ("Predecessor",),
        "queries": ("query", "query_with_fds"),
        "successor": ("Commit", "Successor"),
        "upgrader": ("Upgrader",),
    }
    _PLACES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
    _PLACES["TakeoverError"] = "oxidize.errors"

    def __getattr__(name):
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_PLACES[name]), name)


__all__ = [
    "DEFAULT_TIMEOUTS",
    "Answer",
    "Commit",
    "Hello",
    "Listener",
    "NamedFd",
    "Offer",
    "PathLock",
    "Predecessor",
    "Successor",
    "TakeoverError",
    "TakeoverHost",
    "Timeouts",
    "Upgrader",
    "query",
    "query_with_fds",
    "who_listens",
]
