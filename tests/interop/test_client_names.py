"""A client's DNS servers with a fake `resolvconf`: set, changed by reloads, reverted."""

import os
import signal
import stat
from collections.abc import Iterator
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


RESOLVCONF = """#!/bin/sh
{ echo "resolvconf $*"; test "$1" = -d || cat; } >> "$0.log"
test ! -e "$0.fails" || { echo "no such luck" >&2; exit 3; }
"""


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
def test_dns_servers_are_set_and_reverted(lab: Lab, tmp_path: Path, number: signal.Signals) -> None:
    double = Double(tmp_path / "bin")
    place = Place(lab, allowed_ips=["10.9.0.0/24"], dns=["10.9.0.1", "fd09::1", "corp.example", "example.org"])
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


def test_a_reload_without_dns_reverts_the_dns_servers(lab: Lab, tmp_path: Path) -> None:
    double = Double(tmp_path / "bin")
    place = Place(lab, dns=["10.9.0.1"])
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
