"""What the first packet does not need: modules that are imported after it, each between two batches of packets.

The rule: a start without a predecessor serves first, for the packets of a crash are waiting. What a successor needs to
find comes next, and then /metrics and /health, if there is a socket for them. A successor imports all of them before
READY, while its predecessor serves. Where a request or a scrape comes sooner it imports the rest itself.
"""

import importlib
from collections.abc import Iterator

from oxidize import logs

FOR_A_SUCCESSOR = (
    "oxidize.takeover.messages",
    "oxidize.takeover.machine",
    "oxidize.takeover.predecessor",
    "oxidize.control.query",
    "oxidize.runtime.handover",
)
# In this order: each is imported in some milliseconds once those before it are. Those from "html" on are what
# prometheus_client imports of the standard library, a web server with TLS.
MODULES = (
    "h11",
    "oxidize.net.http_connection",
    "html",
    "email.parser",
    "ssl",
    "http.client",
    "http.server",
    "urllib.request",
    "gzip",
    "wsgiref.simple_server",
    "prometheus_client",
    "oxidize.runtime.peer_metrics",
    "oxidize.metrics",
)

log = logs.get(__name__)


def import_for_a_successor() -> Iterator[None]:
    """Import one of FOR_A_SUCCESSOR in each slice; raises ImportError for a release without one of them."""
    for name in FOR_A_SUCCESSOR:
        importlib.import_module(name)
        yield


def import_late() -> Iterator[None]:
    """Import one of MODULES in each slice; one that cannot be imported is the error of the request that needs it."""
    for name in MODULES:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            log.warning("a module of HTTP cannot be imported", module=name, reason=str(error))
        yield
