"""Fixtures of the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.open_fds import no_leaked_fds
from tests.support.takeover_peer import Stand
from tests.support.traffic.clients import EchoClient
from tests.support.traffic.server import Lab, Server


@pytest.fixture
def client() -> Iterator[EchoClient]:
    client = EchoClient(2)
    yield client
    client.socket.close()


@pytest.fixture
def clients() -> Iterator[list[EchoClient]]:
    clients = [EchoClient(number) for number in (2, 3, 4)]
    yield clients
    for client in clients:
        client.socket.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def server(lab: Lab, clients: list[EchoClient]) -> Server:
    """A server for three clients, which a test may replace by one of its own; it waits for no session to end."""
    server = Server(lab, [client.table() for client in clients])
    server.write_config(drain_timeout_secs=0)
    return server


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with no_leaked_fds():
        stand = Stand(tmp_path / "takeover.sock")
        yield stand
        stand.close()
