"""The response to an HTTP request, and what gives it."""

from collections.abc import Callable
from typing import NamedTuple


class Response(NamedTuple):
    """The response to a request; its length, and that the connection closes, are added when it is sent."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Respond = Callable[[str, str], Response]  # (method, path) -> response; the method is GET or HEAD
