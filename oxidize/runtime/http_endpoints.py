"""The server's own HTTP answers: /health and /metrics.

The rule: only a healthy process answers /health with 200; one that starts or drains, or whose interface or routes are
not as configured, answers 503 and says which.
"""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Literal

from oxidize.clock import boot_time
from oxidize.net.event_loop import Loop
from oxidize.net.http import HttpServer
from oxidize.net.http_response import Respond, Response

RENDER_SECS = 0.25  # between two renderings of the metrics

State = Literal["starting", "healthy", "degraded", "draining"]


def health_response(state: State) -> Response:
    """Return the answer of /health: 200 when healthy, else 503, with the state as JSON."""
    is_ready = state == "healthy"
    body = json.dumps({"status": state, "ready": is_ready}, separators=(",", ":")).encode()
    return Response(200 if is_ready else 503, body, "application/json", (("Cache-Control", "no-store"),))


def make_respond(
    state: Callable[[], State],
    render_metrics: Callable[[], tuple[bytes, str]],
    more_metrics: Callable[[], Iterator[bytes] | None] = lambda: None,
) -> Respond:
    """Return the function that answers /health, /metrics, and 404 for any other path.

    render_metrics returns the body and its content type; more_metrics, which is called after it, pieces that follow.
    """

    def respond(method: str, path: str) -> Response:  # noqa: ARG001  # GET and HEAD alike
        if path == "/health":
            return health_response(state())
        if path == "/metrics":
            body, content_type = render_metrics()
            return Response(200, body, content_type, more=more_metrics())
        return Response(404, b"Not found. There are /health and /metrics here.\n")

    return respond


def serve_http(listener: socket.socket, respond: Respond, loop: Loop) -> HttpServer:
    """Answer HTTP at `listener`, which must not block, from the loop."""
    server = HttpServer(listener, respond, loop.register, loop.unregister, boot_time)
    loop.add_timed(server)
    return server


class ThrottledRender:
    """Renders the metrics once in RENDER_SECS at most, so that no number of requests stops the data path."""

    def __init__(self, render: Callable[[], tuple[bytes, str]]) -> None:
        self._render = render
        self._rendered = (b"", "")
        self._until = 0.0

    def __call__(self) -> tuple[bytes, str]:
        """Return the text and its content type."""
        if boot_time() >= self._until:
            self._rendered = self._render()
            self._until = boot_time() + RENDER_SECS
        return self._rendered
