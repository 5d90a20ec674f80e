"""Name servers: the system's own program is told, through doubles that write down what they hear."""

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

WANTED = NameServers("lo", (ip_address("10.0.0.1"), ip_address("fd00::1")), ("corp.example",))
NONE = NameServers("lo", (), ())
PROGRAM = """#!/bin/sh
{ echo "${0##*/} $*"; cat; } >> "${0%/*}/log"
test ! -e "${0%/*}/fails" || { echo first >&2; echo "why it failed" >&2; exit 4; }
"""


class Programs:
    """A folder that is all of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cat").symlink_to("/bin/cat")

    def add(self, name: str, text: str = PROGRAM) -> None:
        program = self.folder / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def told(self) -> list[str]:
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


def test_resolved_is_told_about_the_link(programs: Programs) -> None:
    programs.add("resolvconf")
    run_resolved(programs)
    apply_dns(WANTED, "record")
    revert_dns("lo", "record")
    assert programs.told() == [
        "resolvectl domain lo ~. corp.example",
        "resolvectl default-route lo true",
        "resolvectl dns lo 10.0.0.1 fd00::1",
        "resolvectl revert lo",
    ]


@pytest.mark.parametrize("interface", ["gone0", None])
def test_resolved_forgets_by_itself_what_it_was_told_of_an_interface_that_is_gone(
    programs: Programs, interface: str | None
) -> None:
    run_resolved(programs)
    revert_dns(interface, "record")
    assert programs.told() == []


def test_resolvconf_keeps_a_record(programs: Programs) -> None:
    programs.add("resolvconf")
    programs.add("resolvectl")  # installed, but nothing runs
    apply_dns(WANTED, "record")
    revert_dns(None, "record")
    assert programs.told() == [
        "resolvconf -a record -m 0 -x",
        "nameserver 10.0.0.1",
        "nameserver fd00::1",
        "search corp.example",
        "resolvconf -d record -f",
    ]


def test_a_program_that_fails_is_quoted(programs: Programs) -> None:
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


def test_nobody_to_tell(programs: Programs) -> None:
    dns_config.RESOLVED.touch()  # runs, but there is no program with which to tell it
    for ask in (find_program, lambda: check_dns(WANTED, is_ours_to_set=False)):
        with pytest.raises(OxidizeError, match=r"no program for that.*install openresolv or start systemd-resolved"):
            ask()
    check_dns(NONE, is_ours_to_set=True)
    revert_dns("lo", "record")


def test_only_root_sets_them_itself(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("resolvconf")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check_dns(WANTED, is_ours_to_set=False)
    with pytest.raises(OxidizeError, match="user 1000 may not change this system's name servers: expected root"):
        check_dns(WANTED, is_ours_to_set=True)
    assert programs.told() == []


def test_records_of_two_clients_are_not_mixed_up() -> None:
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


def test_a_hook_sets_what_is_configured(programs: Programs, config_path: Path) -> None:
    programs.add("resolvconf")
    assert unit_hooks.set_names(config_path) == ["10.0.0.1"]
    config_path.write_text(config_path.read_text().replace('dns = ["10.0.0.1"]', ""))
    assert unit_hooks.set_names(config_path) == []
    assert programs.told() == ["resolvconf -a tun.lo -m 0 -x", "nameserver 10.0.0.1", "resolvconf -d tun.lo -f"]


@pytest.mark.parametrize(
    ("goes_on", "gave_up", "taken_back"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_a_hook_takes_nothing_back_while_the_unit_goes_on(
    programs: Programs,
    config_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    goes_on: bool,
    gave_up: bool,
    taken_back: bool,
) -> None:
    programs.add("resolvconf")
    removed: list[list[str]] = []
    monkeypatch.setattr(unit_hooks.systemctl, "will_restart", lambda: goes_on)
    monkeypatch.setattr(unit_hooks, "remove_policy", lambda interfaces: removed.append(interfaces) or ["a rule"])
    unit_hooks.remove_names(config_path, gave_up=gave_up)
    assert unit_hooks.clean_up(config_path, gave_up=gave_up) == (["a rule"] if taken_back else [])
    assert removed == ([["lo"]] if taken_back else [])
    assert programs.told() == (["resolvconf -d tun.lo -f"] if taken_back else [])
