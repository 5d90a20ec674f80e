"""Fixtures of the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.open_fds import no_leaked_fds
from tests.support.takeover_peer import Stand
from tests.support.traffic.clients import EchoClient


@pytest.fixture
def clients() -> Iterator[list[EchoClient]]:
    clients = [EchoClient(number) for number in (2, 3, 4)]
    yield clients
    for client in clients:
        client.socket.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with no_leaked_fds():
        stand = Stand(tmp_path / "takeover.sock")
        yield stand
        stand.close()
