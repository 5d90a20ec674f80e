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
    NameServersPart,
    apply_dns,
    check_dns,
    find_program,
    missing_servers,
    record_name,
    revert_dns,
)
from oxidize.hostnet.part import Steps, run
from oxidize.service_manager import systemctl

WANTED = NameServers("lo", (ip_address("10.0.0.1"), ip_address("fd00::1")), ("corp.example",))
SERVERS = "10.0.0.1, fd00::1"
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
    monkeypatch.setattr(dns_config, "RESOLV_CONF", tmp_path / "resolv.conf")
    (tmp_path / "resolve").mkdir()
    monkeypatch.setattr(dns_config, "RESOLVEDS_RESOLV_CONF", tmp_path / "resolve" / "resolv.conf")
    return Programs(folder)


def run_resolved(programs: Programs) -> None:
    programs.add("resolvectl")
    dns_config.RESOLVED.touch()


def test_resolvectl_sets_and_reverts_the_dns_of_a_link(programs: Programs) -> None:
    programs.add("resolvconf")
    run_resolved(programs)
    run(apply_dns(WANTED, "record"))
    run(revert_dns("lo", "record"))
    assert programs.calls() == [
        "resolvectl domain lo ~. corp.example",
        "resolvectl default-route lo true",
        "resolvectl dns lo 10.0.0.1 fd00::1",
        "resolvectl revert lo",
    ]


@pytest.mark.parametrize("interface", ["gone0", None])
def test_the_dns_of_an_interface_that_is_gone_needs_no_resolvectl(programs: Programs, interface: str | None) -> None:
    run_resolved(programs)
    run(revert_dns(interface, "record"))
    assert programs.calls() == []


def test_resolvconf_adds_and_removes_a_record(programs: Programs) -> None:
    programs.add("resolvconf")
    put_servers("10.0.0.1", "fd00::1")
    programs.add("resolvectl")  # installed, but systemd-resolved does not run
    run(apply_dns(WANTED, "record"))
    run(revert_dns(None, "record"))
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
        run(apply_dns(WANTED, "record"))


def test_a_program_that_does_not_end_is_ended(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("resolvconf", "#!/bin/sh\nexec cat < /dev/zero > /dev/null\n")
    monkeypatch.setattr(dns_config, "TIMEOUT_SECS", 0.05)
    with pytest.raises(OxidizeError, match="did not end within"):
        run(apply_dns(WANTED, "record"))


def test_a_program_that_cannot_be_run_is_an_error(programs: Programs) -> None:
    programs.add("resolvconf", "#!/nonexistent\n")
    with pytest.raises(OxidizeError, match="cannot be run"):
        run(apply_dns(WANTED, "record"))


def test_a_system_without_a_dns_program_is_an_error(programs: Programs) -> None:
    dns_config.RESOLVED.touch()  # it runs, but its program is missing
    for ask in (find_program, lambda: check_dns(WANTED, by_this_process=False)):
        with pytest.raises(OxidizeError, match=r"no program for that.*install openresolv or start systemd-resolved"):
            ask()
    check_dns(NONE, by_this_process=True)
    run(revert_dns("lo", "record"))


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
    put_servers("10.0.0.1")
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

    monkeypatch.setattr(systemctl, "will_restart", lambda otherwise=False: restarts)
    monkeypatch.setattr(unit_hooks, "remove_policy", remove_policy)
    unit_hooks.remove_names(config_path, gave_up=gave_up)
    assert unit_hooks.clean_up(config_path, gave_up=gave_up, crashed=False) == (["a rule"] if is_removed else [])
    assert removed == ([["lo"]] if is_removed else [])
    assert programs.calls() == (["resolvconf -d tun.lo -f"] if is_removed else [])


# --- As a part that is kept ---


def put_servers(*servers: str, path: Path | None = None) -> None:
    lines = ["# Generated", "search example.org", *(f"nameserver {server}" for server in servers), "options edns0"]
    (path or dns_config.RESOLV_CONF).write_text("\n".join(lines) + "\n")


class Kept:
    """The part of a process that may set name servers, or not, with a clock that the test moves."""

    def __init__(self, *, may_set: bool = True, begins_at: float = 0.0) -> None:
        self.now = 0.0
        record = (lambda: "record") if may_set else None
        self._part = NameServersPart(WANTED, record, lambda: self.now, begins_at)

    def compare(self, *, repair: bool = True) -> list[str]:
        return run(self._part.compare(repair=repair))


# A resolvconf that does its work, below the folder of the test.
WORKING = """#!/bin/sh
echo "${0##*/} $*" >> "${0%/*}/log"
while read -r line; do echo "$line"; done > "${0%/*}/../resolv.conf"
"""


WORKING_ON_UPDATE = """#!/bin/sh
echo "${0##*/} $*" >> "${0%/*}/log"
case $1 in
-a) while read -r line; do echo "$line"; done > "${0%/*}/record" ;;
-u) while read -r line; do echo "$line"; done < "${0%/*}/record" > "${0%/*}/../resolv.conf" ;;
esac
"""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["10.0.0.1", "fd00::1"], []),
        (["10.0.0.1", "fd00::1", "192.0.2.53"], []),  # Debian's resolvconf keeps those of other programs behind
        (["127.0.0.1"], []),  # a resolver of this machine, whose servers cannot be read here
        (["192.0.2.53"], ["{path} has 192.0.2.53, expected 10.0.0.1, fd00::1"]),
        (
            ["192.0.2.53", "10.0.0.1", "fd00::1"],
            ["{path} has 192.0.2.53, 10.0.0.1, fd00::1, expected 10.0.0.1, fd00::1"],
        ),
        (["10.0.0.1"], ["{path} has 10.0.0.1, expected 10.0.0.1, fd00::1"]),
        (["nonsense"], ["{path} has no name server, expected 10.0.0.1, fd00::1"]),
        ([], ["{path} has no name server, expected 10.0.0.1, fd00::1"]),
    ],
    ids=str,
)
def test_what_programs_ask_is_compared_with_what_is_wanted(
    programs: Programs, found: list[str], expected: list[str]
) -> None:
    put_servers(*found)
    assert missing_servers(WANTED) == [line.format(path=dns_config.RESOLV_CONF) for line in expected]


