"""The files of `make install`, and systemd's verdict on the units."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize import __version__
from oxidize.control.reload import PREPARE_TIMEOUT_SECS, TAKE_TIMEOUT_SECS
from tests.support.traffic.server import Lab
from tests.system.machine import CLIENT, DAEMON, KILL_SWITCH, UNITS
from tests.system.service import RELEASES, Service

ROOT = Path(__file__).parents[2]
EXPOSURE_MAX = 1.9
STATE = "/var/lib/oxidize"
UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: byte-code that depends on no source
# Makes no environment, and installs nothing into it: what is built has its own tests.
PYTHON = """#!/bin/sh
test "$1 $2" != "-m venv" || { mkdir -p "$3/bin" "$3/lib" && touch "$3/pyvenv.cfg" && cp "$0" "$3/bin/python"; }
"""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, seed: Path) -> Iterator[Service]:
    """One machine for all tests that change nothing."""
    with Lab(tmp_path_factory.mktemp("untouched")) as lab:
        yield Service(lab, seed)


def test_systemd_finds_no_fault_in_the_units(untouched: Service) -> None:
    outcome = untouched.machine.try_run("systemd-analyze", "verify", *UNITS, CLIENT, KILL_SWITCH)
    assert (outcome.status, outcome.output, outcome.errors) == (0, "", "")


def test_each_unit_names_a_document_that_is_installed(untouched: Service) -> None:
    for unit in (*UNITS, CLIENT, KILL_SWITCH):
        document = untouched.machine.show("Documentation", unit).removeprefix("file:")
        untouched.machine.run("test", "-s", document)


def test_systemd_rates_the_services_as_well_protected(untouched: Service) -> None:
    for unit in (DAEMON, CLIENT, KILL_SWITCH):
        untouched.machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX * 10:.0f}", unit)


def test_the_services_are_not_swapped_and_dump_no_core(untouched: Service) -> None:
    for unit in (DAEMON, CLIENT):
        found = [untouched.machine.show(name, unit) for name in ("MemorySwapMax", "LimitCORE", "LimitCORESoft")]
        assert found == ["0", "0", "0"], unit


def test_the_timeouts_of_a_reload_are_shorter_than_systemds(untouched: Service) -> None:
    units = {"min": 60, "s": 1}
    limit = re.findall(r"(\d+)(min|s)\b", untouched.machine.show("TimeoutStartUSec"))
    seconds = sum(int(number) * units[unit] for number, unit in limit)
    assert seconds > PREPARE_TIMEOUT_SECS + TAKE_TIMEOUT_SECS


def test_a_release_needs_nothing_outside_its_folder(untouched: Service, seed: Path) -> None:
    (release,) = untouched.releases()
    folder = f"/{RELEASES}/{release}"
    record = json.loads(untouched.machine.run("cat", f"{folder}/release.json"))
    assert re.fullmatch(rf"{record['version']}-\d{{8}}T\d{{6}}Z-{record['revision']}", release)
    assert record["version"] == __version__
    assert untouched.machine.run("readlink", "/opt/oxidize/current").strip() == f"releases/{release}"
    script = untouched.machine.run("grep", "^python=", f"{folder}/bin/oxidize").strip()
    assert script == f"python={folder}/bin/python"
    found = untouched.machine.try_run("grep", "-rIl", str(seed), "/opt/oxidize", "/etc/systemd", "/usr/lib/sysusers.d")
    assert (found.status, found.output) == (1, ""), "a path of where it was built"
    code = "import oxidize, sys; print(oxidize.__file__, sys.prefix)"
    as_user = ("setpriv", "--reuid=oxidize", "--regid=oxidize", "--clear-groups")
    where, prefix = untouched.machine.run(*as_user, f"{folder}/bin/python", "-P", "-c", code).split()
    assert where.startswith(folder)
    assert prefix == folder


def test_a_release_starts_from_byte_code_wherever_it_is_copied_to(seed: Path) -> None:
    (package,) = (seed / RELEASES).glob("*/lib/python*/site-packages/oxidize")
    sources = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    compiled = list(package.rglob("*.pyc"))
    assert {path.parent.parent.relative_to(package) / path.stem.partition(".")[0] for path in compiled} == sources
    assert {path.read_bytes()[4:8] for path in compiled} == {UNCHECKED}, "it depends on the time of its source"


def test_only_the_service_can_read_the_configuration(untouched: Service) -> None:
    modes = untouched.machine.run("stat", "-c", "%a %U %G", "/etc/oxidize", "/etc/oxidize/server.toml").splitlines()
    assert modes == ["751 root oxidize", "640 root oxidize"]


def test_only_the_sysctls_for_nat_are_installed(seed: Path) -> None:
    text = (seed / "usr/lib/sysctl.d/60-oxidize.conf").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["net.ipv4.ip_forward = 1", "net.ipv6.conf.all.forwarding = 1"]


def test_uninstall_keeps_the_configuration(tmp_path: Path, seed: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(seed), str(copy)], check=True)
    subprocess.run(["make", "uninstall", f"DESTDIR={copy}"], cwd=ROOT, check=True, capture_output=True)
    left = {str(path.relative_to(copy)) for path in copy.rglob("*") if not path.is_dir()}
    assert left == {"etc/oxidize/server.toml"}


def modes(service: Service, *paths: str) -> list[str]:
    return service.machine.run("stat", "-c", "%a %U %G", *paths).splitlines()


def test_the_service_owns_its_folder_below_one_owned_by_root(service: Service) -> None:
    service.write_config(drain_timeout_secs=0.5)
    assert modes(service, STATE) == ["755 root root"]
    service.start()
    service.stop()
    folders = [STATE, f"{STATE}/server", f"{STATE}/server/endpoints.json"]
    assert modes(service, *folders) == ["755 root root", "700 oxidize oxidize", "600 oxidize oxidize"]
    # Where no systemd-tmpfiles has made it, and where an older unit had it.
    service.machine.run("rm", "-r", STATE)
    service.machine.systemctl("start", DAEMON)
    assert modes(service, *folders[:2]) == ["755 root root", "700 oxidize oxidize"]
    service.machine.run("chown", "oxidize:oxidize", STATE)
    service.machine.run("systemd-tmpfiles", "--create", "oxidize.conf")
    assert modes(service, *folders[:2]) == ["755 root root", "700 oxidize oxidize"]


def test_make_install_and_uninstall_take_the_lock(service: Service) -> None:
    """Root installs from a checkout of another user."""
    machine, source, python = service.machine, "/srv/source", "/srv/python"
    copy = machine.root / source.lstrip("/")
    for name in ("systemd", "scripts", "docs", "contrib"):
        shutil.copytree(ROOT / name, copy / name)
    for pattern in ("Makefile", "pyproject.toml", "*.md", "LICENSE", "requirements*.lock"):
        for found in ROOT.glob(pattern):
            shutil.copy(found, copy)
    (copy / "oxidize").mkdir()
    (machine.root / "srv/python").write_text(PYTHON)
    machine.run("chmod", "0755", python)
    as_nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "git", "-C", source, "-c", "user.name=a")
    machine.run("chown", "-R", "nobody", source)
    for command in (["init"], ["add", "."], ["-c", "user.email=a@example.org", "commit", "-m", "a"]):
        machine.run(*as_nobody, *command)
    revision = machine.run(*as_nobody, "rev-parse", "--short", "HEAD").strip()
    make = ("make", "-C", source, f"INSTALL_PYTHON={python}")
    before = machine.run("readlink", "/opt/oxidize/current")

    for goal in ("install", "release", "units", "uninstall"):
        refused = machine.try_run("flock", "/opt/oxidize/.lock", *make, goal)
        assert refused.status != 0
        assert "another build or deployment is under way" in refused.errors
    assert machine.run("readlink", "/opt/oxidize/current") == before

    service.write_config(drain_timeout_secs=0.5)
    service.start()
    pid = service.wait_for_main_process()
    machine.run("rm", f"/etc/systemd/system/{CLIENT}")
    assert CLIENT in machine.run(*make, "changed-units")
    machine.run(*make, "install")
    assert machine.run("readlink", "/opt/oxidize/current").strip().endswith(f"Z-{revision}")
    assert machine.show("LoadState", CLIENT) == "loaded"
    assert service.wait_for_main_process() == pid

    machine.run(*make, "uninstall")
    assert machine.show("LoadState") == "not-found"
    for path in ("/opt/oxidize", STATE, "/usr/lib/tmpfiles.d/oxidize.conf", f"/etc/systemd/system/{DAEMON}"):
        assert machine.try_run("test", "-e", path).status == 1, path
