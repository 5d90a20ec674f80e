"""Rights are given up for good, and only where there is something to give up."""

import os
from pathlib import Path
from typing import Any

import pytest

from oxidize.runtime import daemon
from oxidize.runtime.daemon import rights_of
from oxidize.service_manager import privileges
from oxidize.service_manager.privileges import Capability, forbid_core_dumps, keep_only
from oxidize.settings import NodeSettings
from tests.support.node_settings import settings_with

NONE = {"effective": 0, "permitted": 0, "inheritable": 0}


class Kernel:
    """What the calls of a process were, and the sets that it has."""

    def __init__(self, patch: pytest.MonkeyPatch, **sets: int) -> None:
        self.sets = NONE | sets
        self.calls: list[tuple[object, ...]] = []
        patch.setattr(privileges, "_capabilities", lambda: self.sets)
        patch.setattr(privileges, "_set_capabilities", lambda sets: self.calls.append(("capset", sets)))
        patch.setattr(privileges, "_drop_from_bounding_set", lambda mask: self.calls.append(("bounding", mask)))
        patch.setattr(privileges, "_prctl", lambda option, value: self.calls.append(("prctl", option, value)))


NO_NEW_PRIVS = ("prctl", 38, 1)


def test_a_process_that_has_no_more_than_it_keeps_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit's filter may forbid capset, and such a process has no use for it."""
    own = 1 << Capability.NET_ADMIN
    for sets in ({}, dict.fromkeys(NONE, own)):
        kernel = Kernel(monkeypatch, **sets)
        keep_only({Capability.NET_ADMIN})
        assert kernel.calls == [NO_NEW_PRIVS]


def test_every_set_is_reduced_and_no_new_capability_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = (1 << 41) - 1
    kernel = Kernel(monkeypatch, effective=everything, permitted=everything, inheritable=3)
    keep_only({Capability.NET_ADMIN, Capability.CHOWN})
    mask = 1 << 12 | 1
    assert kernel.calls == [
        ("bounding", mask),
        ("capset", {"effective": mask, "permitted": mask, "inheritable": 1}),
        NO_NEW_PRIVS,
    ]
    kernel = Kernel(monkeypatch, permitted=1 << 21)
    keep_only({Capability.NET_ADMIN})
    assert kernel.calls == [("capset", NONE), NO_NEW_PRIVS]


def test_rights_that_the_kernel_does_not_take_are_told_and_the_process_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(1, "capset: Operation not permitted")

    monkeypatch.setattr(daemon, "keep_only", refuse)
    daemon._give_up_rights(settings(Path("/run/t.sock")))
    (record,) = caplog.records
    assert record.getMessage() == "serving with more rights than it needs"
    assert "AmbientCapabilities= and CapabilityBoundingSet=" in str(vars(record))
    caplog.clear()
    daemon._give_up_rights(settings(Path("/run/t.sock"), network="tun"))
    assert "AmbientCapabilities=CAP_NET_ADMIN and" in str(vars(caplog.records[0]))


def settings(takeover_socket: Path, **values: Any) -> NodeSettings:
    return settings_with(**{"network": "userspace", "takeover_socket": takeover_socket} | values)


def test_what_is_kept_is_what_serving_uses(tmp_path: Path) -> None:
    socket = tmp_path / "t.sock"
    assert rights_of(settings(socket)) == set()
    assert rights_of(settings(socket, network="tun")) == {Capability.NET_ADMIN}
    names = {Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FOWNER, Capability.KILL}
    assert rights_of(settings(socket, network="tun", name_servers=("a", (), ()))) == {Capability.NET_ADMIN, *names}
    assert rights_of(settings(socket, endpoints_file=tmp_path / "missing" / "endpoints.json")) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="lacks root: only root gives folders away")
def test_root_keeps_the_right_to_write_to_a_folder_of_another_user(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 12_345, 12_345)
    for found in (settings(folder / "t.sock"), settings(tmp_path / "t.sock", endpoints_file=folder / "endpoints.json")):
        assert rights_of(found) == {Capability.DAC_OVERRIDE}


def test_core_dumps_are_forbidden_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: set_to.append(limits))
    for soft in (-1, 0):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, -1))
        forbid_core_dumps()
    assert set_to == [(0, -1)]
