"""The answers to queries: parts that no process test reaches."""

import socket

import pytest

from oxidize.control.query import QUERIES
from oxidize.runtime.status import _address_of


def test_the_names_of_the_queries_never_change() -> None:
    assert QUERIES == ("status", "peers", "identity", "vitals", "state", "settings", "drain", "accept")


@pytest.mark.parametrize(
    ("family", "host", "shown"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")]
)
def test_the_metrics_listener_is_shown_as_host_and_port(family: socket.AddressFamily, host: str, shown: str) -> None:
    with socket.create_server((host, 0), family=family) as listener:
        assert _address_of(listener) == f"{shown}:{listener.getsockname()[1]}"
    assert _address_of(None) is None
