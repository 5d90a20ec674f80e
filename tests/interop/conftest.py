"""What the interoperability tests stand on: `site` has room for clients, `world` relays to a host behind the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.relay import World
from tests.support.traffic.server import Lab
from tests.support.traffic.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Lab(tmp_path) as lab:
        yield Site(lab)


@pytest.fixture
def world(site: Site) -> World:
    return World.of(site)
