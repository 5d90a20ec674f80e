"""The response to an HTTP request, and what gives it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Response(NamedTuple):
    """The response to a request; its length, and that the connection closes, are added when it is sent.

    more: pieces that follow the body, of which one is made in each turn of the loop; None where the body is all. One
    that cannot be made raises OSError, which ends the connection, so that no part is taken for the whole.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    more: Iterator[bytes] | None = None


Respond = Callable[[str, str], Response]  # (method, path) -> response; the method is GET or HEAD
