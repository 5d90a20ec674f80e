"""What all tests of provisioning have in common: an import does not ask this machine for its MTU."""

import pytest

from oxidize.cli import import_wg_quick


@pytest.fixture(autouse=True)
def no_uplink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_wg_quick, "uplink_mtu", lambda _: None)
