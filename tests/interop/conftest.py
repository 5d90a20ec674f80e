"""What the interoperability tests stand on: `site`, a server's namespace with room for clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.server import Lab
from tests.support.traffic.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Lab(tmp_path) as lab:
        yield Site(lab)
