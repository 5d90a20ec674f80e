"""`oxidize check` tells where the tunnel's packets do not fit into the way that they take."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from oxidize.cli import mtu_check
from oxidize.cli.commands import main
from oxidize.config import load_client, load_server
from oxidize.config.values import FWMARK_DEFAULT, HostAddress
from oxidize.hostnet.uplink import Uplink
from tests.support.config_files import CLIENT, PRIVATE, SERVER, load, peer, secret


class Way:
    """The uplink of the machine, and what was asked of it."""

    def __init__(self) -> None:
        self.uplink: Uplink | None = Uplink(1460, "ens4")
        self.asked: list[object] = []

    def find(self, hosts: Iterable[HostAddress], *, but: str, mark: int) -> Uplink | None:
        self.asked = [*map(str, hosts), but, mark]
        return self.uplink


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    made = Way()
    monkeypatch.setattr(mtu_check, "find_uplink", made.find)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    return tmp_path


@pytest.mark.parametrize(
    ("more", "mtu", "written"),
    [
        ("", 1500, None),
        ("", 9000, None),
        ("", 1460, 1380),
        ("", 1492, 1412),
        ("mtu = 1380\n", 1460, None),
        ("mtu = 1400\n", 1460, None),  # by IPv4 they fit
        ("mtu = 1401\n", 1460, 1380),
        ("mtu = 8921\n", 1500, 1420),
        ("", 600, 576),
        ('network = "userspace"\n', 1460, None),
    ],
)
def test_packets_that_do_not_fit_are_told_with_wg_quicks_mtu(
    folder: Path, way: Way, more: str, mtu: int, written: int | None
) -> None:
    way.uplink = Uplink(mtu, "ens4")
    lack = mtu_check.mtu_lack(load(folder, SERVER + more + peer(), load_server))
    assert (lack is None) == (written is None)
    if lack is not None:
        assert f"ens4 takes {mtu}: they leave in fragments; write mtu = {written}, on both sides" in lack


def test_a_tunnel_with_ipv6_gets_what_ipv6_needs_at_least(folder: Path, way: Way) -> None:
    way.uplink = Uplink(1300, "ens4")
    text = SERVER.replace('"10.0.0.1/24"', '["10.0.0.1/24", "fd00::1/64"]') + peer()
    assert "write mtu = 1280" in str(mtu_check.mtu_lack(load(folder, text, load_server)))


def test_the_way_is_that_of_the_tunnels_own_packets(folder: Path, way: Way) -> None:
    text = SERVER + peer(more='endpoint = "192.0.2.7:7"\n')
    mtu_check.mtu_lack(load(folder, text, load_server))
    assert way.asked == ["192.0.2.7", "oxidize0", FWMARK_DEFAULT]
    mtu_check.mtu_lack(load(folder, CLIENT + 'allowed_ips = ["0.0.0.0/0"]\nfwmark = 7\n', load_client))
    assert way.asked == ["oxidize1", 7]
    way.uplink = None
    assert mtu_check.mtu_lack(load(folder, text, load_server)) is None


def test_check_warns_and_the_configuration_is_good(folder: Path, way: Way) -> None:
    path = folder / "server.toml"
    path.write_text(SERVER + peer())
    result = CliRunner().invoke(main, ["check", "-c", str(path)])
    assert result.exit_code == 0
    assert f"{path}: server.mtu: packets of 1420 bytes need 80 more outside of the tunnel, and ens4" in result.stderr
