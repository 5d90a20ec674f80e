"""What `make install` puts where, and what systemd says of the units."""

import re
import subprocess
from pathlib import Path

from oxidize.runtime.coordinator import PREPARE_TIMEOUT_SECS, TAKE_TIMEOUT_SECS
from tests.system.machine import CLIENT, DAEMON, UNITS
from tests.system.service import RELEASES, Service

EXPOSURE_MAX = 3.0


def test_the_units_are_without_fault(service: Service) -> None:
    outcome = service.machine.try_run("systemd-analyze", "verify", *UNITS, CLIENT)
    assert (outcome.status, outcome.output, outcome.errors) == (0, "", "")


def test_the_services_are_not_exposed(service: Service) -> None:
    for unit in (DAEMON, CLIENT):
        service.machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX * 10:.0f}", unit)


def test_a_reload_ends_before_systemd_ends_it(service: Service) -> None:
    units = {"min": 60, "s": 1}
    limit = re.findall(r"(\d+)(min|s)\b", service.machine.show("TimeoutStartUSec"))
    seconds = sum(int(number) * units[unit] for number, unit in limit)
    assert seconds > PREPARE_TIMEOUT_SECS + TAKE_TIMEOUT_SECS


def test_a_release_is_complete_in_itself(service: Service, seed: Path) -> None:
    (release,) = service.releases()
    folder = f"/{RELEASES}/{release}"
    assert service.machine.run("readlink", "/opt/oxidize/current").strip() == f"releases/{release}"
    script = service.machine.run("head", "-n1", f"{folder}/bin/oxidize").strip()
    assert script == f"#!{folder}/bin/python"
    found = service.machine.try_run("grep", "-rIl", str(seed), "/opt/oxidize", "/etc/systemd", "/usr/lib/sysusers.d")
    assert (found.status, found.output) == (1, ""), "a path of where it was built"
    code = "import oxidize, sys; print(oxidize.__file__, sys.prefix)"
    as_user = ("setpriv", "--reuid=oxidize", "--regid=oxidize", "--clear-groups")
    where, prefix = service.machine.run(*as_user, f"{folder}/bin/python", "-P", "-c", code).split()
    assert where.startswith(folder)
    assert prefix == folder


def test_only_the_service_reads_the_configuration(service: Service) -> None:
    modes = service.machine.run("stat", "-c", "%a %U %G", "/etc/oxidize", "/etc/oxidize/server.toml").splitlines()
    assert modes == ["750 root oxidize", "640 root oxidize"]


def test_the_sysctls_for_nat_are_installed_and_no_other(seed: Path) -> None:
    text = (seed / "usr/lib/sysctl.d/60-oxidize.conf").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["net.ipv4.ip_forward = 1", "net.ipv6.conf.all.forwarding = 1"]


def test_uninstall_keeps_the_configuration(tmp_path: Path, seed: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(seed), str(copy)], check=True)
    root = Path(__file__).parents[2]
    subprocess.run(["make", "uninstall", f"DESTDIR={copy}"], cwd=root, check=True, capture_output=True)
    left = {str(path.relative_to(copy)) for path in copy.rglob("*") if not path.is_dir()}
    assert left == {"etc/oxidize/server.toml"}