def test_a_missing_resolv_conf_names_no_server(programs: Programs) -> None:
    (line,) = missing_servers(WANTED)
    assert "has no name server" in line


def test_a_resolv_conf_that_cannot_be_read_is_told(programs: Programs) -> None:
    dns_config.RESOLV_CONF.mkdir()
    with pytest.raises(OxidizeError, match=r"resolv\.conf: cannot be read \(Is a directory\)"):
        missing_servers(WANTED)


@pytest.mark.parametrize("is_link", [False, True], ids=["stub", "link"])
def test_the_servers_of_systemd_resolved_are_compared_where_programs_ask_it(programs: Programs, is_link: bool) -> None:
    run_resolved(programs)
    if is_link:
        dns_config.RESOLV_CONF.symlink_to(dns_config.RESOLVEDS_RESOLV_CONF)
    else:
        put_servers("127.0.0.53")
    put_servers("192.0.2.53", "10.0.0.1", path=dns_config.RESOLVEDS_RESOLV_CONF)
    assert missing_servers(WANTED) == ["systemd-resolved asks no name server fd00::1, expected for lo"]
    put_servers("192.0.2.53", "10.0.0.1", "fd00::1", path=dns_config.RESOLVEDS_RESOLV_CONF)
    assert missing_servers(WANTED) == []


def test_a_resolv_conf_that_leads_past_systemd_resolved_is_told(programs: Programs) -> None:
    run_resolved(programs)
    put_servers("10.0.0.1", "fd00::1", path=dns_config.RESOLVEDS_RESOLV_CONF)
    put_servers("192.0.2.53")
    (line,) = missing_servers(WANTED)
    assert "has 192.0.2.53" in line


def test_name_servers_that_are_taken_away_are_set_again(programs: Programs) -> None:
    programs.add("resolvconf", WORKING)
    put_servers("10.0.0.1", "fd00::1")
    assert Kept().compare() == []
    put_servers("192.0.2.53")
    lost = [f"{dns_config.RESOLV_CONF} has 192.0.2.53, expected 10.0.0.1, fd00::1"]
    assert Kept().compare(repair=False) == lost
    assert programs.calls() == []
    assert Kept().compare() == lost
    assert programs.calls() == ["resolvconf -a record -m 0 -x"]
    assert Kept().compare() == missing_servers(WANTED) == []


def test_a_record_that_resolvconf_has_already_is_written_into_resolv_conf_again(programs: Programs) -> None:
    """As openresolv and Debian's program do: they write nothing where a record is the same as before."""
    programs.add("resolvconf", WORKING_ON_UPDATE)
    put_servers("192.0.2.53")
    assert Kept().compare()
    assert programs.calls() == ["resolvconf -a record -m 0 -x", "resolvconf -u"]
    assert missing_servers(WANTED) == []


def test_a_program_that_has_no_effect_does_not_make_name_servers_complete(programs: Programs) -> None:
    programs.add("resolvconf")
    put_servers("192.0.2.53")
    with pytest.raises(OxidizeError, match=r"name servers: .* has 192\.0\.2\.53.*another program sets them"):
        Kept().compare()


def test_a_process_without_root_says_what_sets_the_name_servers(programs: Programs) -> None:
    programs.add("resolvconf")
    put_servers("192.0.2.53")
    with pytest.raises(OxidizeError, match=r"has 192\.0\.2\.53, .*needs root: a reload of the unit sets them again"):
        Kept(may_set=False).compare()
    assert programs.calls() == []


def test_nothing_is_compared_while_the_hook_of_the_unit_may_be_at_work(programs: Programs) -> None:
    put_servers("192.0.2.53")
    kept = Kept(may_set=False, begins_at=10.0)
    assert kept.compare() == []
    kept.now = 10.0
    with pytest.raises(OxidizeError, match="needs root"):
        kept.compare()


def test_other_work_is_done_while_a_program_sets_name_servers(programs: Programs) -> None:
    programs.add("resolvconf", WORKING.replace("\n", '\nuntil test -e "${0%/*}/other-work-is-done"; do :; done\n', 1))
    put_servers("192.0.2.53")
    pauses = []
    for pause in NameServersPart(WANTED, lambda: "record", lambda: 0.0, 0.0).compare(repair=True):
        pauses.append(pause)
        if pause:
            (programs.folder / "other-work-is-done").touch()
    assert pauses[0] == 0.0
    assert set(pauses[1:]) == {dns_config.POLL_SECS}
