"""`table` and `fwmark` of both roles: values, defaults, what does not go together, and what settings make of them."""

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from oxidize.config import ClientConfig, ServerConfig, load_client, load_server
from oxidize.config.values import FWMARK_DEFAULT, MAIN_TABLE
from oxidize.settings import NodeSettings
from tests.support.config_files import BOB, CLIENT, SERVER, load, peer, problem

Loader = Callable[[Path], ServerConfig | ClientConfig]
DEFAULTS = ("0.0.0.0/0", "::/0")


def server_text(more: str, networks: str, peer_more: str = "") -> str:
    return SERVER + more + "\n" + peer(ips=networks, more=peer_more)


def client_text(more: str, networks: str) -> str:
    return CLIENT + f"allowed_ips = [{networks}]\n" + more + "\n"


ROLES: dict[str, tuple[Callable[[str, str], str], Loader]] = {
    "server": (server_text, load_server),
    "client": (client_text, load_client),
}


@pytest.fixture(params=list(ROLES))
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings_of(folder: Path, role: str, more: str, networks: str) -> NodeSettings:
    text, loader = ROLES[role]
    return NodeSettings.of(load(folder, text(more, networks), loader))


NETWORKS = '"10.0.0.0/8", "0.0.0.0/0", "::/0"'


@pytest.mark.parametrize(
    ("more", "table", "routes", "has_rules"),
    [
        ("", MAIN_TABLE, ["10.0.0.0/8"], True),
        ('table = "auto"', MAIN_TABLE, ["10.0.0.0/8"], True),
        ('table = "off"', 0, [], False),
        ("table = 123", 123, ["10.0.0.0/8", *DEFAULTS], False),
        ("table = 0xffffffff", 2**32 - 1, ["10.0.0.0/8", *DEFAULTS], False),
        ("table = 253", 253, ["10.0.0.0/8", *DEFAULTS], False),
    ],
)
def test_the_table_says_where_the_routes_stand(
    folder: Path, role: str, more: str, table: int, routes: list[str], has_rules: bool
) -> None:
    settings = settings_of(folder, role, more, NETWORKS)
    assert settings.table == table
    assert list(map(str, settings.routes)) == routes
    assert settings.default_routes == (tuple(map(ip_network, DEFAULTS)) if has_rules else ())
    assert settings.has_host_setup == (has_rules or role == "client")
    assert bool(settings.policy_table) == has_rules


@pytest.mark.parametrize(
    ("more", "networks", "server_mark", "client_mark"),
    [
        ("", '"10.0.0.0/8"', 0, FWMARK_DEFAULT),
        ("", NETWORKS, FWMARK_DEFAULT, FWMARK_DEFAULT),
        ('fwmark = "off"', '"10.0.0.0/8"', 0, 0),
        ('fwmark = "off"', NETWORKS, FWMARK_DEFAULT, FWMARK_DEFAULT),  # as wg-quick, which chooses one then
        ("fwmark = 0", NETWORKS, FWMARK_DEFAULT, FWMARK_DEFAULT),
        ('fwmark = "off"\ntable = "off"', NETWORKS, 0, 0),
        ("fwmark = 0x20\ntable = 5", NETWORKS, 32, 32),
        ("fwmark = 1", NETWORKS, 1, 1),
        ("fwmark = 254", '"10.0.0.0/8"', 254, 254),  # no table's number without a default route
        ('fwmark = 254\ntable = "off"', NETWORKS, 254, 254),
    ],
)
def test_the_mark_is_as_configured_and_rules_have_one(
    folder: Path, more: str, networks: str, server_mark: int, client_mark: int
) -> None:
    assert settings_of(folder, "server", more, networks).fwmark == server_mark
    assert settings_of(folder, "client", more, networks).fwmark == client_mark


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            "table = 0",
            'table = 0: expected "auto", "off", or the number of a table from 1 to 4294967295 other than 255',
        ),
        ("table = 255", "other than 255, the kernel's own"),
        ("table = 4294967296", "the number of a table"),
        ("table = true", "the number of a table"),
        ("table = 1.0", "the number of a table"),
        ('table = "main"', 'remove the line for the default "auto"'),
        ('table = "123"', "write 123, a number without quotes"),
        ("fwmark = -1", 'expected "off", or a whole number from 0 to 4294967295'),
        ("fwmark = 4294967296", 'expected "off", or a whole number from 0 to 4294967295'),
        ("fwmark = true", 'expected "off", or a whole number'),
        ("fwmark = [1]", 'expected "off", or a whole number'),
        ('fwmark = "0x100"', "write 256, a number without quotes"),
        ("table = 254", "expected another table for the default route in allowed_ips, which would take that of this"),
        ("fwmark = 254", "this is one of the kernel's"),
    ],
)
def test_a_mistake_is_reported(folder: Path, role: str, more: str, expected: str) -> None:
    text, loader = ROLES[role]
    line = problem(folder, text(more, NETWORKS), loader)
    assert f"{role}.{more.split(maxsplit=1)[0]}" in line
    assert expected in line


@pytest.mark.parametrize("more", ["table = 5", "fwmark = 5"])
def test_without_an_interface_there_is_nothing_to_route_or_to_mark(folder: Path, role: str, more: str) -> None:
    text, loader = ROLES[role]
    line = problem(folder, text(f'{more}\nnetwork = "userspace"', '"10.0.0.0/8"'), loader)
    assert f'{role}.{more}: expected none with network = "userspace", which routes nothing of this machine' in line
    off = 'table = "off"\nfwmark = "off"\nnetwork = "userspace"'
    assert settings_of(folder, role, off, '"10.0.0.0/8"').fwmark == 0


def test_a_kill_switch_needs_a_mark(folder: Path) -> None:
    text = client_text('kill_switch = true\ntable = "off"\nfwmark = "off"', NETWORKS)
    assert "expected a mark, by which kill_switch knows the tunnel's own packets" in problem(folder, text, load_client)
    settings = settings_of(folder, "client", 'kill_switch = true\nfwmark = "off"', NETWORKS)
    assert (settings.kill_switch, settings.fwmark) == (True, FWMARK_DEFAULT)


def test_a_default_route_of_a_server_is_a_warning(folder: Path) -> None:
    (warning,) = load(folder, server_text("", '"0.0.0.0/0"')).warnings
    assert "peer.alice.allowed_ips: 0.0.0.0/0 sends all traffic of this machine through this peer" in warning
    for quiet in ('table = "off"', "table = 9", 'network = "userspace"'):
        assert load(folder, server_text(quiet, '"0.0.0.0/0"')).warnings == ()
    named = load(folder, server_text("", '"0.0.0.0/0"', 'endpoint = "vpn.example.org:1"')).warnings
    assert "peer.alice.endpoint: the look-up of vpn.example.org:1 may need the route" in named[1]


def test_a_network_that_contains_its_peers_own_address_is_a_warning(folder: Path) -> None:
    half = server_text("", '"0.0.0.0/1", "128.0.0.0/1"', 'endpoint = "192.0.2.7:1"')
    (warning,) = load(folder, half).warnings
    assert "128.0.0.0/1 contains the peer's own address" in warning
    assert "unless a longer route leads to 192.0.2.7" in warning


def test_a_disabled_peer_has_no_routes(folder: Path) -> None:
    text = server_text("", '"0.0.0.0/0"', "enabled = false") + peer("bob", BOB, '"10.0.0.3/32"')
    config = load(folder, text)
    assert config.warnings == ()
    settings = NodeSettings.of_server(config)
    assert (settings.default_routes, settings.fwmark, settings.has_host_setup) == ((), 0, False)
