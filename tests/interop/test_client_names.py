"""A client's DNS servers with a fake `resolvconf`: set, changed by reloads, kept, reverted.

The client runs in a mount namespace, where /etc/resolv.conf is a file of the test (mount_namespaces(7)).
"""

import ctypes
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.support.traffic.routed_client import Place
from tests.support.traffic.server import Lab, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


CLONE_FS, CLONE_NEWNS = 0x200, 0x20000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
OWN_MOUNTS = "/proc/thread-self/ns/mnt"
MARK = "# of the test"
BEFORE, OTHER = "192.0.2.53", "192.0.2.99"
_libc = ctypes.CDLL(None, use_errno=True)

# It never writes to the file of this machine, which has no mark.
RESOLVCONF = f"""#!/bin/sh
echo "resolvconf $*" >> "$0.log"
test ! -e "$0.fails" || {{ echo "no such luck" >&2; exit 3; }}
read -r first < /etc/resolv.conf
test "$first" = "{MARK}" || {{ echo "the wrong namespace" >&2; exit 4; }}
if test "$1" = -d; then new="nameserver {BEFORE}"; else new=$(cat); echo "$new" >> "$0.log"; fi
{{ echo "$first"; echo "$new"; }} > /etc/resolv.conf
"""


class Etc:
    """A mount namespace with an /etc/resolv.conf of its own."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        self._file = folder / "resolv.conf"
        self.write(BEFORE)
        with self._at_home():
            _check(_libc.unshare(CLONE_FS | CLONE_NEWNS))
            _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
            _check(_libc.mount(bytes(self._file), b"/etc/resolv.conf", None, MS_BIND, None))
            self._fd = os.open(OWN_MOUNTS, os.O_RDONLY)
            undo.callback(os.close, self._fd)

    def write(self, *servers: str) -> None:
        """Write the file as another program does; no reader sees a part of it."""
        text = "\n".join([MARK, *(f"nameserver {server}" for server in servers)]) + "\n"
        self._file.touch()
        with self._file.open("r+") as file:  # it is mounted, so no other can take its place
            file.write(text.ljust(self._file.stat().st_size, "\n"))

    @property
    def servers(self) -> list[str]:
        return [line.split()[1] for line in self._file.read_text().splitlines() if line.startswith("nameserver ")]

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        """Return to the mounts and the folder of this thread at the exit."""
        home, folder = os.open(OWN_MOUNTS, os.O_RDONLY), os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNS))
            os.fchdir(folder)
            os.close(home)
            os.close(folder)

    @contextmanager
    def entered(self, place: Place) -> Iterator[None]:
        with place.here.entered(), self._at_home():
            _check(_libc.setns(self._fd, CLONE_NEWNS))
            yield


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture
def etc(tmp_path: Path) -> Iterator[Etc]:
    with ExitStack() as undo:
        yield Etc(tmp_path, undo)


def place_with(etc: Etc, lab: Lab, dns: Sequence[str]) -> Place:
    place = Place(lab, allowed_ips=["10.9.0.0/24"], dns=dns)
    place.client._inside = lambda: etc.entered(place)
    return place


class Double:
    """A folder for PATH with a fake `resolvconf` that records its calls."""

    def __init__(self, folder: Path, *, there: bool = True) -> None:
        folder.mkdir()
        self.env = {**os.environ, "PATH": str(folder)}
        self._program = folder / "resolvconf"
        for name in ("sh", "cat"):
            (folder / name).symlink_to(f"/bin/{name}")
        if there:
            self._program.write_text(RESOLVCONF)
            self._program.chmod(self._program.stat().st_mode | stat.S_IXUSR)

    def fail(self) -> None:
        self._program.with_suffix(".fails").touch()

    def told(self) -> list[str]:
        """Return the calls since the last time."""
        log = self._program.with_suffix(".log")
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


def index_of(place: Place) -> int:
    with place.here.entered(), IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=place.interface)
    return int(index)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_dns_servers_are_set_and_reverted(lab: Lab, etc: Etc, tmp_path: Path, number: signal.Signals) -> None:
    double = Double(tmp_path / "bin")
    place = place_with(etc, lab, ["10.9.0.1", "fd09::1", "corp.example", "example.org"])
    place.client.start(double.env)
    record = f"tun.{place.interface}.{index_of(place)}"
    added = [f"resolvconf -a {record} -m 0 -x", "nameserver 10.9.0.1"]
    assert double.told() == [*added, "nameserver fd09::1", "search corp.example example.org"]
    place.client.replace(double.env)
    assert double.told() == []
    place.client.write_config(dns="10.9.0.1")
    place.client.replace(double.env)
    assert double.told() == added
    place.client.stop(number)
    wait_for("the name servers to be taken back", lambda: double.told() == [f"resolvconf -d {record} -f"])
    wait_for("the name servers of before", lambda: etc.servers == [BEFORE])


def test_dns_servers_that_another_program_replaces_are_set_again_and_counted(
    lab: Lab, etc: Etc, tmp_path: Path
) -> None:
    double = Double(tmp_path / "bin")
    place = place_with(etc, lab, ["10.9.0.1"])
    place.client.start(double.env)
    added = double.told()
    etc.write(OTHER)
    wait_for("the name servers to be set again", lambda: etc.servers == ["10.9.0.1"])
    assert double.told() == added
    wait_for("the repair to be counted", lambda: place.client.status()["totals"]["network_repairs"] == 1)
    assert place.client.status()["network_missing"] == []
    said = f'put back what was missing part="name servers" missing="/etc/resolv.conf has {OTHER}, expected 10.9.0.1"'
    assert place.client.log.count(said) == place.client.log.count("put back") == 1
    double.fail()
    etc.write(OTHER)
    wait_for("the state", lambda: place.client.status()["state"] == "degraded")
    (missing,) = place.client.status()["network_missing"]
    assert "exit status 3: no such luck" in missing
    etc.write("10.9.0.1")
    wait_for("the state", lambda: place.client.status()["state"] == "healthy")
    place.client.stop()


def test_a_reload_sets_dns_servers_again_that_are_not_there_any_more(lab: Lab, etc: Etc, tmp_path: Path) -> None:
    double = Double(tmp_path / "bin")
    place = place_with(etc, lab, ["10.9.0.1"])
    pid = place.client.start(double.env)
    added = double.told()
    os.kill(pid, signal.SIGSTOP)
    etc.write(OTHER)
    os.kill(pid, signal.SIGCONT)
    place.client.replace(double.env)
    wait_for("the name servers to be set again", lambda: etc.servers == ["10.9.0.1"])
    assert double.told()[-len(added) :] == added  # the old process may have begun to, before it handed over
    place.client.stop()


def test_a_reload_without_dns_reverts_the_dns_servers(lab: Lab, etc: Etc, tmp_path: Path) -> None:
    double = Double(tmp_path / "bin")
    place = place_with(etc, lab, ["10.9.0.1"])
    place.client.start(double.env)
    record = f"tun.{place.interface}.{index_of(place)}"
    double.told()
    place.client.write_config(dns=None)
    place.client.replace(double.env)
    assert double.told() == [f"resolvconf -d {record} -f"]
    place.client.stop()
    assert double.told() == []


def test_a_client_without_dns_calls_no_dns_program(lab: Lab, tmp_path: Path) -> None:
    double = Double(tmp_path / "bin")
    place = Place(lab)
    place.client.start(double.env)
    place.client.stop()
    wait_for("the guard to end", lambda: not place.guards())
    assert double.told() == []


def test_a_missing_dns_program_is_an_error_before_any_change(lab: Lab, tmp_path: Path) -> None:
    double = Double(tmp_path / "bin", there=False)
    place = Place(lab, dns=["10.9.0.1"])
    assert "client.dns is set, but this system has no program for that" in place.client.start_in_vain(double.env)
    assert (place.rules(4), place.rules(6)) == ([], [])
    assert place.interface not in place.ip("link")


def test_a_failing_dns_program_ends_the_start_without_a_trace(lab: Lab, tmp_path: Path) -> None:
    double = Double(tmp_path / "bin")
    double.fail()
    place = Place(lab, dns=["10.9.0.1"])
    said = place.client.start_in_vain(double.env)
    assert "exit status 3: no such luck" in said
    place.wait_bare()
    wait_for("the guard to end", lambda: not place.guards())
