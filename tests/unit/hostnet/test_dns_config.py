"""DNS settings through the system's program, here a double that records its arguments and input."""

import os
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest

from oxidize.client import unit_hooks
from oxidize.config import NameServers
from oxidize.errors import OxidizeError
from oxidize.hostnet import dns_config
from oxidize.hostnet.dns_config import (
    apply_dns,
    check_dns,
    find_program,
    record_name,
    revert_dns,
)
from oxidize.hostnet.part import Steps
from oxidize.service_manager import systemctl

WANTED = NameServers("lo", (ip_address("10.0.0.1"), ip_address("fd00::1")), ("corp.example",))
NONE = NameServers("lo", (), ())
PROGRAM = """#!/bin/sh
{ echo "${0##*/} $*"; cat; } >> "${0%/*}/log"
test ! -e "${0%/*}/fails" || { echo first >&2; echo "why it failed" >&2; exit 4; }
"""


class Programs:
    """A folder that is the whole PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cat").symlink_to("/bin/cat")

    def add(self, name: str, text: str = PROGRAM) -> None:
        program = self.folder / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def calls(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(dns_config, "RESOLVED", tmp_path / "resolved")
    return Programs(folder)


def run_resolved(programs: Programs) -> None:
    programs.add("resolvectl")
    dns_config.RESOLVED.touch()


def test_resolvectl_sets_and_reverts_the_dns_of_a_link(programs: Programs) -> None:
    programs.add("resolvconf")
    run_resolved(programs)
    apply_dns(WANTED, "record")
    revert_dns("lo", "record")
    assert programs.calls() == [
        "resolvectl domain lo ~. corp.example",
        "resolvectl default-route lo true",
        "resolvectl dns lo 10.0.0.1 fd00::1",
        "resolvectl revert lo",
    ]


@pytest.mark.parametrize("interface", ["gone0", None])
def test_the_dns_of_an_interface_that_is_gone_needs_no_resolvectl(programs: Programs, interface: str | None) -> None:
    run_resolved(programs)
    revert_dns(interface, "record")
    assert programs.calls() == []


def test_resolvconf_adds_and_removes_a_record(programs: Programs) -> None:
    programs.add("resolvconf")
    programs.add("resolvectl")  # installed, but systemd-resolved does not run
    apply_dns(WANTED, "record")
    revert_dns(None, "record")
    assert programs.calls() == [
        "resolvconf -a record -m 0 -x",
        "nameserver 10.0.0.1",
        "nameserver fd00::1",
        "search corp.example",
        "resolvconf -d record -f",
    ]


def test_the_error_of_a_program_that_fails_is_quoted(programs: Programs) -> None:
    programs.add("resolvconf")
    (programs.folder / "fails").touch()
    with pytest.raises(
        OxidizeError, match=r"resolvconf -a record -m 0 -x: exit status 4: why it failed; see client\.dns"
    ):
        apply_dns(WANTED, "record")


def test_a_program_that_does_not_end_is_ended(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("resolvconf", "#!/bin/sh\nexec cat < /dev/zero > /dev/null\n")
    monkeypatch.setattr(dns_config, "TIMEOUT_SECS", 0.05)
    with pytest.raises(OxidizeError, match="did not end within"):
        apply_dns(WANTED, "record")


def test_a_program_that_cannot_be_run_is_an_error(programs: Programs) -> None:
    programs.add("resolvconf", "#!/nonexistent\n")
    with pytest.raises(OxidizeError, match="cannot be run"):
        apply_dns(WANTED, "record")


def test_a_system_without_a_dns_program_is_an_error(programs: Programs) -> None:
    dns_config.RESOLVED.touch()  # it runs, but its program is missing
    for ask in (find_program, lambda: check_dns(WANTED, by_this_process=False)):
        with pytest.raises(OxidizeError, match=r"no program for that.*install openresolv or start systemd-resolved"):
            ask()
    check_dns(NONE, by_this_process=True)
    revert_dns("lo", "record")


def test_only_root_sets_name_servers_itself(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("resolvconf")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check_dns(WANTED, by_this_process=False)
    with pytest.raises(OxidizeError, match="user 1000 may not change this system's name servers: expected root"):
        check_dns(WANTED, by_this_process=True)
    assert programs.calls() == []


def test_two_clients_have_records_of_different_names() -> None:
    assert record_name("oxidize1") == "tun.oxidize1"
    assert record_name("oxidize1", 7) != record_name("oxidize1", 8)


# --- The hooks of the unit ---


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "client.toml"
    path.write_text(
        '[client]\nserver = "a.example:1"\nserver_public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="\n'
        'address = "10.0.0.2/24"\nallowed_ips = []\ninterface = "lo"\ndns = ["10.0.0.1"]\n'
    )
    return path


def test_a_hook_sets_the_configured_name_servers(programs: Programs, config_path: Path) -> None:
    programs.add("resolvconf")
    assert unit_hooks.set_names(config_path) == ["10.0.0.1"]
    config_path.write_text(config_path.read_text().replace('dns = ["10.0.0.1"]', ""))
    assert unit_hooks.set_names(config_path) == []
    assert programs.calls() == ["resolvconf -a tun.lo -m 0 -x", "nameserver 10.0.0.1", "resolvconf -d tun.lo -f"]


@pytest.mark.parametrize(
    ("restarts", "gave_up", "is_removed"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_a_hook_removes_nothing_while_the_unit_restarts(
    programs: Programs,
    config_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    restarts: bool,
    gave_up: bool,
    is_removed: bool,
) -> None:
    programs.add("resolvconf")
    removed: list[list[str]] = []

    def remove_policy(interfaces: list[str]) -> Steps[list[str]]:
        removed.append(interfaces)
        yield 0.0
        return ["a rule"]

    monkeypatch.setattr(systemctl, "will_restart", lambda: restarts)
    monkeypatch.setattr(unit_hooks, "remove_policy", remove_policy)
    unit_hooks.remove_names(config_path, gave_up=gave_up)
    assert unit_hooks.clean_up(config_path, gave_up=gave_up) == (["a rule"] if is_removed else [])
    assert removed == ([["lo"]] if is_removed else [])
    assert programs.calls() == (["resolvconf -d tun.lo -f"] if is_removed else [])
