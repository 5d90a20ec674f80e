"""What most tests of this folder share: no environment, and a folder with key files."""

from pathlib import Path

import pytest

from tests.support.config_files import PRESHARED, PRIVATE, secret


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE + "\n")
    secret(tmp_path / "alice.psk", PRESHARED + "\n")
    return tmp_path
