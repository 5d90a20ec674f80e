"""What the server answers at /health and /metrics, and at any other path."""

import json
from collections.abc import Iterator

import pytest

from oxidize.runtime.http_endpoints import State, health_response, make_respond


@pytest.mark.parametrize(
    ("state", "status", "body"),
    [
        ("healthy", 200, b'{"status":"healthy","ready":true}'),
        ("starting", 503, b'{"status":"starting","ready":false}'),
        ("draining", 503, b'{"status":"draining","ready":false}'),
    ],
)
def test_health_is_ready_only_while_the_state_is_healthy(state: State, status: int, body: bytes) -> None:
    response = health_response(state)
    assert (response.status, response.body, response.content_type) == (status, body, "application/json")
    assert response.headers == (("Cache-Control", "no-store"),)
    assert json.loads(body)["status"] == state


def test_each_path_has_its_own_answer() -> None:
    respond = make_respond(lambda: "healthy", lambda: (b"metric 1\n", "text/plain; version=1.0.0"))
    assert respond("GET", "/health") == health_response("healthy")
    metrics = respond("GET", "/metrics")
    assert (metrics.status, metrics.body, metrics.content_type) == (200, b"metric 1\n", "text/plain; version=1.0.0")
    unknown = respond("GET", "/secret")
    assert unknown.status == 404
    assert b"/health" in unknown.body
    assert b"/metrics" in unknown.body


def test_the_pieces_of_the_metrics_follow_their_body() -> None:
    made: list[str] = []

    def render() -> tuple[bytes, str]:
        made.append("body")
        return b"metric 1\n", "text/plain; version=1.0.0"

    def more() -> Iterator[bytes]:
        made.append("pieces")
        return iter([b"other 2\n"])

    response = make_respond(lambda: "healthy", render, more)("GET", "/metrics")
    assert response.more is not None
    assert (response.body, *response.more) == (b"metric 1\n", b"other 2\n")
    assert made == ["body", "pieces"]
