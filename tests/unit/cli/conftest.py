"""A configuration with one peer, and a simulated server that runs with it."""

from pathlib import Path

import pytest

from oxidize.cli import mtu_check
from oxidize.cli import reload as reload_module
from oxidize.control import query as query_module
from oxidize.service_manager import systemctl
from tests.support.config_files import PRIVATE, peer, secret
from tests.support.peer_commands import LINES, Running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "server.toml"
    path.write_text(LINES + "\n# Alice\n" + peer())
    return path


@pytest.fixture
def running(path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    running = Running(path)
    monkeypatch.setattr(query_module, "find", running.find)
    monkeypatch.setattr(query_module, "fetch", running.find)
    monkeypatch.setattr(systemctl, "service_of", lambda pid: None)
    monkeypatch.setattr(reload_module, "replace_process", running.reload)
    return running


@pytest.fixture(autouse=True)
def _any_uplink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warn of no MTU, whatever the network of this machine takes."""
    monkeypatch.setattr(mtu_check, "find_uplink", lambda *_, **__: None)
