"""The Debian package: a first installation, upgrades good and bad under traffic, removal."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import Lab
from tests.system import package as packages
from tests.system.broken_releases import DOES_NOT_START, LOGS_ERRORS
from tests.system.machine import CLIENT, DAEMON, UNITS, Machine
from tests.system.package import Package, build, dpkg, later, state
from tests.system.service import CONFIG, OXIDIZE, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

pytestmark = [pytest.mark.handoff, pytest.mark.needs(*packages.NEEDED_PROGRAMS)]

Record = Callable[[str, object], None]
INSTALLED = "install ok installed"
UNCONFIGURED = "install ok half-configured"
# Not the logs, which outlive a package as its users do.
FIND = "find /etc /opt /usr /var -xdev -path /var/log -prune -o -ipath '*oxidize*' -print | LC_ALL=C sort"
BEFORE = "/srv/before"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The package of this source tree, built once for all tests."""
    return build(tmp_path_factory.mktemp("package"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A seed without the product."""
    for name in ("etc", "usr", "opt"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    return tmp_path / "bare"


@pytest.fixture
def packaged(tmp_path: Path, bare: Path, package: Package) -> Iterator[Service]:
    """A machine on which the package was installed, and then configured."""
    with Lab(tmp_path) as lab:
        yield Service(lab, bare, lambda machine: _installed(package, machine))


def _installed(package: Package, machine: Machine) -> None:
    machine.run("sh", "-c", f"{FIND} > {BEFORE}")
    package.install(machine)


def made(machine: Machine) -> list[str]:
    """Return the files and folders whose path names the product, and which have come since before the package."""
    return machine.run("sh", "-c", f"{FIND} | comm -13 {BEFORE} -").splitlines()


def test_a_fresh_package_changes_no_service_until_it_is_configured(
    tmp_path: Path, bare: Path, package: Package
) -> None:
    with Lab(tmp_path) as lab:
        machine = Machine(lab, Namespace(lab.stack), bare)
        _installed(package, machine)
        assert state(machine) == f"{INSTALLED} {package.version}"
        assert dpkg(machine, "--audit").output == ""
        for unit in (*UNITS, CLIENT):
            assert machine.try_run("systemctl", "is-enabled", unit).output.strip() == "disabled"
            assert machine.show("ActiveState", unit) == "inactive"
        assert machine.run("oxidize", "--version").strip() == f"oxidize, version {package.release}"
        assert machine.try_run("test", "-e", f"/{CONFIG}").status == 1
        assert machine.run("stat", "-c", "%a %U %G", "/etc/oxidize").strip() == "751 root oxidize"
        assert machine.run("man", "-w", "oxidize-peer-add").strip() == "/usr/share/man/man1/oxidize-peer-add.1.gz"
        listed = dpkg(machine, "-L", "oxidize").output.splitlines()
        assert not [path for path in listed if path.startswith(("/opt", "/etc", "/usr/local"))]
        assert machine.try_run("dpkg", "--verify", "oxidize").output == ""
        verified = machine.try_run("systemd-analyze", "verify", *UNITS, CLIENT)
        assert (verified.status, verified.errors) == (0, "")
        package.install(machine)  # once more
        assert state(machine) == f"{INSTALLED} {package.version}"
        dpkg(machine, "--purge", "oxidize")
        assert state(machine) == ""
        assert made(machine) == []


def test_an_upgrade_ships_its_release_under_traffic(
    packaged: Service, package: Package, tmp_path: Path, record_property: Record
) -> None:
    machine = packaged.machine
    machine.systemctl("enable", "--now", DAEMON)
    assert [machine.show("ActiveState", unit) for unit in UNITS] == ["active"] * len(UNITS)
    packaged.start()
    newer = later(package, tmp_path, 1)
    pid, handshake, traffic = machine.main_pid(), packaged.handshake(), packaged.traffic()
    outcome = newer.install(machine)
    traffic.wait_until_caught_up()
    verdict = traffic.stop()
    record_property("verdict", str(verdict))
    verdict.assert_unharmed()
    assert f"{newer.release} serves, 1 session" in outcome.output
    assert state(machine) == f"{INSTALLED} {newer.version}"
    assert (packaged.current(), packaged.releases()) == (newer.release, [package.release, newer.release])
    assert packaged.wait_for_main_process(other_than=pid)
    assert (machine.show("NRestarts"), packaged.handshake()) == ("0", handshake)
    assert (packaged.log()[-1]["target"], packaged.log()[-1]["result"]) == (newer.release, "success")
    # And back, by the older package.
    package.install(machine)
    assert packaged.status()["release_folder"].endswith(f"/{package.release}")
    assert packaged.handshake() == handshake


@pytest.mark.parametrize(
    ("broken", "result"),
    [pytest.param(DOES_NOT_START, "failed", id="does not start"), pytest.param(LOGS_ERRORS, "rolled back", id="bad")],
)
def test_a_bad_upgrade_leaves_the_old_release_serving_and_says_what_to_do(
    packaged: Service, package: Package, tmp_path: Path, broken: dict[str, str], result: str
) -> None:
    machine = packaged.machine
    packaged.start()
    bad, good = later(package, tmp_path, 1, broken), later(package, tmp_path, 2)
    handshake, traffic = packaged.handshake(), packaged.traffic(BESIDE_DEPLOYMENTS)
    outcome = bad.install(machine, expected=1)
    assert f"not deployed ({result})" in outcome.errors
    assert f"{package.release} serves as before" in outcome.errors
    assert "dpkg --configure oxidize" in outcome.errors
    assert state(machine) == f"{UNCONFIGURED} {bad.version}"
    assert (packaged.current(), packaged.log()[-1]["result"]) == (package.release, result)
    assert packaged.status()["release_folder"].endswith(f"/{package.release}")
    dpkg(machine, "--configure", "oxidize", expected=1)  # as each later call of apt does
    assert packaged.status()["release_folder"].endswith(f"/{package.release}")
    good.install(machine)
    assert state(machine) == f"{INSTALLED} {good.version}"
    assert packaged.status()["release_folder"].endswith(f"/{good.release}")
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert packaged.handshake() == handshake


def test_a_package_is_removed_installed_again_and_purged(packaged: Service, package: Package) -> None:
    machine = packaged.machine
    packaged.write_config(drain_timeout_secs=0.5)
    machine.systemctl("enable", "--now", DAEMON)
    packaged.start()
    dpkg(machine, "--remove", "oxidize")
    assert machine.show("LoadState") == "not-found"
    assert machine.try_run("test", "-e", "/opt/oxidize").status == 1
    assert machine.run("stat", "-c", "%a %U", "/etc/oxidize/server.key").strip() == "600 oxidize"
    package.install(machine)  # the configuration is there, and the units are enabled as they were
    packaged.wait_for_main_process()
    packaged.reconnect()
    key = machine.run("cat", "/etc/oxidize/server.key")
    outcome = dpkg(machine, "--purge", "oxidize")
    (kept,) = [path for path in made(machine) if path.endswith("/server.key")]
    folder = kept.removesuffix("/oxidize/server.key")
    assert folder in outcome.output
    assert [path for path in made(machine) if not path.startswith("/var/backups/oxidize-")] == []
    assert machine.run("cat", kept) == key
    assert machine.run("stat", "-c", "%a %U", folder, kept).split() == ["700", "root", "400", "root"]
    assert machine.try_run("systemctl", "is-enabled", DAEMON).status != 0


def test_a_package_takes_over_from_make_install(service: Service, package: Package) -> None:
    """The server of `make install` is upgraded by the package, and its units are the package's from then on."""
    service.start()
    service.machine.systemctl("enable", DAEMON)
    first, handshake, traffic = service.current(), service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    outcome = package.install(service.machine)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert (service.current(), service.handshake()) == (package.release, handshake)
    assert first != package.release
    assert "hides" not in outcome.errors
    assert service.machine.show("FragmentPath").endswith(f"/lib/systemd/system/{DAEMON}")
    assert service.machine.systemctl("is-enabled", DAEMON).strip() == "enabled"
    assert service.machine.run(OXIDIZE, "--version").strip() == f"oxidize, version {package.release}"
