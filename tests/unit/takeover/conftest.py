"""The bench of both sides of a takeover."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.open_fds import no_leaked_fds
from tests.unit.takeover.test_sides import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with no_leaked_fds():
        bench = Bench(tmp_path / "t.sock", monkeypatch)
        yield bench
        bench.close()
