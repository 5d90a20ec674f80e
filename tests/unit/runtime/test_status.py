"""The answers to queries: parts that no process test reaches."""

import socket
from types import SimpleNamespace

import pytest

from oxidize.control.query import QUERIES
from oxidize.runtime.status import _address_of


def test_the_names_of_the_queries_never_change() -> None:
    assert QUERIES == ("status", "identity", "vitals", "state", "drain", "accept")


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        (socket.AF_INET, ("127.0.0.1", 9090), "127.0.0.1:9090"),
        (socket.AF_INET6, ("::1", 9090, 0, 0), "[::1]:9090"),
    ],
)
def test_the_metrics_listener_is_shown_as_host_and_port(
    family: socket.AddressFamily, name: tuple[object, ...], expected: str
) -> None:
    listener = SimpleNamespace(family=family, getsockname=lambda: name)
    assert _address_of(listener) == expected  # type: ignore[arg-type]
    assert _address_of(None) is None
