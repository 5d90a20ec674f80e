"""What the first packet does not need: the modules of /metrics, imported after it, each between two batches of packets.

The rule: a start without a predecessor serves first, for the packets of a crash are waiting. A successor imports all of
them before READY, while its predecessor serves. Where a scrape comes sooner it imports the rest itself.
"""

import importlib
from collections.abc import Iterator

from oxidize import logs

# In this order: each is imported in some milliseconds once those before it are. All but the last two are what
# prometheus_client imports of the standard library, a web server with TLS.
MODULES = (
    "html",
    "email.parser",
    "ssl",
    "http.client",
    "http.server",
    "urllib.request",
    "gzip",
    "wsgiref.simple_server",
    "prometheus_client",
    "oxidize.metrics",
)

log = logs.get(__name__)


def import_late() -> Iterator[None]:
    """Import one module in each slice; one that cannot be imported is the error of the scrape that needs it."""
    for name in MODULES:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            log.warning("a module of /metrics cannot be imported", module=name, reason=str(error))
        yield
