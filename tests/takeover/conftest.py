"""What tests with real processes have in common."""

from collections.abc import Iterator

import pytest

from tests.support.traffic.clients import EchoClient


@pytest.fixture
def clients() -> Iterator[list[EchoClient]]:
    clients = [EchoClient(number) for number in (2, 3, 4)]
    yield clients
    for client in clients:
        client.socket.close()
