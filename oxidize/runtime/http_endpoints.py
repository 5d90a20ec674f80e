"""The server's own HTTP answers: /health and /metrics.

The rule: only a healthy process answers /health with 200; one that starts or drains answers 503 and says which.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal

from oxidize.net.http import Respond, Response

State = Literal["starting", "healthy", "draining"]


def health_response(state: State) -> Response:
    """Return the answer of /health: 200 when healthy, else 503, with the state as JSON."""
    is_ready = state == "healthy"
    body = json.dumps({"status": state, "ready": is_ready}, separators=(",", ":")).encode()
    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, body, "application/json", (("Cache-Control", "no-store"),))


def make_respond(state: Callable[[], State], render_metrics: Callable[[], tuple[bytes, str]]) -> Respond:
    """Return the function that answers /health, /metrics, and 404 for any other path.

    render_metrics returns the body and its content type.
    """

    def respond(method: str, path: str) -> Response:  # noqa: ARG001  # GET and HEAD alike
        if path == "/health":
            return health_response(state())
        if path == "/metrics":
            body, content_type = render_metrics()
            return Response(HTTPStatus.OK, body, content_type)
        return Response(HTTPStatus.NOT_FOUND, b"Not found. There are /health and /metrics here.\n")

    return respond
