"""The service manager of a process whose store is tested."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.open_fds import no_leaked_fds
from tests.support.service_manager import Manager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Return the manager of this process; a descriptor that the test leaves open fails it."""
    with no_leaked_fds():
        manager = Manager(tmp_path / "notify")
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager
        manager.close()
