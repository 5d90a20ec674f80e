"""Fixtures of the tests on a real systemd: `service` is installed and configured on a freshly booted machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.server import Lab
from tests.system.machine import NEEDED_PROGRAMS, install
from tests.system.service import Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.needs(*NEEDED_PROGRAMS))


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the product below a folder, once for all tests."""
    return install(tmp_path_factory.mktemp("seed"))


@pytest.fixture
def service(tmp_path: Path, seed: Path) -> Iterator[Service]:
    with Lab(tmp_path) as lab:
        yield Service(lab, seed)
